"""The main commands as a user runs them: JSON, exit status, one-line errors, killed sweeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from psvit_core.cli import main
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import PrunePlan, RecoveryReport, SensitivityTable, Subject
from psvit_core.sensitivity.buffer import ResultBuffer
from psvit_core.sensitivity.spec import load_spec, read_table, sweep_keys
from psvit_core.storage.predictions import Outcome
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import shipped_summary
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.recorded import recorded_measurements
from tests.patience import JOB

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PSVIT_CACHE", str(folder))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def words(command: str) -> list[str]:
    """The words of a command; paths in it have no spaces."""
    return command.split()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return the message of a command that must exit with status 2 and one line."""
    try:
        status = main([*map(str, arguments)])
    except SystemExit as stop:  # argparse
        status = int(str(stop.code))
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_sweep_plan_prune_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, sweep, plan = "e_spikeformer_digits", tmp_path / "s.json", tmp_path / "plan.json"
    out = tmp_path / "small.safetensors"
    names = [m["name"] for m in run(capsys, "models")["models"]]
    assert names[:2] == ["sdt_v1_digits", "e_spikeformer_digits"]
    groups = run(capsys, "groups", model)
    assert len(groups["groups"]) == 45

    table = run(
        capsys,
        *words(
            f"sweep {model} --data digits --limit 40 --ratios 0.25,0.5 --recover none --out {sweep}"
        ),
    )
    assert len(table["rows"]) == 90
    assert SensitivityTable.load(sweep).to_dict() == table

    predicted = run(
        capsys, *words(f"plan --sweep {sweep} --policy psvit --memory-saving 0.224 --out {plan}")
    )
    assert predicted["measured"] is None
    assert "predicted" in predicted["plan"]["note"]
    measured = run(
        capsys,
        *words(
            f"plan {model} --data digits --measure 20 --sweep {sweep} --policy uniform "
            f"--memory-saving 0.224 --out {plan}"
        ),
    )
    assert measured["measured"]["conditions"]["n_images"] == 20
    assert measured["memory_saving"] >= 0.224

    pruned = run(
        capsys,
        *words(f"prune {model} --plan {plan} --recover none --data digits --limit 20 --measure"),
        *("--out", out),
    )
    assert pruned["measurement"]["accuracy"] == measured["measured"]["accuracy"]
    (recorded,) = run(capsys, "inspect", out)["recorded"]
    assert recorded["accuracy"] == measured["measured"]["accuracy"]
    assert pruned["memory_saving"] == pytest.approx(measured["memory_saving"])
    result = run(capsys, "evaluate", out, "--data", "digits", "--limit", "20")
    assert result["accuracy"] == measured["measured"]["accuracy"]
    assert result["memory_saving"] == pytest.approx(pruned["memory_saving"])
    assert len(run(capsys, "groups", out)["groups"]) == 45  # as of any other model
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
    """Return the number of images with stored results, over all cells."""
    store = Store(folder)
    specs = [load_spec(store, key) for key in sweep_keys(store)]
    tables = [table for spec in specs if (table := read_table(store, spec))]
    store.close()
    return sum(row.n_images for table in tables for row in table.rows)


@pytest.mark.slow
def test_a_killed_sweep_resumes(
    tmp_path: Path,
    own_store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = words("sweep sdt_v1_digits --data digits --limit 400 --ratios 0.25,0.5 --batch 15")
    process = subprocess.Popen(
        [sys.executable, "-m", "psvit_core", *arguments, "--out", str(tmp_path / "s.json")],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    deadline = time.monotonic() + JOB
    while not seen(own_store) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = seen(own_store)
    assert 0 < finished < 32 * 400
    assert not (tmp_path / "s.json").exists()

    images = 0
    add = ResultBuffer.add

    def count(self: ResultBuffer, key: str, outcome: Outcome) -> None:
        nonlocal images
        images += len(outcome)
        add(self, key, outcome)

    monkeypatch.setattr(ResultBuffer, "add", count)
    resumed = run(capsys, *arguments, "--out", tmp_path / "s.json")
    assert images == 32 * 400 - finished  # nothing runs twice
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
    cases: list[tuple[Sequence[str | Path], str]] = [
        (("evaluate", "sdt_v1_digit"), "Did you mean 'sdt_v1_digits'"),
        (("sweep", "sdt_v1_digits", "--ratios", "0.5,1.0", "--out", out), r"in [0, 1); got 1.0"),
        (("sweep", "sdt_v1_digits", "--ratios", "-0.5", "--out", out), "got -0.5"),
        (("sweep", "sdt_v1_digits", "--ratios", "half", "--out", out), "got 'half'"),
        (("sweep", "sdt_v1_digits", "--split", "test", "--out", out), "never use the test split"),
        (("sweep", "sdt_v1_digits", "--criterion", "l3", "--out", out), "Unknown criterion 'l3'"),
        (("evaluate", foreign), "not a complete .safetensors"),
        (("evaluate", "sdt_v1_digits", "--checkpoint", foreign), "not a complete .safetensors"),
        (("evaluate", "sdt_v1_digits", "--data", f"folder:{empty}"), "contains no images"),
        (("evaluate", "sdt_v1_digits", "--data", "folder:/nowhere"), "does not exist"),
        (("evaluate", "sdt_v1_digits", "--data", "digit"), "Did you mean 'digits'"),
        (("evaluate", "sdt_v1_digits", "--split", "dev"), "Unknown split 'dev'"),
        (("evaluate", "sdt_v1_digits", "--batch", "0"), "batch size must be at least 1"),
        (("evaluate", "sdt_v1_digits", "--limit", "0"), "at least 1 image"),
        (("evaluate", "sdt_v1_digits", "--time-steps", "0"), "0 time steps"),
        (("evaluate", "e_spikeformer_digits", "--time-steps", "4"), "no time axis"),
        (("evaluate", "sdt_v1_digits", "--device", "gpu"), "Unknown device"),
        (("sweep", "sdt_v1_digits", "--out", tmp_path / "no" / "s.json"), "does not exist"),
        (("sweep", "sdt_v1_digits", "--out", tmp_path), "it is a folder"),
        (("sweep", "sdt_v1_digits", "--memory-budget", "infMB", "--out", out), "got 'infMB'"),
        (("finetune", "none.safetensors", "--epochs", "inf", "--out", small), "got inf"),
        (("plan", "--sweep", foreign, "--memory-saving", "0.2", "--out", out), "not a JSON"),
        (("plan", "--sweep", "none.json", "--memory-saving", "0.2", "--out", out), "Cannot read"),
        (("plan", "--sweep", "none.json", "--out", out), "required"),
        (
            words("plan --sweep none.json --max-drop 120 --out x"),
            "points from 1 up such as 3; got '120'",
        ),
        (words("plan --sweep none.json --saving energy=much --out x"), "RESOURCE=FRACTION"),
        (
            words("plan --sweep none.json --memory-saving 0.2 --saving memory=0.3 --out x"),
            "'memory' is given twice",
        ),
        (
            words("plan --sweep none.json --saving macs=0.2 --saving macs=0.3 --out x"),
            "resource twice",
        ),
        (("nothing",), "invalid choice"),
        (("sweep", "sdt_v1_digits", "--mode", "fast", "--out", out), "Unknown sweep mode 'fast'"),
        (
            ("prune", "sdt_v1_digits", "--plan", "p.json", "--recover", "all", "--out", small),
            "Unknown recovery 'all'",
        ),
        (
            ("prune", "sdt_v1_digits", "--plan", "p.json", "--out", tmp_path / "x.pt"),
            "x.safetensors",
        ),
        (
            ("finetune", "none.safetensors", "--out", tmp_path / "x.pt"),
            "with the suffix .safetensors",
        ),
        (
            ("finetune", "none.safetensors", "--recover", "bn", "--out", small),
            "follows pruning, but there is no plan",
        ),
        (
            words(
                "plan --sweep none.json --memory-saving 0.2 --measure 5 --data folder:/nowhere "
                f"--out {out}"
            ),
            "so --data, --measure would have no effect",
        ),
        (("check-data", "sdt_v1_digits", "--split", "bogus"), "unrecognized arguments: --split"),
    ]
    if not torch.cuda.is_available():
        cases.append(
            (("evaluate", "sdt_v1_digits", "--device", "cuda"), "cannot use device 'cuda'")
        )
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


@pytest.mark.slow
def test_a_sweep_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *words(f"sweep sdt_v1_digits --limit 10 --ratios 0.5 --out {tmp_path}/s.json"))
    message = fails(
        capsys,
        *words(
            f"plan e_spikeformer_digits --sweep {tmp_path}/s.json --memory-saving 0.2 "
            f"--out {tmp_path}/plan.json"
        ),
    )
    assert "other weights" in message
    plan = plan_file(tmp_path, "e_spikeformer_digits", 0.25)
    message = fails(capsys, "compare", "e_spikeformer_digits", plan, "--sweep", tmp_path / "s.json")
    assert "other weights" in message
    plan.unlink()
    message = fails(
        capsys,
        *words(f"plan --sweep {tmp_path}/s.json --memory-saving 0.95 --out {tmp_path}/plan.json"),
    )
    assert "the maximum is" in message
    assert not (tmp_path / "plan.json").exists()


def plan_file(tmp_path: Path, model: str, ratio: float) -> Path:
    summary = shipped_summary(model)
    assert summary is not None
    ratios = {g.group_id: ratio for g in summary.groups}
    return plan_from_ratios(summary, ratios, criterion="l2").save(tmp_path / "plan.json")


@pytest.mark.slow
def test_prune_recovers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "e_spikeformer_digits"
    plan = plan_file(tmp_path, model, 0.25)
    accuracy = {}
    for method in ("none", "lsq"):
        out = tmp_path / f"{method}.safetensors"
        pruned = run(
            capsys,
            *words(
                f"prune {model} --plan {plan} --recover {method} --calib-images 48 --seed 1 "
                f"--out {out}"
            ),
        )
        accuracy[method] = run(capsys, "evaluate", out, "--limit", "100")["accuracy"]["value"]
        report = pruned["recovery"]
        if method == "none":
            assert report is None
            continue
        assert report["conditions"]["n_images"] == 48
        assert (report["conditions"]["split"], report["seed"]) == ("train", 1)
        assert report["kl"]["lsq"] < report["kl"]["none"]
        assert report["used"] in ("lsq", "both", "stages", "stages_bn")
        assert load_model(out).provenance["recoveries"] == [report]
    assert accuracy["none"] < 0.6
    assert accuracy["lsq"] > 0.85
    assert (
        main(words(f"prune {model} --plan {plan} --recover bn --calib-images 20 --out {out}")) == 0
    )
    assert "recovery  bn: KL to the original" in capsys.readouterr().out


def test_prune_recovers_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = "sdt_v1_digits", tmp_path / "small.safetensors"
    plan = plan_file(tmp_path, model, 0.6)
    pruned = run(capsys, "prune", model, "--plan", plan, "--out", out)
    assert pruned["recovery"]["method"] == "auto"
    report = RecoveryReport.from_dict(pruned["recovery"])
    assert report.kl_after < report.kl_before
    assert load_model(out).provenance["recoveries"] == [pruned["recovery"]]
    assert main(list(map(str, ("prune", model, "--plan", plan, "--out", out)))) == 0
    assert "recovering with auto on 256 calibration images" in capsys.readouterr().err
    single = run(capsys, "prune", model, "--plan", plan, "--recover", "none", "--out", out)
    assert single["recovery"] is None

    images = tmp_path / "images"
    for label in range(10):
        (images / "val" / str(label)).mkdir(parents=True)
        Image.new("L", (28, 28)).save(images / "val" / str(label) / "a.png")
    own = ("--data", f"folder:{images}")
    assert main(list(map(str, ("prune", model, "--plan", plan, *own, "--out", out)))) == 0
    assert "pruned without recovery: no calibration images" in capsys.readouterr().err
    assert "recoveries" not in load_model(out).provenance


@pytest.mark.slow
def test_finetune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = "e_spikeformer_digits", tmp_path / "tuned.safetensors"
    plan = plan_file(tmp_path, model, 0.25)
    small = tmp_path / "small.safetensors"
    run(capsys, "prune", model, "--plan", plan, "--recover", "none", "--out", small)
    quick = words("--epochs 0.5 --train-images 160 --batch 16 --limit 60 --patience 3")
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
    (recorded,) = recorded_measurements(loaded)
    assert recorded.accuracy.value == best
    assert Path(tuned["last"]).name == "tuned.last.safetensors"
    assert load_model(tuned["last"]).provenance == loaded.provenance

    both = run(
        capsys,
        *words(f"finetune {model} --plan {plan} --recover lsq --calib-images 40"),
        *quick,
        *words(f"--distil-from none --out {out}"),
    )
    assert both["recovery"]["used"] == "lsq"
    assert both["finetune"]["teacher"] is None
    start = both["finetune"]["epochs"][0]["val_accuracy"]["value"]
    assert start > report["epochs"][0]["val_accuracy"]["value"]
    archive = Workspace(Subject(model=model, limit=60)).archive(improved=True)
    assert archive is not None
    found = {(way.recovery, way.epochs): p for p in archive.points for way in p.made}
    # Training may not improve on recovery: then its best epoch is 0, depending on rounding.
    trained = {("none", report["best_epoch"]), ("lsq", both["finetune"]["best_epoch"])}
    kept = [found[way] for way in trained]
    assert {p.measurement.accuracy.value for p in kept} == {
        tuned["measurement"]["accuracy"]["value"],
        both["measurement"]["accuracy"]["value"],
    }
    assert tuned["measurement"]["accuracy"]["value"] == best
    assert all(p.measurement.drop and p.plan.kept for p in kept)
    assert list(load_model(out).provenance) == [
        "origin",
        "origin_weights_hash",
        "origin_bytes",
        "kept",
        "plans",
        "recoveries",
        "finetunes",
    ]
    tried = [*quick, "--try", "lr=0.0001,0.003", "--try", "seed=0,1"]
    assert main(["finetune", str(small), *tried, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all("lr 0.0" in line for line in lines[:4])
    assert "The best of 4 was chosen by its accuracy" in lines[4] and "best after" in lines[5]
    assert load_model(out).provenance["finetunes"][-1]["trials"] == 4
    assert "Unknown setting to try 'teacher'" in fails(
        capsys, "finetune", small, "--try", "teacher=none", "--out", out
    )

    assert "is not pruned" in fails(capsys, "finetune", model, "--out", out)
    assert "epochs above 0" in fails(capsys, "finetune", small, "--epochs", "0", "--out", out)
    assert "Unknown model 'nobody'" in fails(
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
