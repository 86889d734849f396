"""Commands for links, comparing plans, inspecting files and images, and jobs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from psvit_core.cli import main
from psvit_core.jobs import client, workers
from psvit_core.jobs.client import Job
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.link import share_text
from psvit_core.plan.size import memory_saving
from psvit_core.records import PrunePlan, SweepSettings
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import model_card, shipped_summary

MODEL = "sdt_v1_digits"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    return Store()


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def text_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def plan_file(path: Path, ratio: float) -> PrunePlan:
    summary = shipped_summary(MODEL)
    assert summary is not None
    ratios = {g.group_id: ratio for g in summary.groups if g.kind != "residual"}
    plan = plan_from_ratios(summary, ratios, criterion="l2")
    plan.save(path)
    return plan


def test_a_link_returns_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_file(tmp_path / "plan.json", 0.3)
    summary = shipped_summary(MODEL)
    assert summary is not None
    made = run(capsys, "link", tmp_path / "plan.json", "--url", "http://127.0.0.1:9000/")
    assert made["text"] == share_text(summary, plan)
    assert made["link"] == f"http://127.0.0.1:9000/compare?plan={made['text']}"
    for link in (made["link"], made["text"], f"plan={made['text']}"):
        back = run(capsys, "open-link", link, "--out", tmp_path / "back.json")
        assert PrunePlan.load(tmp_path / "back.json").kept == plan.kept
        assert back["memory_saving"] == memory_saving(summary, plan)

    assert main(["open-link", made["text"][:-9], "--out", str(tmp_path / "x.json")]) == 2
    assert "The link is damaged" in capsys.readouterr().err
    other = ["open-link", made["text"], "e_spikeformer_digits", "--out", str(tmp_path / "x.json")]
    assert main(other) == 2
    assert "The link is for sdt_v1_digits" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_plans_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    first, second = plan_file(a, 0.2), plan_file(b, 0.7)
    sizes = run(capsys, "compare", MODEL, a, b)
    assert [p["measured"] for p in sizes["plans"]] == [None, None]
    assert set(sizes["differing_ratios"]) == set(first.kept) | set(second.kept)
    result = run(capsys, "compare", MODEL, a, b, "--data", "digits", "--limit", "40")
    rows = result["plans"]
    assert rows[0]["memory_saving"] < rows[1]["memory_saving"]
    for row in rows:
        measured, changes = row["measured"], row["class_changes"]
        classes = measured["per_class"]
        assert sum(images for images, *_ in classes.values()) == 40
        lost = sum(classes[c][0] * changes[c] / 100 for c in changes)
        assert lost == pytest.approx(-40 * measured["drop"]["value"] / 100)
    text = text_of(capsys, "compare", MODEL, a, a, "--data", "digits", "--limit", "40")
    assert "measured drop" in text and "differ" not in text


def test_a_file_and_images_are_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = model_card(MODEL).weights
    assert shipped is not None
    assert run(capsys, "inspect", shipped)["fits"] == [MODEL]
    assert f"opens as {MODEL}" in text_of(capsys, "inspect", shipped)
    assert main(["inspect", str(tmp_path / "none.pth")]) == 2
    assert "none.pth" in capsys.readouterr().err
    report = run(capsys, "check-data", MODEL, "--data", "digits")
    assert {s["split"]: s["n_images"] for s in report["splits"]}["val"] == 750
    assert report["problem"] == ""
    assert "cannot be used" in text_of(capsys, "check-data", MODEL, "--data", "folder:/no/such")


def test_jobs_from_the_shell(
    own_store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ensure_worker", lambda *_, **__: None)
    assert "no jobs in" in text_of(capsys, "jobs", "list")
    job = Job(
        id="abc",
        task="sweep",
        title="Sweep of a test",
        params={"subject": {}, "settings": SweepSettings(ratios=(0.5,)).to_dict()},
        state="queued",
        created=time.time(),
        done=3,
        total=9,
    )
    client.save(own_store, job)
    (listed,) = run(capsys, "jobs", "list")["jobs"]
    assert (listed["id"], listed["state"], "params" in listed) == ("abc", "queued", False)
    assert run(capsys, "jobs", "cancel", "abc")["state"] == "cancelled"
    assert "cancelled 3/9  Sweep of a test" in text_of(capsys, "jobs", "list")
    assert run(capsys, "jobs", "resume", "abc")["state"] == "queued"
    assert run(capsys, "jobs", "stop", "abc")["state"] == "cancelled"
    assert main(["jobs", "cancel", "none"]) == 2
    assert "Unknown job 'none'" in capsys.readouterr().err
    assert main(["jobs", "cancel"]) == 2
    capsys.readouterr()

    assert "is empty" in text_of(capsys, "jobs", "log")
    workers.log_path(own_store, "cpu").write_text("one\ntwo\nthree\n", encoding="utf-8")
    assert run(capsys, "jobs", "log", "--lines", "2")["lines"] == ["two", "three"]
