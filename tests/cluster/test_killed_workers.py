"""``kill -9`` of workers of a real Ray, at random moments: results are those of a local run."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from psvit_core.cluster.settings import EngineSettings
from psvit_core.storage.store import Store
from psvit_core.tasks.pareto import run_pareto
from tests.cluster import test_cluster, test_fronts, test_trainings
from tests.tiny import tiny_data, tiny_model

KILLS = 2  # of one job, more than 3 end the command
LOCAL, RAY = EngineSettings(), EngineSettings(name="ray", workers=2)


def workers(kind: str) -> list[psutil.Process]:
    """Return the processes of a kind of worker that belong to this test."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            named = f"{process.name()} {' '.join(process.cmdline())}"
            if f"ray::{kind}" in named and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextmanager
def killing(kind: str) -> Iterator[list[int]]:
    """Kill workers meanwhile, one after the other; yield those killed."""
    killed: list[int] = []
    seed = random.randrange(10**6)
    over, chance = threading.Event(), random.Random(seed)
    print(f"kills with seed {seed}")  # pytest shows it if the test fails

    def kill() -> None:
        while len(killed) < KILLS and not over.wait(0.02):
            if workers(kind) and over.wait(chance.uniform(0.0, 0.5)):
                return
            if running := workers(kind):
                process = chance.choice(running)
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Train here as a worker does."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.mark.slow
def test_workers_of_a_sweep(cluster: Any, tmp_path: Path) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 48)
    local = test_cluster.run_on(Store(tmp_path / "local"), model, data, engine=None)
    with killing("CellWorker") as killed:
        table = test_cluster.run_on(Store(tmp_path / "ray"), model, data, engine=RAY)
    assert table == local and killed


@pytest.mark.slow
def test_workers_of_a_front(cluster: Any, tmp_path: Path) -> None:
    def run(engine: EngineSettings) -> Any:
        session = test_fronts.session_of(Store(tmp_path / engine.name), engine)
        return run_pareto(session, test_fronts.SETTINGS)

    local = run(LOCAL)
    with killing("FrontWorker") as killed:
        assert run(RAY) == local
    assert killed


@pytest.mark.slow
def test_workers_of_trainings(cluster: Any, tmp_path: Path) -> None:
    local = test_trainings.run_on(Store(tmp_path / "local"), LOCAL)
    with killing("TrainingWorker") as killed:
        found = test_trainings.run_on(Store(tmp_path / "ray"), RAY)
    test_trainings.assert_equal(found, local)
    assert killed
