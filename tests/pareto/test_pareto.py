"""Pareto archives: fronts compared with brute force, the store, runs and the command line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psvit_core.cli import main
from psvit_core.data import EvalSet
from psvit_core.errors import InvalidPlanError, InvalidRatioError, TargetError, UnknownNameError
from psvit_core.evaluate import conditions_of, measure, predict
from psvit_core.kernels import lif
from psvit_core.metrics import profile as profiling
from psvit_core.pareto import (
    ParetoArchive,
    ParetoPoint,
    PlanOrigin,
    add_point,
    empty_archive,
    find_archives,
    read_archive,
)
from psvit_core.pareto.stored import HEAD_PREFIX
from psvit_core.plan.size import memory_saving
from psvit_core.records import (
    AXES,
    Conditions,
    Interval,
    Machine,
    Measurement,
    ParetoSettings,
    PlanSettings,
    Profile,
    PrunePlan,
    Quartiles,
    Size,
    Subject,
    SweepSettings,
)
from psvit_core.runtime import Run
from psvit_core.sensitivity.spec import load_spec, read_table
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.pareto import predicted_plans, run_pareto, session_archive
from psvit_core.tasks.plan import check_table, run_plan
from psvit_core.tasks.prune import prune_model
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.tasks.unpruned import profiled_measurement_key
from psvit_core.workspace import Workspace
from psvit_core.zoo.base import SpikingModel
from tests.made import CONDITIONS
from tests.tiny import tiny_data, tiny_model

MACHINE = Machine(device="cpu", processor="p", threads=1, torch="2", kernels="plain")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lif, "use_compiled", lambda: False)  # compiling takes seconds
    monkeypatch.setattr(profiling, "MIN_SECONDS", 0.0)


def measurement(number: int, accuracy: float, size: int, half: float = 0.0) -> Measurement:
    """Return a measurement of a plan that keeps unit ``number`` of a group."""
    return Measurement(
        model="m",
        weights_hash="ab",
        conditions=CONDITIONS,
        accuracy=Interval(value=accuracy, low=accuracy - half, high=accuracy + half),
        size=Size(params=size, bytes=size, macs=100 - size),
        sops=2.0 * size,
        macs_real=0.0,
        energy_pj=3.0 * size,
        firing={},
        drop=Interval(value=1.0, low=0.0, high=2.0),
        plan=PrunePlan(model="m", weights_hash="ab", criterion="l2", kept={"g": (number,)}),
    )


def profiled(m: Measurement, milliseconds: float, peak: int = 1) -> Measurement:
    times = {"1": Quartiles(median=milliseconds, low=0.0, high=9.0, n_runs=5)}
    found = Profile(
        state_bytes=7, peak_activation_bytes={"1": peak}, latency_ms=times, machine=MACHINE
    )
    return dataclasses.replace(m, profile=found)


def archive_of(*measured: Measurement) -> ParetoArchive:
    points = tuple(ParetoPoint(measurement=m, made=(PlanOrigin(policy="p"),)) for m in measured)
    return dataclasses.replace(empty_archive("m", "ab", CONDITIONS), points=points)


Cells = list[tuple[int, int]]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), max_size=9))
def test_fronts_equal_brute_force(cells: Cells) -> None:
    measured = [measurement(i, a / 10, size) for i, (a, size) in enumerate(cells)]
    archive = archive_of(*measured)
    for axis in ("bytes", "macs", "energy", "sops"):

        def dominated(p: ParetoPoint, axis: str = axis) -> bool:
            value, accuracy = float(p.value(axis) or 0), p.measurement.accuracy.value
            others = [
                (float(q.value(axis) or 0), q.measurement.accuracy.value) for q in archive.points
            ]
            return any(
                v <= value and a >= accuracy and (v, a) != (value, accuracy) for v, a in others
            )

        front = archive.front(axis)
        assert {p.point.point_id for p in front} == {
            p.point_id for p in archive.points if not dominated(p)
        }
        values = [p.value for p in front]
        assert values == sorted(values)


def test_overlapping_neighbours_are_marked() -> None:
    archive = archive_of(
        measurement(0, 0.50, 1, half=0.02),
        measurement(1, 0.60, 2, half=0.03),  # up to 0.63
        measurement(2, 0.65, 3, half=0.03),  # from 0.62
        measurement(3, 0.90, 4, half=0.02),
        measurement(4, 0.61, 4, half=0.30),  # not on the front: marks no other point
    )
    assert [p.overlaps for p in archive.front()] == [False, True, True, False]
    assert [p.overlaps for p in archive_of(measurement(0, 0.5, 1)).front()] == [False]


def test_knee_is_farthest_from_the_chord() -> None:
    points = [(0.2, 0), (0.8, 2), (0.85, 5), (0.9, 10)]
    archive = archive_of(*(measurement(i, a, size) for i, (a, size) in enumerate(points)))
    knee = archive.knee()
    assert knee is not None
    # Heights over the chord, scaled: 0.6/0.7 - 0.2 = 0.657 and 0.65/0.7 - 0.5 = 0.429.
    assert knee.value == 2
    assert archive_of(measurement(0, 0.2, 1), measurement(1, 0.3, 2)).knee() is None
    line = archive_of(*(measurement(i, 0.1 * i, i) for i in range(1, 5)))
    assert line.knee() is None  # a straight front has no knee
    assert archive_of().knee() is None


def test_profiled_axes_ignore_other_points() -> None:
    slow, fast = (
        profiled(measurement(0, 0.9, 9), 5.0, 10),
        profiled(measurement(1, 0.8, 8), 2.0, 30),
    )
    archive = archive_of(slow, fast, measurement(2, 1.0, 1))
    assert [p.value for p in archive.front("latency")] == [2.0, 5.0]
    assert [p.value for p in archive.front("peak")] == [10]  # faster but needs more memory
    assert len(archive.front()) == 1
    with pytest.raises(UnknownNameError, match="bytes"):
        archive.front("size")
    assert all(archive.front(axis) for axis in AXES)


def test_round_trip_and_csv(tmp_path: Path) -> None:
    archive = archive_of(profiled(measurement(0, 0.9, 9), 5.0), measurement(1, 0.5, 8))
    assert ParetoArchive.load(archive.save(tmp_path / "a.json")) == archive
    rows = list(csv.DictReader(io.StringIO(archive.to_csv())))
    assert [row["bytes"] for row in rows] == ["8", "9"]
    assert [row["latency_ms"] for row in rows] == ["", "5.0"]
    assert [row["on_front_of_bytes"] for row in rows] == ["True", "True"]
    assert archive.save_csv(tmp_path / "a.csv").read_text() == archive.to_csv()


def test_equal_plans_are_one_point_with_all_origins(tmp_path: Path) -> None:
    store, head = Store(tmp_path), empty_archive("m", "ab", CONDITIONS)
    one = measurement(0, 0.5, 3)
    add_point(store, one, PlanOrigin(policy="psvit", tried=True))
    add_point(store, one, PlanOrigin(policy="uniform", memory_saving=0.3))
    add_point(store, profiled(one, 4.0), PlanOrigin(policy="uniform", memory_saving=0.3))
    add_point(
        store, one, PlanOrigin(policy="uniform", memory_saving=0.3)
    )  # again, without a profile
    add_point(store, one, PlanOrigin(policy="uniform", recovery="auto (none)"))
    add_point(store, one, PlanOrigin(policy="uniform", recovery="bn", weights="cd"))
    add_point(
        store, one, PlanOrigin(policy="uniform", finetuning="1 epoch", epochs=1.0, weights="ef")
    )
    found = read_archive(store, head)
    assert len(found.points) == 3
    assert [p.made[0].weights for p in found.plain().points] == [""]
    both = next(p for p in found.points if len(p.made) == 3)
    assert {(w.policy, w.tried) for w in both.made} == {("uniform", False), ("psvit", True)}
    assert both.value("latency") == 4.0
    assert [h.key for h in find_archives(store, "ab")] == [head.key]
    assert find_archives(store, "cd") == []


def test_chosen_excludes_candidates() -> None:
    ways = (PlanOrigin(policy="p"), PlanOrigin(policy="p", tried=True))
    made = [((ways[0],), 0.1), (ways, 0.2), ((ways[1],), 0.9), ((ways[1],), 0.3)]
    points = tuple(
        ParetoPoint(measurement=measurement(i, accuracy, 5), made=how)
        for i, (how, accuracy) in enumerate(made)
    )
    archive = dataclasses.replace(archive_of(), points=points)
    assert archive.chosen().points == points[:3]  # the third is on the front


@pytest.mark.parametrize(
    "change",
    [
        {"split": "test"},
        {"n_images": 50},
        {"data": "other"},
        {"T": 2},
        {"precision": "float64"},
        {"transform": "another"},
        {"images": "of another file"},
    ],
)
def test_other_conditions_have_their_own_archive(tmp_path: Path, change: dict[str, Any]) -> None:
    store, other = Store(tmp_path), dataclasses.replace(CONDITIONS, **change)
    add_point(store, measurement(0, 0.5, 3), PlanOrigin())
    add_point(store, dataclasses.replace(measurement(0, 0.6, 3), conditions=other), PlanOrigin())
    for conditions, accuracy in ((CONDITIONS, 0.5), (other, 0.6)):
        [point] = read_archive(store, empty_archive("m", "ab", conditions)).points
        assert point.measurement.accuracy.value == accuracy
    assert len(find_archives(store, "ab")) == 2


def test_conditions_identify_the_images() -> None:
    model, data, run = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4), Run()
    turned, others = data.take([3, 1, 2, 0]), tiny_data("sdt_v1", 4, seed=1)
    images = conditions_of(model, data, run).images
    assert images == conditions_of(model, turned, run).images
    assert images != conditions_of(model, others, run).images
    coupled = tiny_model("qkformer_cifar")  # the order decides the batches
    assert conditions_of(coupled, data, run) != conditions_of(coupled, turned, run)


def test_newest_of_similar_archives_is_first(tmp_path: Path) -> None:
    """An image file was replaced by another of the same length."""
    store = Store(tmp_path)
    for images in ("a", "c", "b"):
        conditions = dataclasses.replace(CONDITIONS, images=images)
        add_point(
            store, dataclasses.replace(measurement(0, 0.5, 3), conditions=conditions), PlanOrigin()
        )
    assert [head.images for head in find_archives(store, "ab")] == ["b", "c", "a"]


def test_batch_size_matters_only_for_coupled_models() -> None:
    other = dataclasses.replace(CONDITIONS, batch=20)
    assert empty_archive("m", "ab", CONDITIONS).key == empty_archive("m", "ab", other).key
    keys = {empty_archive("m", "ab", c, batch_coupled=True).key for c in (CONDITIONS, other)}
    assert len(keys) == 2


def test_damaged_entries_are_skipped_and_named(tmp_path: Path) -> None:
    store, head = Store(tmp_path), empty_archive("m", "ab", CONDITIONS)
    add_point(store, measurement(0, 0.5, 3), PlanOrigin())
    store.put(f"{head.key}/broken", {"measurement": {}, "made": []})
    store.put(
        f"{head.key}/planless",
        ParetoPoint(
            measurement=dataclasses.replace(measurement(1, 0.5, 3), plan=None), made=(PlanOrigin(),)
        ).to_dict(),
    )
    store.put(f"{HEAD_PREFIX}broken", [1])
    warnings: list[str] = []
    assert len(read_archive(store, head, warnings.append).points) == 1
    assert len(warnings) == 2
    assert "broken" in warnings[0]
    assert "delete the entry" in warnings[0]
    assert len(find_archives(store, "ab", warnings.append)) == 1
    assert "Delete it" in warnings[2]


def test_settings_are_checked() -> None:
    for wrong, error in (
        ({"policies": ("best",)}, UnknownNameError),
        ({"scopes": ("outer",)}, UnknownNameError),
        ({"recoveries": ("cn",)}, UnknownNameError),
        ({"savings": (1.0,)}, InvalidRatioError),
        ({"savings": ()}, InvalidRatioError),
        ({"max_drops": (-0.1,)}, InvalidRatioError),
    ):
        with pytest.raises(error):
            ParetoSettings(**wrong)
    settings = ParetoSettings(savings=(0.2,), max_drops=(0.03,), scopes=("all", "inner"))
    assert len(list(settings.cells())) == 8


def test_origins_as_text() -> None:
    way = PlanOrigin(saving=0.3, resource="latency", locked={"a": 0.5}, bounds={"b": (0.0, 0.25)})
    assert (way.target, way.limits) == ("latency saving 0.3", "a=0.5 b=0:0.25")
    assert PlanOrigin(max_drop=0.03, resource="macs").target == "largest drop 0.03, most macs saved"
    assert PlanOrigin.from_dict(json.loads(json.dumps(way.to_dict()))) == way
    known = {"policy": "psvit", "memory_saving": 0.2, "recovery": "none", "finetuning": ""}
    assert PlanOrigin.from_dict(known).resource == "memory"  # stored by an older version


@dataclasses.dataclass
class TinyEngine(Session):
    """A session with synthetic calibration images."""

    def calib(self, n_images: int, seed: int) -> EvalSet:
        assert self.data.spec == "made"
        return dataclasses.replace(tiny_data("sdt_v1", n_images, seed + 1), split="calib")


def tiny_engine(store: Store, split: str = "val") -> Session:
    """Return a session of a tiny model with synthetic images."""
    data = dataclasses.replace(tiny_data("sdt_v1", 6), split=split)
    model = tiny_model("sdt_v1").eval()
    model.name = "sdt_v1_digits"  # provides the model card
    return TinyEngine(Subject(batch=3), store, _model=model, _data=data)


def test_recoveries_are_measured_and_stored(tmp_path: Path) -> None:
    session = tiny_engine(Store(tmp_path))
    settings = ParetoSettings(
        policies=("uniform",),
        savings=(0.4,),
        ratios=(0.5,),
        recoveries=("none", "bn", "lsq", "auto"),
        calib_images=8,
        seed=2,
        profile=True,
    )
    archive = run_pareto(session, settings)
    plain = next(p for p in archive.points if p.plain)
    assert plain.made[0].recovery == "none" and archive.plain().points == (plain,)
    by_recovery = {way.recovery: p for p in archive.points for way in p.made}
    assert {"bn, seed 2", "lsq, seed 2"} < set(by_recovery)
    whole = Measurement.from_dict(
        session.store.get(profiled_measurement_key(archive))
    )  # profiled in the same run
    assert whole.plan is None and whole.accuracy == plain.measurement.baseline_accuracy
    assert whole.profile is not None and plain.measurement.profile is not None
    assert whole.profile.machine == plain.measurement.profile.machine
    assert whole.profile.latency_ms["1"].median > 0
    assert any(way.startswith("auto (") for way in by_recovery)
    for name, recovered in by_recovery.items():
        assert recovered.plan.kept == plain.plan.kept
        assert recovered.measurement.size == plain.measurement.size
        assert recovered.value("latency") == plain.value("latency")  # the same shapes
        assert recovered.made[0].memory_saving == 0.4
        if name in ("bn, seed 2", "lsq, seed 2"):
            assert recovered.measurement.kl != plain.measurement.kl
    small, _ = prune_model(session, plain.plan, settings.recovery_settings()[0])
    logits = predict(small, session.data, session.run).logits
    right = float((logits.argmax(axis=1) == np.array(session.data.labels)).mean())
    assert by_recovery["bn, seed 2"].measurement.accuracy.value == right

    ticks: list[int] = []
    again = tiny_engine(Store(tmp_path))
    assert run_pareto(again, settings, tick=lambda: ticks.append(1)) == archive
    assert ticks == []  # no recovery was run twice


@pytest.mark.parametrize("policy", ["uniform", "optimal"])
def test_latency_is_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    timed: list[list[float]] = []

    def milliseconds(models: Sequence[SpikingModel], *_: object, **__: object) -> list[float]:
        timed.append([1000.0 + sum(p.numel() for p in m.parameters()) for m in models])
        return timed[-1]

    monkeypatch.setattr(profiling, "latencies_in_turns", milliseconds)
    session = tiny_engine(Store(tmp_path))
    table = run_sweep(session, SweepSettings(ratios=(0.3, 0.6), criterion="l2"))
    settings = PlanSettings(policy=policy, saving=0.2, resource="latency", budget_evaluations=2)
    plan, measured = run_plan(session, table, settings)
    assert measured is not None and "latency measured" in plan.note
    assert len(timed) < 20
    mine, whole = milliseconds((apply_plan(session.model, plan), session.model))
    assert mine <= 0.8 * whole
    made = [way for p in session_archive(session).points for way in p.made if not way.tried]
    assert [way.target for way in made] == ["latency saving 0.2"]
    with pytest.raises(TargetError, match="Give MODEL and --data"):
        run_plan(None, table, settings)


def test_a_run_fills_the_archive_and_resumes(tmp_path: Path) -> None:
    session = tiny_engine(Store(tmp_path))
    settings = ParetoSettings(
        policies=("uniform", "psvit"), savings=(0.2, 0.4, 0.9999), ratios=(0.3, 0.6)
    )
    steps: list[tuple[int, int]] = []
    archive = run_pareto(session, settings, progress=lambda d, n, what: steps.append((d, n)))
    chosen = {(w.policy, w.memory_saving) for p in archive.points for w in p.made if not w.tried}
    assert chosen == {(p, s) for p in ("uniform", "psvit") for s in (0.2, 0.4)}
    assert {(u.made.policy, u.made.memory_saving) for u in archive.unreached} == {
        ("uniform", 0.9999),
        ("psvit", 0.9999),
    }
    assert all("the maximum is" in u.reason for u in archive.unreached)
    for point in archive.points:
        for way in point.made:
            if not way.tried:
                assert point.measurement.memory_saving >= (way.memory_saving or 0) - 1e-9
    assert steps[-1] == (16 + 6, 16 + 6)
    assert [d for d, _ in steps] == sorted(d for d, _ in steps)
    alone = measure(session.model, session.data, archive.points[0].plan, run=session.run)
    assert alone == archive.points[0].measurement

    again = tiny_engine(Store(tmp_path))
    ticks: list[int] = []
    assert run_pareto(again, settings, tick=lambda: ticks.append(1)) == archive
    assert ticks == []  # nothing was run twice


def test_sweep_under_other_conditions_is_rejected(tmp_path: Path) -> None:
    store = Store(tmp_path)
    table = run_sweep(tiny_engine(store), SweepSettings(ratios=(0.5,), criterion="l2"))
    settings = PlanSettings(policy="uniform", memory_saving=0.2)
    here = table.conditions.to_dict()
    others = {
        "split": "train",
        "data": "folder:b",
        "precision": "float64",
        "transform": "x",
        "T": 7,
    }
    for name, value in others.items():
        conditions = Conditions.from_dict({**here, name: value})
        session, other = tiny_engine(store), dataclasses.replace(table, conditions=conditions)
        message = f"{name} {value}, here {here[name]} "
        with pytest.raises(InvalidPlanError, match=message):
            run_plan(session, other, settings)
        with pytest.raises(InvalidPlanError, match=message):
            run_pareto(session, ParetoSettings(policies=("uniform",), savings=(0.3,)), other)
    same = dataclasses.replace(table.conditions, batch=99, device="cuda", n_images=3)
    _, measured = run_plan(
        tiny_engine(store), dataclasses.replace(table, conditions=same), settings
    )
    assert measured is not None and measured.memory_saving >= 0.2
    session = tiny_engine(store)
    session._data = dataclasses.replace(session.data, spec=f"npz:{tmp_path}/b.npz")
    spelt = dataclasses.replace(table.conditions, data=f"npz:{tmp_path}/a/../b.npz")
    check_table(dataclasses.replace(table, conditions=spelt), session)


def test_without_measured_planning_only_results_are_measured(tmp_path: Path) -> None:
    session = tiny_engine(Store(tmp_path))
    settings = ParetoSettings(
        policies=("psvit",), savings=(0.2, 0.4), ratios=(0.3, 0.6), measured_planning=False
    )
    archive = run_pareto(session, settings)
    ways = [way for point in archive.points for way in point.made]
    assert {way.memory_saving for way in ways} == {0.2, 0.4}
    assert not any(way.tried for way in ways)

    spec = load_spec(session.store, next(session.store.keys("sweep/")))
    table = read_table(session.store, spec)
    assert table is not None
    plans = predicted_plans(session.store, spec, table)
    savings = [memory_saving(table.summary, plan) for plan in plans]
    assert savings and savings == sorted(savings)
    assert predicted_plans(session.store, spec, table) == plans
    assert len(list(session.store.keys("predicted/"))) == 1


def test_test_split_has_its_own_archive(tmp_path: Path) -> None:
    store = Store(tmp_path)
    session, judge = tiny_engine(store), tiny_engine(store, "test")
    archive = run_pareto(session, ParetoSettings(policies=("uniform",), savings=(0.3,)))
    [point] = archive.points
    evaluate(judge, point.plan)
    splits = [head.split for head in find_archives(store, point.plan.weights_hash)]
    assert sorted(splits) == ["test", "val"]
    with pytest.raises(Exception, match="never use the test split"):
        run_pareto(judge, ParetoSettings())


@pytest.mark.slow
def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    out, table = tmp_path / "pareto.json", tmp_path / "pareto.csv"
    command = [
        "pareto",
        "e_spikeformer_digits",
        "--limit",
        "10",
        "--policies",
        "uniform",
        "--savings",
        "0.2,0.5,0.999",
        "--scope",
        "all,inner",
        "--ratios",
        "0.5",
        "--profile",
        "--recover",
        "none",
        "--out",
        str(out),
        "--csv",
        str(table),
    ]
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr().out
    archive = ParetoArchive.load(out)
    assert archive.to_dict() == json.loads(printed)
    assert len(archive.points) >= 3
    assert archive.unreached
    assert all(p.value("latency") for p in archive.points)
    assert table.read_text() == archive.to_csv()
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "on the front" in text
    assert "not reached" in text
    for wrong, message in (
        (["--policies", "best"], "Unknown policy 'best'"),
        (["--savings", "2"], "fraction in (0, 1)"),
        (["--recover", "magic"], "Unknown recovery 'magic'"),
        (["--split", "test"], "never use the test split"),
        (["--csv", str(tmp_path)], "it is a folder"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err

    store = Store(tmp_path / "cache")
    workspace = Workspace(Subject(model="e_spikeformer_digits", limit=10), store)
    found = workspace.archive()
    assert found is not None
    assert found.points == archive.points
    assert workspace.archive("test") is None
    everything = Workspace(Subject(model="e_spikeformer_digits"), store).archive()
    assert everything is not None
    assert everything.n_images == 10
    assert Workspace(Subject(model="e_spikeformer_digits", limit=20), store).archive() is None
