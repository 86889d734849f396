"""Whole runs: numbers, files, and what a second call does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from spikingjelly.activation_based import layer
from torch import nn

import psvit_core
from psvit_core.batch import RunCallbacks, RunConfig, RunOutcome, run_config
from psvit_core.batch import stages as stages_module
from psvit_core.batch.targets import judge
from psvit_core.data import load_data
from psvit_core.errors import DataError, ModelError, OutputError
from psvit_core.evaluate import measure
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import (
    Conditions,
    Interval,
    Measurement,
    PrunePlan,
    SensitivityTable,
    Size,
    Target,
)
from psvit_core.storage.store import Store
from psvit_core.tasks.plan import run_plan
from psvit_core.zoo import cards
from psvit_core.zoo.cards import shipped_summary
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.recorded import recorded_measurements
from tests.own_models import CLASSES, SHAPE, bn, conv, lif, warmed

MODEL = "sdt_v1_digits"
N_IMAGES = 20
Runner = Callable[..., RunOutcome]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def run(tmp_path: Path, store: Store) -> Runner:
    """A function that runs a small configuration with changed fields; all share a store."""
    return runner(tmp_path / "out", store)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Path:
    """The folder of a finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    runner(folder, store)()
    return folder


def runner(folder: Path, store: Store) -> Runner:
    def run(*, replace: bool = False, said: list[str] | None = None, **fields: Any) -> RunOutcome:
        document = {
            "out": str(folder),
            "model": {"name": MODEL},
            "data": {"spec": "digits", "limit": N_IMAGES},
            "sweep": {"ratios": [0.5], "criterion": "l2_group"},
            "targets": {"memory_saving": 0.3},
            "plan": {"policy": "uniform"},
            "recovery": "none",
            **fields,
        }
        config = RunConfig.model_validate_json(json.dumps(document))
        calls = RunCallbacks(say=said.append if said is not None else lambda text: None)
        return run_config(config, store=store, replace=replace, callbacks=calls)

    return run


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_numbers_are_those_of_the_written_file(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    done = run(exports=["torch"])
    assert json.loads((out / "result.json").read_text()) == done.result
    names = {"sweep.json", "plan.json", "pruned.safetensors", "network.py", "network.safetensors"}
    assert set(hashes(out)) == {*names, "report.html", "result.json"}
    assert {n: f["sha256"] for n, f in done.result["files"].items()} == {
        name: digest for name, digest in hashes(out).items() if name != "result.json"
    }
    assert SensitivityTable.load(out / "sweep.json").finished

    # the same by other means: the file measured by itself, in no store
    model, small = load_model(MODEL), load_model(out / "pruned.safetensors")
    images = load_data("digits", split="val").limit(N_IMAGES)
    plan = PrunePlan.load(out / "plan.json")
    found = measure(small, images)
    pruned = Measurement.from_dict(done.result["pruned"]["measurement"])
    assert pruned.accuracy == found.accuracy
    assert pruned.drop == measure(model, images, plan).drop
    assert pruned.conditions.recovery == "none" and done.result["pruned"]["recovery"] is None
    assert recorded_measurements(small)[0].accuracy == found.accuracy
    page = (out / "report.html").read_text()
    assert f"{found.size.bytes:,} bytes" in page and "pruned.safetensors" in page
    summary = shipped_summary(MODEL)
    assert summary is not None
    used = {t.name for t in summary.shapes.tensors if t.role not in ("counter", "unused")}
    n_bytes = [
        sum(t.numel() * t.element_size() for k, t in m.items() if k in used)
        for m in (model.state_dict(), load_file(out / "pruned.safetensors"))
    ]
    saved = 1 - n_bytes[1] / n_bytes[0]
    (target,) = done.targets
    assert target.reached == pytest.approx(saved, abs=1e-12) and target.met and saved >= 0.3
    assert done.result["test"] is None and not done.missed_on_test
    assert done.result["versions"]["engine"] >= 2

    # a second call: nothing runs, nothing changes
    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a finished stage ran again")

    tasks = ("run_sweep", "run_plan", "write_pruned", "measure_written", "load_written")
    for name in tasks:
        monkeypatch.setattr(stages_module, name, never)
    before, said = hashes(out), list[str]()
    again = run(exports=["torch"], said=said)
    assert hashes(out) == before and again.result == done.result
    assert again.reused == ("baseline", "sweep", "plan", "pruned", "torch", "report")
    assert again.changes == () and said == [
        f"Already done: {', '.join(again.reused)}. To do: nothing."
    ]


def test_a_changed_configuration_is_noticed(run: Runner, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")  # a folder may be moved
    before, said = hashes(out), list[str]()
    with pytest.raises(
        OutputError, match=r"plan\.json, pruned\.safetensors\. What changed: "
    ) as no:
        run(targets={"memory_saving": 0.4})
    assert "targets.memory_saving: 0.3 -> 0.4" in str(no.value)
    assert hashes(out) == before

    # what replaces nothing goes on
    more = run(exports=["torch"], said=said)
    assert more.reused == ("baseline", "sweep", "plan", "pruned", "report")
    assert said[0].endswith('exports: [] -> ["torch"]') and "To do: torch." in said[1]

    replaced = run(targets={"memory_saving": 0.4}, replace=True, said=said)
    assert replaced.reused == ("baseline", "sweep")
    assert replaced.targets[0].reached >= 0.4
    assert any("earlier settings stay: network.py, network.safetensors" in text for text in said)
    assert "network.py" not in replaced.result["files"]


def test_lost_files_are_made_again_and_altered_ones_stay(
    run: Runner, finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    tensors = load_file(out / "pruned.safetensors")
    (out / "pruned.safetensors").unlink()
    again = run()
    assert again.reused == ("baseline", "sweep", "plan", "report")
    made = load_file(out / "pruned.safetensors")
    assert made.keys() == tensors.keys() and all(made[k].equal(t) for k, t in tensors.items())
    (out / "plan.json").write_text("{}")
    with pytest.raises(OutputError, match=r"would be replaced: plan\.json\. .*files themselves"):
        run()
    assert (out / "plan.json").read_text() == "{}"
    assert run(replace=True).reused == ("baseline", "sweep", "pruned", "report")


def test_what_follows_a_lost_plan_is_made_again_if_the_new_one_is_another(
    run: Runner, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "plan.json").unlink()
    planned = run_plan

    def other(session: Any, table: Any, settings: Any, *more: Any) -> Any:
        # as a plan by latency may differ from time to time
        return planned(session, table, dataclasses.replace(settings, memory_saving=0.4), *more)

    monkeypatch.setattr(stages_module, "run_plan", other)
    done = run()
    assert done.result["plan"]["memory_saving"] >= 0.4
    assert done.result["pruned"]["measurement"]["memory_saving"] >= 0.4
    assert load_model(out / "pruned.safetensors").provenance["plans"] == [
        PrunePlan.load(out / "plan.json").to_dict()
    ]


@pytest.mark.slow
def test_the_test_split_is_judged_once_and_counted(run: Runner, tmp_path: Path) -> None:
    targets = {"memory_saving": 0.3, "max_drop": 0.2}
    plain = run(targets=targets)
    assert {t.judged_on for t in plain.targets} == {"exact", f"val, {N_IMAGES} images"}
    report = tmp_path / "out" / "report.html"
    before = report.read_text()
    judged = run(targets=targets, test=True)  # replaces nothing but the report
    assert report.read_text() != before
    found = Measurement.from_dict(judged.result["test"]["measurement"])
    assert (found.conditions.split, found.conditions.n_images) == ("test", 750)
    plan = PrunePlan.load(tmp_path / "out" / "plan.json")
    assert found.drop == measure(load_model(MODEL), load_data("digits", split="test"), plan).drop
    drop = judged.targets[-1]
    assert (drop.judged_on, drop.limit) == ("test, 750 images", 20)
    assert found.drop is not None and drop.reached == found.drop.value
    assert judged.result["test"]["judged_before"] == 0
    assert run(targets=targets, test=True).result == judged.result

    said: list[str] = []
    changed = {**targets, "memory_saving": 0.4}
    again = run(targets=changed, test=True, replace=True, said=said)
    assert again.result["test"]["judged_before"] == 1
    assert any("was used 1 times before" in text for text in said)
    assert any("was used 1 times before" in text for text in again.result["warnings"])


def test_folders_that_are_not_its_own_stay(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text("mine")
    with pytest.raises(OutputError, match=r"contains plan\.json, which no run wrote"):
        run()
    assert (out / "plan.json").read_text() == "mine" and len(list(out.iterdir())) == 1
    (out / "plan.json").unlink()
    (out / ".run").mkdir()
    with FileLock(out / ".run" / "lock"), pytest.raises(OutputError, match="Another run uses"):
        run()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        run(out=str(tmp_path / "file" / "out"))


def test_what_is_impossible_is_said_before_the_work(run: Runner, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run(data={"spec": f"folder:{tmp_path}"})
    with pytest.raises(DataError, match="Mixup needs a whole batch"):
        run(finetune={"mixup": 0.2, "train_images": 8})
    with pytest.raises(ModelError, match="products of two signals"):
        run(exports=["torch", "nir"])
    assert not (tmp_path / "out" / ".run" / "baseline.json").exists()


def chain() -> nn.Module:
    torch.manual_seed(0)
    pool, flat = layer.AdaptiveAvgPool2d((1, 1), step_mode="m"), layer.Flatten(step_mode="m")
    head = layer.Linear(6, CLASSES, bias=False, step_mode="m")
    return warmed(nn.Sequential(conv(1, 6), bn(6), lif(), pool, flat, head), T=2)


def test_a_network_of_ones_own_leaves_a_nir_graph(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "_custom_cards", {})
    psvit_core.register_model("chain", chain, input_shape=SHAPE, num_classes=CLASSES, T=2)
    with pytest.raises(ModelError, match="defined by your own code"):
        run(model={"name": "chain"}, exports=["torch", "nir"])
    assert not (tmp_path / "out" / ".run" / "baseline.json").exists()
    done = run(model={"name": "chain"}, exports=["nir"])
    assert [e["format"] for e in done.result["exports"]] == ["nir"]
    nodes = nir.read(tmp_path / "out" / "network.nir").nodes
    small = load_file(tmp_path / "out" / "pruned.safetensors")
    sizes = {n.weight.size for n in nodes.values() if hasattr(n, "weight")}
    assert sizes <= {tensor.numel() for tensor in small.values()} and len(sizes) == 2


# ---- the judgement -------------------------------------------------------------------------------


def measured(energy: float, drop: tuple[float, float, float] | None = None) -> Measurement:
    return Measurement(
        model=MODEL,
        weights_hash="",
        conditions=Conditions(
            data="digits",
            split="test",
            n_images=10,
            T=4,
            batch=1,
            precision="float32",
            device="cpu",
            transform="",
        ),
        accuracy=Interval(value=0.9, low=0.8, high=1),
        size=Size(params=1, bytes=4, macs=1),
        sops=1,
        macs_real=1,
        energy_pj=energy,
        firing={},
        drop=drop and Interval(value=drop[0], low=drop[1], high=drop[2]),
    )


@pytest.mark.parametrize(
    ("drop", "met", "certain"),
    [
        ((2.0, 1.0, 2.9), True, True),
        ((2.0, 1.0, 3.5), True, False),
        ((3.0, 1.0, 3.0), True, True),
        ((4.0, 2.0, 6.0), False, False),
        ((4.0, 3.5, 6.0), False, True),
    ],
)
def test_a_drop_is_judged_with_its_interval(
    drop: tuple[float, float, float], met: bool, certain: bool
) -> None:
    summary = shipped_summary(MODEL)
    assert summary is not None
    plan = plan_from_ratios(summary, {}, criterion="l2_group")
    pair = measured(1), measured(1, drop)
    (found,) = judge(Target(max_drop=0.03), summary, plan, pair, None)
    assert (found.met, found.certain, found.limit) == (met, certain, 3)


def test_savings_are_judged_by_resource() -> None:
    summary = shipped_summary(MODEL)
    assert summary is not None
    plan = plan_from_ratios(summary, {}, criterion="l2_group")
    savings = {"energy": 0.25, "latency": 0.2, "macs": 0.1}
    target = Target(saving=0.1, savings=savings)
    pair = measured(8), measured(6, (0, 0, 0))
    found = {t.target: t for t in judge(target, summary, plan, pair, 0.19)}
    assert {name: t.met for name, t in found.items()} == {
        "saving of memory": False,
        "saving of energy": True,
        "saving of latency": False,
        "saving of macs": False,
    }
    assert found["saving of energy"].reached == 0.25  # 1 - 6 / 8
    assert found["saving of memory"].reached == 0  # nothing is pruned
