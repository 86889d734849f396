"""Trainings and recoveries over a cluster: those of a local run, and lost nodes cost little."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from psvit_core.cluster import images
from psvit_core.cluster.actors import CellWorker
from psvit_core.cluster.images import for_training
from psvit_core.cluster.pool import Pool
from psvit_core.cluster.runtime import Connection
from psvit_core.cluster.settings import EngineSettings
from psvit_core.errors import ClusterError, DataError
from psvit_core.records import FinetuneReport, RecoverySettings
from psvit_core.storage.store import Store
from psvit_core.tasks import training_workers
from psvit_core.tasks.prune import prune_model
from psvit_core.tasks.trial_runs import TrainedTrials, TrainingInputs, run_trials
from psvit_core.tasks.trials import vary
from psvit_core.zoo.checkpoint import weights_hash
from tests.finetune.test_finetune import train_set
from tests.pareto.test_pareto import tiny_engine
from tests.pretend_ray import pretend
from tests.tasks.test_trials import BASE, Seen, diverging, inputs_of, session_of
from tests.tiny import random_plan

RAY = EngineSettings(name="ray", workers=2)
TRIALS = vary(dataclasses.replace(BASE, epochs=2), {"lr": (0.1, 1e-3), "seed": (0, 1)})


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Train here as a worker does: sums depend on the number of threads."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def timeless(reports: tuple[FinetuneReport, ...]) -> list[FinetuneReport]:
    return [
        dataclasses.replace(
            report, epochs=tuple(dataclasses.replace(r, seconds=0.0) for r in report.epochs)
        )
        for report in reports
    ]


def run_on(store: Store, engine: EngineSettings, seen: Seen | None = None) -> TrainedTrials:
    inputs, seen = inputs_of(), seen or Seen()
    session = session_of(store, inputs, engine)
    return run_trials(session, inputs, TRIALS, seen.callbacks)


def assert_equal(found: TrainedTrials, local: TrainedTrials) -> None:
    assert timeless(found.reports) == timeless(local.reports)
    assert weights_hash(found.best.model) == weights_hash(local.best.model)
    assert weights_hash(found.best.last) == weights_hash(local.best.last)


@pytest.mark.slow
def test_trials_are_those_of_a_local_run(cluster: Any, tmp_path: Path) -> None:
    local = run_on(Store(tmp_path / "local"), EngineSettings())
    nodes = sorted(cluster.worker_nodes, key=str)

    class Watching(Seen):
        def tick(self) -> None:
            if len(self.reports) == 1 and len(nodes) == 2:
                cluster.remove_node(nodes.pop())

    seen = Watching()
    assert_equal(run_on(Store(tmp_path / "ray"), RAY, seen), local)
    assert len(nodes) == 1


def test_lost_nodes_cost_what_was_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_workers, "_SEND_SECONDS", 0.0)
    ray = pretend(monkeypatch, lose_at=(20, 45))
    local, seen = run_on(Store(tmp_path / "local"), EngineSettings()), Seen()
    assert_equal(run_on(Store(tmp_path / "ray"), RAY, seen), local)
    assert len(ray.alive) == 1 and ray.n_put == 1  # model and images are sent once
    assert len(set(seen.curves)) == 4
    # Each step of an epoch that was lost ran twice at most; nothing was trained here.
    assert len({step[:2] for step in seen.steps}) >= 32 and len(seen.reports) == 8


def test_what_has_ended_needs_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray, store = pretend(monkeypatch), Store(tmp_path)
    found = run_on(store, EngineSettings())
    assert_equal(run_on(store, RAY), found)
    assert ray.n_put == 0


@pytest.mark.slow
def test_a_stopped_training_goes_on_here_or_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_workers, "_SEND_SECONDS", 0.0)
    pretend(monkeypatch)
    store = Store(tmp_path / "store")
    found = run_on(store, RAY, Seen(stop_after=12))
    assert len(found.reports) == 2 and any(r.stopped_early for r in found.reports)
    local = run_on(Store(tmp_path / "local"), EngineSettings())
    assert_equal(run_on(store, EngineSettings()), local)
    assert_equal(run_on(store, RAY), local)


def test_a_training_that_ends_its_workers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pretend(monkeypatch, n_nodes=9, lose_at=tuple(range(1, 9)))
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"NodeID": f"node {i}", "Alive": 1} for i in range(9)]
    )
    with pytest.raises(ClusterError, match="workers ended one after the other"):
        run_on(Store(tmp_path), RAY)


def test_errors_of_a_worker_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)

    def fails(*_: Any, **__: Any) -> None:
        raise DataError("image 7 cannot be read")

    monkeypatch.setattr(TrainingInputs, "finetune", fails)
    with pytest.raises(DataError, match="image 7"):
        run_on(Store(tmp_path), RAY)


def test_many_training_images_are_read_on_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    train = train_set("sdt_v1")
    sent = for_training(train)
    assert sent.load is not train.load and sent.ids == train.ids
    assert torch.equal(sent.load(3), train.load(3))
    monkeypatch.setattr(images, "MOST_BYTES", 1)
    assert for_training(train) is train


# ---- recoveries ----------------------------------------------------------------------------------


def check_recovery(tmp_path: Path) -> None:
    settings = RecoverySettings(method="lsq", n_images=8, seed=1)
    plan, found = None, []
    for engine in (EngineSettings(), RAY):
        session = tiny_engine(Store(tmp_path / engine.name))
        session.engine = engine
        plan = plan or random_plan(session.model, 1)
        small, report = prune_model(session, plan, settings, on_cluster=True)
        assert report is not None and small.provenance["recoveries"] == [report.to_dict()]
        found.append((weights_hash(small), dataclasses.replace(report, seconds={})))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_recovery_is_that_of_a_local_run(cluster: Any, tmp_path: Path) -> None:
    check_recovery(tmp_path)


@pytest.mark.parametrize("lose_at", [(), (1,)])
def test_a_recovery_whose_node_is_lost_is_done_again(
    lose_at: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pretend(monkeypatch, lose_at=lose_at)
    check_recovery(tmp_path)
    assert ray.n_results == 1 + len(lose_at)


def test_measurements_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pretend(monkeypatch)
    session = tiny_engine(Store(tmp_path))
    session.engine = RAY
    prune_model(session, random_plan(session.model, 1), RecoverySettings(method="bn", n_images=8))
    assert ray.n_put == 0


def test_a_recovery_within_another_job_on_the_cluster_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pretend(monkeypatch)
    session = tiny_engine(Store(tmp_path))
    session.engine = RAY
    plan, settings = random_plan(session.model, 1), RecoverySettings(method="bn", n_images=8)
    with closing(Pool(Connection(RAY), CellWorker, "cpu", None)):
        prune_model(session, plan, settings, on_cluster=True)
    assert ray.n_put == 1  # by the pool
    prune_model(session, plan, settings, on_cluster=True)
    assert ray.n_put == 2


def test_a_trial_that_diverges_on_a_node_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    found, warned = diverging(tmp_path, (1e30, 1e-3), RAY)
    assert [r.settings.lr for r in found.reports] == [1e-3] and len(warned) == 1
