"""Warming up a worker: before the first job, never delaying one, without slow imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psvit_core.errors import DataError
from psvit_core.jobs import client, servers, worker, workers
from psvit_core.jobs.warming import request_warm_up, take_warm_up
from psvit_core.kernels import lif
from psvit_core.records import Subject
from psvit_core.recover import teacher
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session, warm_up
from tests.patience import JOB

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def test_the_worker_gets_the_subject_to_warm_up_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def note(command: list[str], **options: Any) -> None:
        commands.append(command)

    monkeypatch.setattr("psvit_core.jobs.workers.subprocess.Popen", note)
    workers.ensure_worker(store)
    workers.ensure_worker(store, warm=Subject(limit=20))
    assert commands[0][-2:] == [str(store.folder), "cpu"]
    assert Subject.from_dict(json.loads(commands[1][-1])) == Subject(limit=20)


def test_jobs_run_before_warming_up_continues(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def warm_up(session: Session) -> Iterator[str]:
        done.append(f"{session.subject.limit} loaded")
        job = client.Job(id="a", task="measure", title="", params={}, created=1.0)
        client.save(store, job)  # arrives while the worker warms up
        yield "loaded"
        done.append("compiled")
        yield "compiled"
        raise DataError("for the log only")

    def run_job(self: worker.Worker, job: client.Job) -> None:
        done.append("job")
        store.delete(f"job/{job.id}")

    monkeypatch.setattr(worker, "warm_up", warm_up)
    monkeypatch.setattr(worker.Worker, "run_job", run_job)
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.5)
    worker.Worker(store, "cpu").work(Subject(limit=20))
    assert done == ["20 loaded", "job", "compiled"]


def test_the_model_in_use_is_warmed_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[tuple[int | None, str]] = []

    def warm_up(session: Session) -> Iterator[str]:
        warmed.append((session.subject.limit, session.subject.recovery))
        if len(warmed) == 1:  # meanwhile the user opens another model, then another one
            request_warm_up(store, Subject(limit=30))
            request_warm_up(store, Subject(limit=40))
        yield "loaded"

    monkeypatch.setattr(worker, "warm_up", warm_up)
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.8)
    worker.Worker(store, "cpu").work(Subject(limit=20))
    assert warmed == [(20, "none"), (40, "none")]
    assert take_warm_up(store, "cpu") is None


def test_recoveries_share_what_is_loaded(store: Store) -> None:
    one = worker.Worker(store, "cpu")
    plain = one.session(Subject(limit=20))
    recovered = one.session(Subject(limit=20, recovery="auto"))
    assert recovered.model is plain.model and recovered.data is plain.data
    assert recovered.recovery.method == "auto" and plain.recovery.method == "none"
    assert one.session(Subject(limit=20)) is plain  # a running job keeps its own recovery


def test_warming_up_prepares_the_recovery(store: Store) -> None:
    session = worker.Worker(store, "cpu").session(Subject(limit=20, recovery="auto"))
    teacher._teachers.clear()
    steps = list(warm_up(session))
    assert steps[-2:] == ["baseline on 20 images", "recovery prepared"]
    [prepared] = teacher._teachers.values()
    assert prepared._values is not None
    plain = session.without_recovery()
    assert "recovery prepared" not in list(warm_up(plain))


@pytest.mark.slow
def test_warming_up_imports_no_slow_package(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "from psvit_core.records import Subject\n"
        "from psvit_core.tasks.session import warm_up\n"
        "from psvit_core.tasks.evaluate import evaluate\n"
        "from psvit_core.jobs.worker import Worker\n"
        "from psvit_core.storage.store import Store\n"
        "session = Worker(Store(sys.argv[1]), 'cpu').session(Subject(limit=20))\n"
        "steps = list(warm_up(session))\n"
        "evaluate(session)\n"
        "print(json.dumps([steps, sorted({'timm', 'torchvision'} & set(sys.modules))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=JOB,
        check=True,
    )
    steps, slow = json.loads(done.stdout.splitlines()[-1])
    assert steps == [
        "sdt_v1_digits loaded",
        "20 images loaded",
        f"{lif.kernels()} kernels",
        "model described",
        "statistics loaded",
        "forward pass recorded",
        "baseline on 20 images",
    ]
    assert slow == []


# ---- the end of the app --------------------------------------------------------------------------


def serve(store: Store) -> subprocess.Popen[str]:
    """Start a process that registers as a server of the app, and wait until it has."""
    code = (
        "import sys\nfrom psvit_core.jobs import servers\n"
        "from psvit_core.storage.store import Store\n"
        "servers.register_server(Store(sys.argv[1]))\nprint('registered', flush=True)\ninput()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store.folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "registered\n"
    return process


def test_an_idle_worker_ends_after_the_app(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_SERVER_SECONDS", 0.0)
    server = serve(store)
    assert servers.server_lives(store)
    looks: list[bool] = []
    lives = servers.server_lives

    def look(store: Store) -> bool:
        if len(looks) == 2:  # it was seen alive; now it is killed, like in a crash
            server.kill()
            server.wait()
        looks.append(lives(store))
        return looks[-1]

    monkeypatch.setattr(servers, "server_lives", look)
    worker.Worker(store, "cpu").work()  # would last ``IDLE_SECONDS``
    assert looks == [True, True, False]


def test_a_worker_of_a_script_does_not_wait_for_an_app(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(store)
    server.kill()
    server.wait()
    assert not servers.server_lives(store)
    owner = worker.Worker(store, "cpu")
    monkeypatch.setattr(worker, "_SERVER_SECONDS", 0.0)
    assert not owner._left_alone() and not owner._left_alone()
    servers.register_server(store)  # and forgets the one that was killed
    assert len(list(store.keys("server/"))) == 1
    assert not owner._left_alone()
    servers.unregister_server(store)
    assert owner._left_alone()
