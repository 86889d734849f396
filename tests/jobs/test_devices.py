"""Several devices in the queue: which one a job waits for, and who takes it."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from psvit_core.errors import DeviceError
from psvit_core.jobs import client, devices, queue, worker, workers
from psvit_core.jobs.worker import Worker
from psvit_core.records import Subject, SweepSettings
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.jobs.test_jobs import ended, pids, wait

SUBJECT = Subject(model="e_spikeformer_digits", data="digits", limit=5, batch=5)
TWO = ("cpu:0", "cpu:1")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv(devices.DEVICES_ENV, ",".join(TWO))
    return Store(tmp_path / "cache")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Start no workers; note their devices instead."""
    found: list[str] = []
    monkeypatch.setattr(
        client, "ensure_worker", lambda store, device="cpu", **_: found.append(device)
    )
    return found


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("cuda:0, cuda:1", ("cuda:0", "cuda:1")),
        ("cuda", ("cuda",)),
        ("cpu:2", ("cpu:2",)),
    ],
)
def test_devices_are_parsed(text: str, names: tuple[str, ...]) -> None:
    assert devices.parse_devices(text) == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tpu:0", "is no device"),
        ("cuda:0,cpu:0", "of one kind"),
        ("cuda:0,cuda:0", "a number each"),
        ("cuda,cuda:1", "a number each"),
        ("cuda:99999", "is no device"),
    ],
)
def test_what_is_no_list_of_devices_is_refused(text: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        devices.parse_devices(text)


def test_a_worker_sees_its_own_accelerator_only() -> None:
    assert devices.worker_environment("cpu:1", {"A": "1"}) == {"A": "1"}
    own = devices.worker_environment("cuda:1", {})
    assert (own["CUDA_VISIBLE_DEVICES"], own[devices.PLACED_ENV]) == ("1", "cuda:1")
    # Those that this process sees have other numbers for the driver.
    assert devices.worker_environment("cuda:1", {"CUDA_VISIBLE_DEVICES": "4,6"}) == {
        "CUDA_VISIBLE_DEVICES": "6",
        devices.PLACED_ENV: "cuda:1",
    }
    none = devices.worker_environment("cuda:2", {"CUDA_VISIBLE_DEVICES": "4,6"})
    assert none["CUDA_VISIBLE_DEVICES"] == ""


def test_the_placed_device_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.placed("cuda:1") == "cuda:1"
    monkeypatch.setenv(devices.PLACED_ENV, "cuda:1")
    assert [devices.placed(d) for d in ("cuda:1", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


def test_new_jobs_wait_for_the_device_with_least_to_do(store: Store, started: list[str]) -> None:
    workspace = Workspace(SUBJECT, store)
    sweeps = [workspace.start_sweep(SweepSettings(ratios=(r,))) for r in (0.25, 0.5, 0.75)]
    assert [job.device for job in sweeps] == ["cpu:0", "cpu:1", "cpu:0"]
    assert started == ["cpu:0", "cpu:1", "cpu:0"]
    # Short ones run between the batches of long ones, so they count apart.
    plans = [workspace.plan_by_hand({"stage3.stream": r}) for r in (0.25, 0.5)]
    measured = [workspace.measure(plan) for plan in plans]
    assert [job.device for job in measured] == ["cpu:1", "cpu:0"]
    assert sweeps[0].devices == TWO
    # Pages and stored numbers know the kind of device alone.
    assert {job.subject.device for job in (*sweeps, *measured) if job.subject} == {"cpu"}
    assert [job.id for job in workspace.jobs("measure")] == [job.id for job in reversed(measured)]
    named = Workspace(dataclasses.replace(SUBJECT, device="cuda:3"), store)
    assert named.measure(None).device == "cuda:3"


def test_an_idle_device_takes_what_waits_for_another(
    store: Store, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(SUBJECT, store)
    jobs = [workspace.start_sweep(SweepSettings(ratios=(r,))) for r in (0.25, 0.5, 0.75)]
    own = [job for job in jobs if job.device == "cpu:0"]
    assert queue.take_over(store, "cpu:1") is None  # each is left to its device for a moment
    now = time.time()
    with monkeypatch.context() as clock:  # it is set back
        clock.setattr(time, "time", lambda: now - 86_400)
        assert queue.take_over(store, "cpu:1") is not None
    client.save(store, own[0])
    monkeypatch.setattr(queue, "_TAKE_SECONDS", -1.0)
    assert queue.take_over(store, "cpu:7") is None  # not one of the job's devices
    taken = queue.take_over(store, "cpu:1")
    assert taken is not None and (taken.id, taken.device) == (own[0].id, "cpu:1")
    assert [job.id for job in queue.waiting(store, "cpu:0")] == [own[1].id]
    # The device that it waited for has read the queue before, and must not run it as well.
    first = Worker(store, "cpu:0")
    first.run_job(own[0])
    assert client.find_job(store, own[0].id).state == "queued"


def test_waiting_jobs_start_a_worker_on_an_idle_device(store: Store, started: list[str]) -> None:
    workspace = Workspace(SUBJECT, store)
    jobs = [workspace.start_sweep(SweepSettings(ratios=(r,))) for r in (0.25, 0.5)]
    both = dataclasses.replace(jobs[1], device="cpu:0")
    client.save(store, both)
    begun = workers.process_started(os.getpid())
    running = dataclasses.replace(jobs[0], state="running", pid=os.getpid(), pid_started=begun)
    client.save(store, running)
    started.clear()
    client.reconcile(store)
    assert started == ["cpu:1"]


@pytest.mark.slow
def test_two_workers_share_the_queue(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "IDLE_SECONDS", 5.0)
    long = Workspace(dataclasses.replace(SUBJECT, limit=200), store)
    short = Workspace(SUBJECT, store)
    try:
        a = long.start_sweep(SweepSettings(ratios=(0.25, 0.5, 0.75)))
        b = short.start_sweep(SweepSettings(ratios=(0.5,)))
        c = short.start_sweep(SweepSettings(ratios=(0.75,)))
        assert [job.device for job in (a, b, c)] == ["cpu:0", "cpu:1", "cpu:0"]
        found = wait(store, c, ended)
        # c waited behind a, until the other device had nothing left to do.
        assert (found.state, found.device) == ("done", "cpu:1")
        assert client.find_job(store, a.id).state == "running"
        assert client.find_job(store, a.id).pid != found.pid
    finally:
        client.cancel(store, a.id)
        wait(store, a, ended)
        for pid in pids(store):
            os.kill(pid, 9)
    alone = Workspace(SUBJECT, Store(store.folder / "alone"))
    monkeypatch.delenv(devices.DEVICES_ENV)
    monkeypatch.setattr(client, "ensure_worker", lambda *_, **__: None)
    job = alone.start_sweep(SweepSettings(ratios=(0.75,)))
    time.sleep(0.01)
    Worker(alone.store, "cpu").run_job(job)
    assert rows(alone, job.id) == rows(short, c.id)


def rows(workspace: Workspace, job_id: str) -> object:
    """Return the rows of a sweep's table."""
    from psvit_core.sensitivity.spec import load_spec

    result = client.find_job(workspace.store, job_id).result
    table = workspace.table(load_spec(workspace.store, result["sweep_key"]))
    assert table is not None and table.finished
    return table.rows
