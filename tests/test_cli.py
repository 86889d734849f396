"""The command line as a user calls it: JSON, exit codes, one-line errors, killed sweeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psvit_core.cli import main
from psvit_core.jobs.engine import Subject
from psvit_core.outcomes import Outcome
from psvit_core.plans import plan_from_ratios
from psvit_core.records import PrunePlan, SensitivityTable
from psvit_core.sensitivity.board import Board
from psvit_core.sensitivity.table import load_spec, read_table, sweep_keys
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import shipped_summary
from psvit_core.zoo.checkpoint import load_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PSVIT_CACHE", str(folder))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The message of a command that must end with exit status 2 and one line."""
    try:
        status = main([*map(str, arguments)])
    except SystemExit as stop:  # argparse
        status = int(str(stop.code))
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_the_main_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, sweep, plan, out = "e_spikeformer_digits", *(
        tmp_path / name for name in ("s.json", "plan.json", "small.safetensors")
    )  # fmt: skip
    names = [m["name"] for m in run(capsys, "models")["models"]]
    assert names[:2] == ["sdt_v1_digits", "e_spikeformer_digits"]
    groups = run(capsys, "groups", model)
    assert len(groups["groups"]) == 45

    table = run(capsys, "sweep", model, "--data", "digits", "--limit", "40", "--ratios",
                "0.25,0.5", "--out", sweep)  # fmt: skip
    assert len(table["rows"]) == 90
    assert SensitivityTable.load(sweep).to_dict() == table

    predicted = run(capsys, "plan", "--sweep", sweep, "--policy", "psvit", "--memory-saving",
                    "0.224", "--out", plan)  # fmt: skip
    assert predicted["measured"] is None
    assert "predicted" in predicted["plan"]["note"]
    measured = run(capsys, "plan", model, "--data", "digits", "--measure", "20", "--sweep", sweep,
                   "--policy", "uniform", "--memory-saving", "0.224", "--out", plan)  # fmt: skip
    assert measured["measured"]["conditions"]["n_images"] == 20
    assert measured["memory_saving"] >= 0.224

    pruned = run(
        capsys, "prune", model, "--plan", plan, "--recover", "none", "--data", "digits",
        "--out", out,
    )  # fmt: skip
    assert pruned["memory_saving"] == pytest.approx(measured["memory_saving"])
    result = run(capsys, "evaluate", out, "--data", "digits", "--limit", "20")
    assert result["accuracy"] == measured["measured"]["accuracy"]
    assert result["memory_saving"] == pytest.approx(pruned["memory_saving"])
    assert len(run(capsys, "groups", out)["groups"]) == 45  # a pruned model is a model
    test = run(capsys, "evaluate", out, "--data", "digits", "--split", "test", "--limit", "30")
    assert test["conditions"]["split"] == "test"


def test_text_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "sdt_v1_digits", "--limit", "20"]) == 0
    out = capsys.readouterr().out
    assert "digits val, 20 images, T=4" in out
    assert "[" in out.splitlines()[0]
    assert main(["evaluate", "sdt_v1_digits", "--limit", "20", "--time-steps", "2"]) == 0
    assert "T=2" in capsys.readouterr().out


def seen(folder: Path) -> int:
    """Images of cells that the store's sweep has results of."""
    store = Store(folder)
    specs = [load_spec(store, key) for key in sweep_keys(store)]
    tables = [table for spec in specs if (table := read_table(store, spec))]
    store.close()
    return sum(row.n_images for table in tables for row in table.rows)


def test_a_killed_sweep_resumes(
    tmp_path: Path, own_store: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    arguments = ["sweep", "sdt_v1_digits", "--data", "digits", "--limit", "400", "--ratios",
                 "0.25,0.5", "--batch", "15"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "psvit_core", *arguments, "--out", str(tmp_path / "s.json")],
        cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not seen(own_store) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = seen(own_store)
    assert 0 < finished < 32 * 400
    assert not (tmp_path / "s.json").exists()

    images = 0
    add = Board.add

    def count(self: Board, key: str, outcome: Outcome) -> None:
        nonlocal images
        images += len(outcome)
        add(self, key, outcome)

    monkeypatch.setattr(Board, "add", count)
    resumed = run(capsys, *arguments, "--out", tmp_path / "s.json")
    assert images == 32 * 400 - finished  # nothing is run twice
    os.environ["PSVIT_CACHE"] = str(tmp_path / "another")
    uninterrupted = run(capsys, *arguments, "--out", tmp_path / "t.json")
    assert resumed == uninterrupted
    assert not list(tmp_path.glob(".*"))


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, small = tmp_path / "out.json", tmp_path / "out.safetensors"
    empty = tmp_path / "empty"
    empty.mkdir()
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    cases = [
        (("evaluate", "sdt_v1_digit"), "Did you mean 'sdt_v1_digits'"),
        (("sweep", "sdt_v1_digits", "--ratios", "0.5,1.0", "--out", out), r"in [0, 1); got 1.0"),
        (("sweep", "sdt_v1_digits", "--ratios", "-0.5", "--out", out), "got -0.5"),
        (("sweep", "sdt_v1_digits", "--ratios", "half", "--out", out), "got 'half'"),
        (("sweep", "sdt_v1_digits", "--split", "test", "--out", out), "never use the test split"),
        (("sweep", "sdt_v1_digits", "--criterion", "l3", "--out", out), "No criterion 'l3'"),
        (("evaluate", foreign), "not a whole .safetensors"),
        (("evaluate", "sdt_v1_digits", "--checkpoint", foreign), "not a whole .safetensors"),
        (("evaluate", "sdt_v1_digits", "--data", f"folder:{empty}"), "holds no images"),
        (("evaluate", "sdt_v1_digits", "--data", "folder:/nowhere"), "There is no folder"),
        (("evaluate", "sdt_v1_digits", "--data", "digit"), "Did you mean 'digits'"),
        (("evaluate", "sdt_v1_digits", "--split", "dev"), "No split 'dev'"),
        (("evaluate", "sdt_v1_digits", "--batch", "0"), "at least one image"),
        (("evaluate", "sdt_v1_digits", "--limit", "0"), "at least one image"),
        (("evaluate", "sdt_v1_digits", "--time-steps", "0"), "0 time steps"),
        (("evaluate", "e_spikeformer_digits", "--time-steps", "4"), "no time axis"),
        (("evaluate", "sdt_v1_digits", "--device", "gpu"), "no device"),
        (("sweep", "sdt_v1_digits", "--out", tmp_path / "no" / "s.json"), "no folder"),
        (("sweep", "sdt_v1_digits", "--out", tmp_path), "it is a folder"),
        (("sweep", "sdt_v1_digits", "--memory-budget", "infMB", "--out", out), "got 'infMB'"),
        (("finetune", "none.safetensors", "--epochs", "inf", "--out", small), "got inf"),
        (("plan", "--sweep", foreign, "--memory-saving", "0.2", "--out", out), "not a JSON"),
        (("plan", "--sweep", "none.json", "--memory-saving", "0.2", "--out", out), "Cannot read"),
        (("plan", "--sweep", "none.json", "--out", out), "required"),
        (("nothing",), "invalid choice"),
        (("sweep", "sdt_v1_digits", "--mode", "fast", "--out", out), "No sweep mode 'fast'"),
        (
            ("prune", "sdt_v1_digits", "--plan", "p.json", "--recover", "all", "--out", small),
            "No recovery 'all'",
        ),
        (
            ("prune", "sdt_v1_digits", "--plan", "p.json", "--out", tmp_path / "x.pt"),
            "x.safetensors",
        ),
        (("finetune", "none.safetensors", "--out", tmp_path / "x.pt"), "written as a .safetensors"),
        (
            ("finetune", "none.safetensors", "--recover", "bn", "--out", small),
            "comes right after pruning",
        ),
        (
            (
                "plan",
                "--sweep",
                "none.json",
                "--memory-saving",
                "0.2",
                "--measure",
                "5",
                "--data",
                "folder:/nowhere",
                "--out",
                out,
            ),
            "so --data, --measure would do nothing",
        ),
        (("check-data", "sdt_v1_digits", "--split", "bogus"), "unrecognized arguments: --split"),
    ]
    if not torch.cuda.is_available():
        cases.append((("evaluate", "sdt_v1_digits", "--device", "cuda"), "no device 'cuda'"))
    before = sorted(p.name for p in tmp_path.iterdir() if p.name != "cache")
    for arguments, message in cases:
        assert message in fails(capsys, *arguments), arguments
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == before


def test_a_plan_for_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = PrunePlan(model="other", weights_hash="ab" * 16, criterion="l2", kept={"stem0": (0,)})
    plan.save(tmp_path / "plan.json")
    out = tmp_path / "x.safetensors"
    message = fails(
        capsys, "prune", "sdt_v1_digits", "--plan", tmp_path / "plan.json", "--out", out
    )
    assert "made for other" in message
    assert not out.exists()


def test_a_sweep_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "sweep", "sdt_v1_digits", "--limit", "10", "--ratios", "0.5", "--out",
        tmp_path / "s.json")  # fmt: skip
    message = fails(capsys, "plan", "e_spikeformer_digits", "--sweep", tmp_path / "s.json",
                    "--memory-saving", "0.2", "--out", tmp_path / "plan.json")  # fmt: skip
    assert "other weights" in message
    plan = plan_file(tmp_path, "e_spikeformer_digits", 0.25)
    message = fails(capsys, "compare", "e_spikeformer_digits", plan, "--sweep", tmp_path / "s.json")
    assert "other weights" in message
    plan.unlink()
    message = fails(capsys, "plan", "--sweep", tmp_path / "s.json", "--memory-saving", "0.95",
                    "--out", tmp_path / "plan.json")  # fmt: skip
    assert "the most is" in message
    assert not (tmp_path / "plan.json").exists()


def plan_file(tmp_path: Path, model: str, ratio: float) -> Path:
    summary = shipped_summary(model)
    assert summary is not None
    ratios = {g.group_id: ratio for g in summary.groups}
    return plan_from_ratios(summary, ratios, criterion="l2").save(tmp_path / "plan.json")


def test_prune_recovers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "e_spikeformer_digits"
    plan = plan_file(tmp_path, model, 0.25)
    accuracy = {}
    for method in ("none", "lsq", "auto"):
        out = tmp_path / f"{method}.safetensors"
        pruned = run(capsys, "prune", model, "--plan", plan, "--recover", method, "--calib-images",
                     "48", "--seed", "1", "--out", out)  # fmt: skip
        accuracy[method] = run(capsys, "evaluate", out, "--limit", "100")["accuracy"]["value"]
        report = pruned["recovery"]
        if method == "none":
            assert report is None
            continue
        assert report["conditions"]["n_images"] == 48
        assert (report["conditions"]["split"], report["seed"]) == ("train", 1)
        assert report["kl"]["lsq"] < report["kl"]["none"]
        assert report["used"] in ("lsq", "both")
        assert load_model(out).provenance["recoveries"] == [report]
    assert accuracy["none"] < 0.6
    assert accuracy["lsq"] > 0.85
    assert accuracy["auto"] > 0.85
    assert main(["prune", model, "--plan", str(plan), "--recover", "bn", "--calib-images", "20",
                 "--out", str(out)]) == 0  # fmt: skip
    assert "recovery  bn: KL to the original" in capsys.readouterr().out


def test_finetune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = "e_spikeformer_digits", tmp_path / "tuned.safetensors"
    plan = plan_file(tmp_path, model, 0.25)
    small = tmp_path / "small.safetensors"
    run(capsys, "prune", model, "--plan", plan, "--out", small)
    quick = ("--epochs", "0.5", "--train-images", "160", "--batch", "16", "--limit", "60",
             "--patience", "3")  # fmt: skip
    tuned = run(capsys, "finetune", small, *quick, "--out", out)
    report = tuned["finetune"]
    assert report["teacher"] == model  # the original's weights are shipped
    assert [r["step"] for r in report["epochs"]] == [0, 5]
    assert report["settings"]["patience"] == 3
    loaded = load_model(out)
    assert loaded.provenance["finetunes"] == [report]
    assert loaded.provenance["origin"] == model
    best = max(r["val_accuracy"]["value"] for r in report["epochs"])
    measured = run(capsys, "evaluate", out, "--limit", "60")
    assert measured["accuracy"]["value"] == best
    assert measured["memory_saving"] > 0.4
    assert Path(tuned["last"]).name == "tuned.last.safetensors"
    assert load_model(tuned["last"]).provenance == loaded.provenance

    both = run(capsys, "finetune", model, "--plan", plan, "--recover", "lsq", "--calib-images",
               "40", "--distil-from", "none", *quick, "--out", out)  # fmt: skip
    assert both["recovery"]["used"] == "lsq"
    assert both["finetune"]["teacher"] is None
    start = both["finetune"]["epochs"][0]["val_accuracy"]["value"]
    assert start > report["epochs"][0]["val_accuracy"]["value"]
    archive = Workspace(Subject(model=model, limit=60)).archive(improved=True)
    assert archive is not None
    kept = [p for p in archive.points if p.made[0].epochs == 0.5]
    assert {p.made[0].recovery for p in kept} == {"none", "lsq"}
    assert {p.measurement.accuracy.value for p in kept} == {
        tuned["measurement"]["accuracy"]["value"], both["measurement"]["accuracy"]["value"]
    }  # fmt: skip
    assert tuned["measurement"]["accuracy"]["value"] == best
    assert all(p.measurement.drop and p.plan.kept for p in kept)
    assert list(load_model(out).provenance) == [
        "origin", "origin_weights_hash", "origin_bytes", "kept", "plans", "recoveries", "finetunes"
    ]  # fmt: skip
    assert main(["finetune", str(small), *quick, "--out", str(out)]) == 0
    assert "best after" in capsys.readouterr().out

    assert "was not pruned" in fails(capsys, "finetune", model, "--out", out)
    assert "epochs above 0" in fails(capsys, "finetune", small, "--epochs", "0", "--out", out)
    assert "No model 'nobody'" in fails(
        capsys, "finetune", small, "--distil-from", "nobody", "--out", out
    )
    assert "Distil from a model of the same" in fails(
        capsys, "finetune", small, "--distil-from", "meta_spikeformer_digits", "--out", out
    )


def test_npz_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (6, 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(6))
    result = run(capsys, "evaluate", "sdt_v1_digits", "--data", f"npz:{tmp_path / 'd.npz'}")
    assert result["conditions"]["n_images"] == 6
