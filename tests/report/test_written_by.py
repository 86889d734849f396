"""A report is written by the command, the Python function and a background job, all alike."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import psvit_core as psvit
from psvit_core.cli import main
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.run import JobRun
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import Subject
from psvit_core.records.jobs import ReportRequest, ReportResult
from psvit_core.storage.shipped import DemoStore
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import shipped_summary

NAME = "sdt_v1_digits"
DATE = re.compile(r"on \d{4}-\d\d-\d\d\.")


def page(path: str | Path) -> str:
    return DATE.sub("", Path(path).read_text(encoding="utf-8"))


def test_three_ways_to_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "store"))
    by_command, files = tmp_path / "command.html", tmp_path / "files"
    arguments = ["report", NAME, "--out", str(by_command), "--files", str(files), "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bytes"] == by_command.stat().st_size
    assert result["missing"] == ["test split", "fine-tuning"]
    assert (result["recovery"], result["plan"]["policy"]) == ("auto", "prime")
    assert sorted(map(str, files.iterdir())) == sorted(result["files"])

    store = DemoStore(tmp_path / "store")
    by_function = psvit.write_report(Workspace(Subject(), store), tmp_path / "function.html")
    store.close()

    plain = Store(tmp_path / "store")  # as a worker has it
    subject, request = Subject(), ReportRequest(file_name="../job.html")
    params = {"subject": subject.to_dict(), **request.to_dict()}
    job = Job(id="a1", task="report", title="", params=params, state="running")
    done = JobRun(plain, job, lambda s: Session(s, plain), lambda _: None).run()
    assert isinstance(done, ReportResult)
    assert Path(done.path) == tmp_path / "store" / "exports" / "a1" / "job.html"
    assert done.missing == ("test split", "fine-tuning")
    assert page(by_command) == page(by_function) == page(done.path)
    plain.close()


def test_a_plan_and_a_recovery_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "store"))
    summary = shipped_summary(NAME)
    assert summary is not None
    plan = plan_from_ratios(summary, {"block.0.mlp.hidden": 0.5}, criterion="l2")
    options = ["--plan", str(plan.save(tmp_path / "plan.json")), "--recover", "none"]
    out = ["--out", str(tmp_path / "report.html")]
    assert main(["report", NAME, *options, *out]) == 0
    assert "not measured: plan, test split, fine-tuning" in capsys.readouterr().out
    assert "Pruned by" not in page(tmp_path / "report.html")
    for bad in (["--recover", "magic"], ["--plan", str(tmp_path / "none.json")]):
        assert main(["report", NAME, *bad, *out]) == 2
    assert main(["report", NAME, "--out", str(tmp_path / "report.txt")]) == 2
    assert main(["report", "meta_spikeformer_digits", *options[:2], *out]) == 2
    assert "not for weights" in capsys.readouterr().err


def test_a_report_is_no_checkpoint(tmp_path: Path) -> None:
    """The newest checkpoint's plan is the default; a report about another plan is none."""
    from psvit_core.report import collect

    summary = shipped_summary(NAME)
    assert summary is not None
    store = Store(tmp_path)
    plan = plan_from_ratios(summary, {"block.0.mlp.hidden": 0.5}, criterion="l2")
    request = ReportRequest(plan=plan, file_name="a.html")
    params = {"subject": Subject().to_dict(), **request.to_dict()}
    result = {"path": str(tmp_path / "a.html"), "bytes": 1, "sha256": "0"}
    job = Job(id="a", task="report", title="", params=params, state="done", result=result)
    client.save(store, job)
    found = collect(store, Subject(), summary, jobs=client.list_jobs(store))
    assert (found.plan, found.written) == (None, ())
    store.close()
