"""The warm worker: ready before the first job, out of the way of jobs, light."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psvit_core.errors import DataError
from psvit_core.jobs import client, worker
from psvit_core.jobs.engine import Engine, Subject
from psvit_core.store import Store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def test_the_worker_is_told_what_to_get_ready(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def note(command: list[str], **options: Any) -> None:
        commands.append(command)

    monkeypatch.setattr("psvit_core.jobs.client.subprocess.Popen", note)
    client.ensure_worker(store)
    client.ensure_worker(store, warm=Subject(limit=20).to_dict())
    assert commands[0][-2:] == [str(store.folder), "cpu"]
    assert Subject.from_dict(json.loads(commands[1][-1])) == Subject(limit=20)


def test_jobs_come_before_getting_ready(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def warm_up(engine: Engine) -> Iterator[str]:
        done.append(f"{engine.subject.limit} loaded")
        job = client.Job(id="a", task="measure", title="", params={}, created=1.0)
        client.save(store, job)  # comes while the worker gets ready
        yield "loaded"
        done.append("compiled")
        yield "compiled"
        raise DataError("told in the log only")

    def run_job(self: worker.Worker, job: client.Job) -> None:
        done.append("job")
        store.delete(f"job/{job.id}")

    monkeypatch.setattr(worker, "warm_up", warm_up)
    monkeypatch.setattr(worker.Worker, "run_job", run_job)
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.5)
    worker.Worker(store, "cpu").work(Subject(limit=20))
    assert done == ["20 loaded", "job", "compiled"]


def test_its_way_imports_no_slow_package(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "from psvit_core.jobs.engine import Subject, warm_up\n"
        "from psvit_core.jobs.tasks import evaluate\n"
        "from psvit_core.jobs.worker import Worker\n"
        "from psvit_core.store import Store\n"
        "engine = Worker(Store(sys.argv[1]), 'cpu').engine(Subject(limit=20))\n"
        "told = list(warm_up(engine))\n"
        "evaluate(engine)\n"
        "print(json.dumps([told, sorted({'timm', 'torchvision'} & set(sys.modules))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    told, slow = json.loads(done.stdout.splitlines()[-1])
    assert told == ["sdt_v1_digits loaded", "20 images loaded", "native kernels",
                    "model described", "baseline on 20 images"]  # fmt: skip
    assert slow == []
