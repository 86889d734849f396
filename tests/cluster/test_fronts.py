"""Fronts over a cluster: the archive of a local run, and measurements that are not repeated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from psvit_core.cluster.settings import EngineSettings
from psvit_core.errors import ClusterError
from psvit_core.records import ParetoSettings, Subject
from psvit_core.storage.store import Store
from psvit_core.tasks import front_workers, pareto
from psvit_core.tasks.pareto import run_pareto
from psvit_core.tasks.session import Session
from tests.pareto.test_pareto import tiny_engine

RAY = EngineSettings(name="ray", workers=2)
SETTINGS = ParetoSettings(
    policies=("uniform", "psvit"),
    savings=(0.2, 0.4, 0.9999),
    ratios=(0.3, 0.6),
    recoveries=("none", "bn"),
    calib_images=8,
)


def session_of(store: Store, engine: EngineSettings) -> Session:
    session = tiny_engine(store)
    session.engine = engine
    return session


@pytest.mark.slow
def test_a_front_is_that_of_a_local_run(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = run_pareto(session_of(Store(tmp_path / "local"), EngineSettings()), SETTINGS)
    nodes, put = sorted(cluster.worker_nodes, key=str), Store.put
    rows: list[str] = []

    def watched(self: Store, key: str, value: Any, **options: Any) -> None:
        if key.startswith("measurement/"):
            rows.append(key)
            if len(rows) == 2:
                cluster.remove_node(nodes.pop())
        put(self, key, value, **options)

    monkeypatch.setattr(Store, "put", watched)
    steps: list[tuple[int, int]] = []
    archive = run_pareto(
        session_of(Store(tmp_path / "ray"), RAY),
        SETTINGS,
        progress=lambda done, n, what: steps.append((done, n)),
    )
    assert archive == local
    assert len(rows) >= 2 and steps == sorted(steps) and steps[-1] == (16 + 6, 16 + 6)


def test_what_a_worker_returns_leaves_nothing_to_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Ray: a worker measures each plan, and this process only reads."""
    session = session_of(Store(tmp_path / "store"), EngineSettings())
    table = pareto._run_sweep(session, SETTINGS, (1, 1), lambda *_: None, lambda: None)
    share = front_workers._share(session, SETTINGS, table, pareto.measure_cell)
    worker = front_workers.FrontWorker()
    monkeypatch.setattr(front_workers, "taken", lambda version, shared: shared[0])
    monkeypatch.setattr(front_workers, "current_node", lambda: "here")
    worker.load(0, [share])
    for cell in SETTINGS.cells():
        for rows in worker.measure(cell):
            for key, value in rows.items():
                session.store.put(key, value)
    ticks: list[int] = []
    archive = run_pareto(session, SETTINGS, table, tick=lambda: ticks.append(1))
    assert ticks == [] and archive.points and len(archive.unreached) == 2
    assert archive == run_pareto(session_of(Store(tmp_path / "other"), EngineSettings()), SETTINGS)


def test_models_with_code_of_their_own_stay_here(tmp_path: Path) -> None:
    session = session_of(Store(tmp_path), RAY)
    session.subject = dataclasses.replace(Subject(), plugin="mine.py")
    with pytest.raises(ClusterError, match=r"the code of mine\.py"):
        run_pareto(session, SETTINGS)
