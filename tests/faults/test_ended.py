"""After a kill: the reason is on the screen soon, no process or file stays behind."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import streamlit as st
from starlette.requests import Request
from streamlit.testing.v1 import AppTest

from psvit_core.durable import remove_leftovers, temporary_folder
from psvit_core.jobs import client, servers, worker, workers
from psvit_core.jobs.run import JobRun
from psvit_core.records import FinetuneSettings
from psvit_core.records.jobs import FinetuneRequest, FinetuneResult, SummaryResult
from psvit_core.storage.leftovers import tidy
from psvit_core.storage.processes import is_same_process
from psvit_core.storage.store import Store
from tests.made import make_job
from tests.patience import PATIENCE
from ui.panels import live

ROOT = Path(__file__).resolve().parents[2]
SOON = 5.0  # seconds within which the screen tells
NOBODY: dict[str, Any] = {"pid": 2**22 - 1, "pid_started": 1.0}  # no system has such a process


# ---- the reason


def test_an_interrupted_job_says_why(tmp_path: Path) -> None:
    store = Store(tmp_path)
    client.save(store, make_job(state="running", **NOBODY))
    [listed] = client.list_jobs(store)
    for job in (listed, client.find_job(store, "a")):
        assert job.state == "interrupted"
        assert "Its worker process ended: it was killed" in job.error
    assert client.cancel(store, "a").error == ""


def test_the_page_is_told_at_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser's request waits for news; the first look after the kill is news."""
    store = Store(tmp_path)
    monkeypatch.setattr(live, "open_store", lambda: store)
    own = {"pid": os.getpid(), "pid_started": workers.process_started(os.getpid())}
    job = client.save(store, make_job(state="running", **own))
    looks: list[str] = []

    async def sleep(seconds: float) -> None:
        looks.append("sleep")
        assert seconds < SOON
        client.save(store, dataclasses.replace(job, **NOBODY))  # killed meanwhile

    async def connected(self: Request) -> bool:
        return False

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(Request, "is_disconnected", connected)
    stamp = live.progress(store, job)["stamp"]
    scope = {"type": "http", "path_params": {"job": "a"}, "query_string": f"seen={stamp}".encode()}
    with ThreadPoolExecutor(1) as pool:  # a browser of other tests may have a loop in this thread
        answer = pool.submit(asyncio.run, live.send_progress(Request(scope))).result()
    assert json.loads(bytes(answer.body)) == {"active": False}
    assert looks == ["sleep"]
    assert live._HOLD_SECONDS <= SOON  # and an answer that is lost is asked for again


def test_the_jobs_page_looks_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    store = Store()
    client.save(store, make_job(state="running", **NOBODY))
    every: list[float] = []
    plain = st.fragment

    def fragment(*arguments: Any, run_every: float | None = None) -> Any:
        if run_every is not None:
            every.append(run_every)
        return plain(*arguments, run_every=run_every)

    monkeypatch.setattr(st, "fragment", fragment)
    app = AppTest.from_file(str(ROOT / "pages" / "jobs.py"), default_timeout=PATIENCE).run()
    assert not app.exception
    shown = " ".join(m.value for m in [*app.markdown, *app.caption, *app.warning])
    assert "Its worker process ended: it was killed" in shown
    assert every and max(every) <= SOON


# ---- processes


def test_no_zombie_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/true")  # a worker that ends at once
    workers.ensure_worker(store)
    child = workers._CHILDREN[-1].pid
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked
    assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    with servers.jobs_have_workers(store):
        pass  # the first look is at once
    assert not psutil.pid_exists(child)


def test_a_worker_ends_whose_app_was_killed_during_its_first_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has nothing to wait for, and would otherwise stay for a quarter of an hour."""
    store = Store(tmp_path)
    client.save(store, make_job(task="summary", state="queued"))
    app = {"lives": True}

    def run(self: JobRun) -> SummaryResult:
        app["lives"] = False
        return SummaryResult()

    monkeypatch.setattr(JobRun, "run", run)
    monkeypatch.setattr(servers, "server_lives", lambda store: app["lives"])
    monkeypatch.setattr(worker, "IDLE_SECONDS", 5.0)
    with caplog.at_level("INFO"):
        worker.Worker(store, "cpu").work()
    assert client.find_job(store, "a").state == "done"
    assert "the app has ended" in caplog.text


def test_a_training_whose_result_is_stored_is_not_repeated(tmp_path: Path) -> None:
    """A worker that is killed between the result and the job's end has no training state left."""
    out = tmp_path / "a.safetensors"
    out.touch()
    known = FinetuneResult(path=str(out), sha256="0" * 64)
    store, nothing = Store(tmp_path / "cache"), cast(Any, None)
    run = JobRun(store, make_job(task="finetune", result=known.to_dict()), nothing, nothing)
    request = FinetuneRequest(settings=FinetuneSettings(), file_name=out.name)
    assert run._finetune(nothing, request) == known


# ---- files

KILLED = """
import os, sys
from pathlib import Path
from psvit_core.durable import temporary_folder
from psvit_core.storage.leftovers import passing_lock
from psvit_core.storage.store import Store
store = Store(sys.argv[1])
lock = passing_lock(store, "a")
lock.acquire()
old = Path(store.folder, "arrays", ".psvit-old.part")  # as version 0.2 named them
old.touch()
os.utime(old, (0, 0))
row = store._cache.disk.store(list(range(30_000)), False)  # a value's file without its row
with temporary_folder(store.folder / "arrays") as folder:
    (folder / "half").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_temporary_files_and_locks_are_removed_at_the_next_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("long", list(range(30_000)))
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        tidy(store)  # while that process lives, its files are in use

        def temporary() -> int:
            return len([*tmp_path.rglob(".psvit-*.part/half")])

        assert temporary() == 1 and len([*tmp_path.rglob("cells-a.lock")]) == 1
        os.kill(process.pid, signal.SIGKILL)
    tidy(store)
    assert temporary() == 0
    assert not [*tmp_path.rglob(".psvit-*")] and not [*tmp_path.rglob("cells-*")]
    assert len([*tmp_path.rglob("*.val")]) == 1 and len(store.get("long")) == 30_000


def test_a_temporary_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        remove_leftovers(tmp_path)
        assert folder.is_dir()
    assert [*tmp_path.iterdir()] == []


def test_a_process_that_has_ended_is_none(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_same_process(process.pid, 1.0)
        assert workers.process_started(process.pid) is None  # a zombie has ended, too
