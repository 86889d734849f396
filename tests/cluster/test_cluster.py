"""Sweeps on a real local Ray of three nodes: equal to local ones, also if a node is lost."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from psvit_core.cluster.actors import CellWorker
from psvit_core.cluster.pool import Event
from psvit_core.cluster.runtime import Connection
from psvit_core.cluster.settings import EngineSettings, engine_of
from psvit_core.cluster.sweep import ClusterCells, on_cluster
from psvit_core.data import EvalSet
from psvit_core.errors import (
    CancelledError,
    ClusterError,
    DeviceError,
    MissingPackageError,
    StoreError,
    UnknownNameError,
)
from psvit_core.records import SensitivityTable
from psvit_core.runtime import Run
from psvit_core.sensitivity.recovered import SweepOptions, recovered
from psvit_core.sensitivity.spec import save_spec
from psvit_core.sensitivity.sweep import make_spec, run_spec
from psvit_core.sensitivity.work import CellWork
from psvit_core.storage.store import Store
from psvit_core.zoo.base import SpikingModel
from tests.pretend_ray import pretend
from tests.tiny import tiny_data, tiny_model

RATIOS = (0.25, 0.5)
RAY = EngineSettings(name="ray")


def run_on(
    store: Store,
    model: SpikingModel,
    data: EvalSet,
    *,
    engine: EngineSettings | None = RAY,
    run: Run | None = None,
    mode: str = "exact",
    calib: EvalSet | None = None,
    **options: Any,
) -> SensitivityTable:
    """Run a sweep with an engine, None for the local one."""
    run = run or Run(batch=2)
    spec = make_spec(model, data, ratios=RATIOS, run=run, mode=mode)
    if calib is not None:
        spec = recovered(spec, calib)
    save_spec(store, spec)
    measurer = on_cluster(engine, model) if engine else None
    chosen = SweepOptions(measurer=measurer, recovery_images=calib)
    return run_spec(spec, model, data, run=run, store=store, options=chosen, **options)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each (cell, image) got a result from a worker."""
    counted: Counter[tuple[str, int]] = Counter()
    add = CellWork.add_result

    def watched(self: CellWork, cell: Any, batch: Any, output: Any) -> None:
        counted.update((cell.key, int(i)) for i in batch[output.requested])
        add(self, cell, batch, output)

    monkeypatch.setattr(CellWork, "add_result", watched)
    return counted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdt_v1", "qkformer_cifar"])
def test_equal_to_a_local_sweep(name: str, cluster: Any, tmp_path: Path) -> None:
    model, data = tiny_model(name), tiny_data(name, 9)
    reports: list[tuple[int, int]] = []
    table = run_on(
        Store(tmp_path / "ray"),
        model,
        data,
        progress=lambda done, total, what: reports.append((done, total)),
    )
    assert table == run_on(Store(tmp_path / "local"), model, data, engine=None)
    assert reports == sorted(reports) and reports[-1][0] == reports[-1][1]


@pytest.mark.slow
def test_recovered_and_progressive_sweeps_are_equal(cluster: Any, tmp_path: Path) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 70)
    calib = replace(tiny_data("sdt_v1", 6, seed=1), split="calib")
    kinds: tuple[dict[str, Any], ...] = ({"mode": "progressive"}, {"calib": calib})
    for number, options in enumerate(kinds):
        stores = [Store(tmp_path / f"{where}{number}") for where in ("ray", "local")]
        run = Run(batch=16)
        ours = run_on(stores[0], model, data, run=run, **options)
        assert ours == run_on(stores[1], model, data, run=run, engine=None, **options)


@pytest.mark.slow
def test_a_lost_node_costs_only_its_cells(
    cluster: Any, tmp_path: Path, added: Counter[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 24)
    lost: list[Any] = []
    results = 0
    take = ClusterCells._take

    def watched(self: ClusterCells, event: Event[Any]) -> None:
        nonlocal results
        take(self, event)
        lost.extend([event.job] if event.is_lost else [])
        results += event.is_result
        # The first one may have returned all of its work: then the other one is lost, too.
        if event.is_result and not lost and results in (12, 36):
            busy = {self._pool._nodes[worker] for worker, _ in self._pool._running.values()}
            nodes = sorted(
                cluster.worker_nodes, key=lambda node: (node.node_id not in busy, str(node))
            )
            cluster.remove_node(nodes[0])

    monkeypatch.setattr(ClusterCells, "_take", watched)
    table = run_on(Store(tmp_path / "ray"), model, data)
    assert lost, "the node ended without work"
    assert set(added.values()) == {1}  # nothing that was finished was measured again
    assert table == run_on(Store(tmp_path / "local"), model, data, engine=None)


@pytest.mark.slow
def test_a_cancelled_sweep_goes_on_where_it_stopped(
    cluster: Any, tmp_path: Path, added: Counter[tuple[str, int]]
) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 8), Store(tmp_path / "ray")

    def stop_in_the_middle() -> None:
        if len(added) >= 20:
            raise CancelledError("stopped")

    with pytest.raises(CancelledError):
        run_on(store, model, data, tick=stop_in_the_middle)
    n_first = len(added)
    table = run_on(store, model, data)
    assert n_first < len(added) and set(added.values()) == {1}
    assert table == run_on(Store(tmp_path / "local"), model, data, engine=None)


@pytest.mark.slow
def test_another_version_on_a_node_is_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psvit_core.cluster.pool.ENGINE_VERSION", 0)
    with pytest.raises(ClusterError, match="Install the same version"):
        run_on(Store(tmp_path), tiny_model("sdt_v1"), tiny_data("sdt_v1", 4))


# ---- without processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdt_v1", "qkformer_cifar"])
@pytest.mark.parametrize("lose_at", [(), (5, 20)])
def test_pretended_workers_measure_the_same(
    name: str,
    lose_at: tuple[int, ...],
    tmp_path: Path,
    added: Counter[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pretend(monkeypatch, lose_at=lose_at)
    monkeypatch.setattr("psvit_core.cluster.sweep._BATCHES", 2)
    model, data = tiny_model(name), tiny_data(name, 7)
    table = run_on(Store(tmp_path / "ray"), model, data)
    assert len(ray.alive) == 3 - len(lose_at)
    n_blocks = 4 if model.batch_coupled else 2
    assert ray.n_put == 1 + n_blocks  # the model, and each block of images, once
    assert set(added.values()) == {1}
    assert table == run_on(Store(tmp_path / "local"), model, data, engine=None)


def test_a_pretended_sweep_is_recovered_adaptive_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pretend(monkeypatch)
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 70)
    calib = replace(tiny_data("sdt_v1", 6, seed=1), split="calib")
    kinds: tuple[dict[str, Any], ...] = ({"mode": "progressive"}, {"calib": calib})
    for number, options in enumerate(kinds):
        stores = [Store(tmp_path / f"{where}{number}") for where in ("ray", "local")]
        run = Run(batch=16)
        ours = run_on(stores[0], model, data, run=run, **options)
        assert ours == run_on(stores[1], model, data, run=run, engine=None, **options)
        n_results = ray.n_results
        assert run_on(stores[0], model, data, run=run, **options) == ours
        assert ray.n_results == n_results  # nothing is left to measure


def test_cells_that_end_every_worker_end_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pretend(monkeypatch, lose_at=tuple(range(10, 100)))
    monkeypatch.setattr(ray, "alive", Undying(ray.alive))
    store = Store(tmp_path)
    with pytest.raises(ClusterError, match="4 workers ended one after the other"):
        run_on(store, tiny_model("sdt_v1"), tiny_data("sdt_v1", 4))


def test_an_error_in_a_worker_is_raised_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)

    def fail(self: CellWorker, images: Any) -> Any:
        raise DeviceError("not enough memory")

    monkeypatch.setattr(CellWorker, "_placed", fail)
    with pytest.raises(DeviceError, match="not enough memory"):
        run_on(Store(tmp_path), tiny_model("sdt_v1"), tiny_data("sdt_v1", 4))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no kernel\nat line 3"), r"failed \(RuntimeError: no kernel\)"),
        (AttributeError(), r"failed \(AttributeError\)"),
    ],
)
def test_a_fault_in_a_worker_is_named_here(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)

    def fail(self: CellWorker, images: Any) -> Any:
        raise error

    monkeypatch.setattr(CellWorker, "_placed", fail)
    with pytest.raises(ClusterError, match=said):
        run_on(Store(tmp_path), tiny_model("sdt_v1"), tiny_data("sdt_v1", 4))


def test_errors_survive_the_way_to_another_process() -> None:
    error = UnknownNameError("policy", "unifrom", ("uniform", "psvit"))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnknownNameError and str(again) == str(error)
    full = StoreError("the disk is full")
    full.kind = "full"
    assert pickle.loads(pickle.dumps(full)).unwritable


class Undying(set[str]):
    """Nodes whose workers end, and that stay."""

    def discard(self, node: object) -> None:
        pass


def test_without_ray_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"psvit-explorer\[cluster\]"):
        Connection(RAY)


def test_the_environment_chooses_the_engine() -> None:
    assert engine_of({}) == EngineSettings()
    found = engine_of({"PSVIT_ENGINE": "ray", "PSVIT_RAY_ADDRESS": "head:6379"})
    assert found == EngineSettings(name="ray", address="head:6379") and found.is_ray
    numbers = engine_of({"PSVIT_RAY_GPUS": "0.5", "PSVIT_RAY_WORKERS": "3"})
    assert (numbers.gpus, numbers.workers) == (0.5, 3)
    with pytest.raises(UnknownNameError, match="Did you mean 'ray'"):
        engine_of({"PSVIT_ENGINE": "rays"})
    for name, text in (("GPUS", "half"), ("GPUS", "1.5"), ("GPUS", "-1"), ("WORKERS", "0")):
        with pytest.raises(ClusterError):
            engine_of({f"PSVIT_RAY_{name}": text})


class _Resources:
    """A ray that only knows its resources."""

    def __init__(self, **resources: float) -> None:
        self.resources = resources

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return self.resources


@pytest.mark.parametrize(
    ("device", "gpus", "workers", "expected"),
    [("cpu", 1.0, None, 12), ("cpu", 1.0, 5, 5), ("cuda", 0.25, None, 8), ("cuda", 2.0, None, 1)],
)
def test_workers_share_what_the_cluster_has(
    device: str,
    gpus: float,
    workers: int | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = _Resources(CPU=12.0, GPU=2.0)
    monkeypatch.setattr("psvit_core.cluster.runtime.load_ray", lambda: ray)
    connection = Connection(EngineSettings(name="ray", gpus=gpus, workers=workers))
    assert connection.n_workers(device) == expected
    ray.resources = {}
    with pytest.raises(ClusterError, match=r"no (1|0.25|2) GPU|no one CPU core"):
        connection.n_workers(device)


def test_the_app_passes_its_engine_on() -> None:
    from psvit_core.cli.app import app_environment

    for settings in (
        EngineSettings(name="ray", address="head:6379", gpus=0.5, workers=3),
        EngineSettings(name="ray"),
    ):
        assert engine_of(app_environment({"PSVIT_ENGINE": "local"}, None, settings)) == settings
    assert "PSVIT_ENGINE" not in app_environment({})


def test_options_override_the_environment() -> None:
    from psvit_core.cli.arguments import make_parser
    from psvit_core.cli.options import chosen_engine

    words = ["sweep", "sdt_v1_digits", "--out", "t.json", "--engine", "ray", "--ray-gpus", "0.5"]
    default = EngineSettings(address="head:6379")
    found = chosen_engine(make_parser().parse_args(words), default)
    assert found == EngineSettings(name="ray", address="head:6379", gpus=0.5)
    plain = make_parser().parse_args(
        ["pareto", "sdt_v1_digits", "--out", "a", "--ray-workers", "2"]
    )
    assert chosen_engine(plain, EngineSettings()) == EngineSettings(name="ray", workers=2)
    assert chosen_engine(make_parser().parse_args(["models"]), default) == default
