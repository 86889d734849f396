"""Background work: jobs can be cancelled, survive a killed worker, and resume."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from psvit_core.errors import JobError
from psvit_core.jobs import client, workers
from psvit_core.jobs.client import Job
from psvit_core.records import (
    EpochRecord,
    FinetuneSettings,
    PlanSettings,
    RecoverySettings,
    Subject,
    SweepSettings,
)
from psvit_core.records.jobs import FinetuneResult, SweepResult
from psvit_core.sensitivity.spec import load_spec
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.workspace import Workspace
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.recorded import recorded_measurements
from tests.made import make_job
from tests.patience import JOB

SUBJECT = Subject(model="e_spikeformer_digits", data="digits", limit=30, batch=10)
QUICK = SweepSettings(ratios=(0.5,))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "cache")
    yield store
    for pid in pids(store):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def workspace(store: Store) -> Workspace:
    return Workspace(SUBJECT, store)


def pids(store: Store) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "psvit_core.jobs.worker" in command and str(store.folder) in command:
            found.append(process.pid)
    return found


def wait(store: Store, job: Job, until: Callable[[Job], bool], seconds: float = JOB) -> Job:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = client.find_job(store, job.id)
        if until(now):
            return now
        time.sleep(0.05)
    raise AssertionError(f"still {now.state}, {now.done}/{now.total}: {log(store)}")


def log(store: Store) -> str:
    return workers.log_path(store, "cpu").read_text()


def ended(job: Job) -> bool:
    return not job.active


def seen(workspace: Workspace) -> list[int]:
    """Number of images with stored results, for each cell of the newest sweep."""
    key = workspace.sweep_key()
    table = workspace.table(load_spec(workspace.store, key)) if key else None
    return [row.n_images for row in table.rows] if table else []


@pytest.mark.slow
def test_a_sweep_survives_a_killed_worker(store: Store) -> None:
    subject = dataclasses.replace(SUBJECT, limit=400)  # long enough to be killed half-way
    workspace, whole_sweep = Workspace(subject, store), 45 * 400  # images of cells
    job = workspace.start_sweep(QUICK)
    assert workspace.start_sweep(QUICK).id == job.id  # not queued twice
    running = wait(store, job, lambda j: j.total > 0 and len(seen(workspace)) >= 20)
    assert running.total == whole_sweep
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    interrupted = wait(store, job, ended)
    assert interrupted.state == "interrupted"

    key = workspace.sweep_key()
    assert isinstance(interrupted.outcome, SweepResult)
    assert key == interrupted.outcome.sweep_key
    assert key is not None
    assert 20 * 10 <= sum(seen(workspace)) < whole_sweep

    client.resume(store, job.id)
    done = wait(store, job, ended)
    assert done.state == "done", (done.error, log(store))
    assert done.pid != running.pid
    assert (done.done, done.total) == (whole_sweep, whole_sweep)
    assert done.fresh < whole_sweep  # stored results were not computed again
    whole = workspace.table(load_spec(store, key))
    reference = run_sweep(Session(subject, Store(store.folder / "other")), QUICK)
    assert whole == reference


@pytest.mark.slow
def test_cancel_and_resume_and_short_jobs_between(store: Store, workspace: Workspace) -> None:
    job = workspace.start_sweep(QUICK)
    wait(store, job, lambda j: j.done >= 3)
    summary = workspace.summary()
    assert summary is not None
    plan = workspace.plan_by_hand({g.group_id: 0.3 for g in summary.groups})
    assert workspace.measurement(plan) is None
    short = workspace.measure(plan)
    measured = wait(store, short, ended)
    assert client.find_job(store, job.id).state == "running"  # the short job ran between batches
    assert measured.state == "done", measured.error
    result = workspace.measurement(plan)
    assert result is not None
    assert result.conditions.n_images == 30
    assert result.memory_saving == pytest.approx(workspace.memory_saving(plan))

    client.cancel(store, job.id)
    cancelled = wait(store, job, ended)
    assert cancelled.state == "cancelled"
    assert 3 <= cancelled.done < cancelled.total == 45 * 30
    client.resume(store, job.id)
    assert wait(store, job, ended).state == "done"
    assert len(pids(store)) == 1  # one worker did everything

    planned = workspace.start_plan(
        load_spec(store, str(workspace.sweep_key())),
        PlanSettings(policy="uniform", memory_saving=0.3),
    )
    ready = wait(store, planned, ended)
    assert ready.state == "done", ready.error
    assert ready.measurement is not None and ready.measurement.memory_saving >= 0.3

    export = wait(store, workspace.export(plan, "small.safetensors"), ended)
    assert export.state == "done", export.error
    assert export.written is not None
    path = Path(export.written.path)
    assert path.stat().st_size == export.written.bytes
    assert path.name == "small.safetensors"


@pytest.mark.slow
def test_a_finetuning_survives_a_killed_worker(store: Store, workspace: Workspace) -> None:
    summary = workspace.summary()
    assert summary is not None
    plan = workspace.plan_by_hand({g.group_id: 0.25 for g in summary.groups})
    settings = FinetuneSettings(epochs=3, batch=8, train_images=48, augment="none")
    recovery = RecoverySettings(method="bn", n_images=20)
    job = workspace.start_finetune(plan, settings, "tuned.safetensors", recovery)

    def epochs() -> list[EpochRecord]:
        return [r for r in workspace.finetune_records(job) if r.val_accuracy is not None]

    assert workspace.finetune_records(job) == ()
    running = wait(store, job, lambda j: len(epochs()) >= 2)
    assert running.total == 18
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    assert wait(store, job, ended).state == "interrupted"
    before = epochs()
    client.resume(store, job.id)
    done = wait(store, job, ended)
    assert done.state == "done", (done.error, log(store))
    assert epochs()[: len(before)] == before  # finished epochs were not trained again
    assert [r.epoch for r in epochs()] == [0, 1, 2, 3]
    tuned = done.outcome
    assert isinstance(tuned, FinetuneResult)
    assert tuned.recovery is not None and tuned.recovery.used == "bn"
    assert Path(tuned.path).stat().st_size == tuned.bytes
    assert Path(tuned.last_path).exists()
    assert tuned.report is not None and len(tuned.report.epochs) == 4

    export = wait(store, workspace.export(plan, "small.safetensors", recovery, measure=True), ended)
    assert export.state == "done", export.error
    first = epochs()[0].val_accuracy
    assert first is not None
    small = export.written
    assert small is not None and small.file_measurement is not None
    assert small.file_measurement.accuracy == first
    (recorded,) = recorded_measurements(load_model(small.path))
    assert recorded.accuracy == first
    assert small.bytes == Path(small.path).stat().st_size  # with the record
    assert "# Accuracy" in Path(small.code).read_text()
    assert small.recovery is not None
    assert small.recovery == dataclasses.replace(tuned.recovery, seconds=small.recovery.seconds)


@pytest.mark.slow
def test_a_stopped_finetuning_keeps_the_best(store: Store, workspace: Workspace) -> None:
    summary = workspace.summary()
    assert summary is not None
    plan = workspace.plan_by_hand({g.group_id: 0.25 for g in summary.groups})
    settings = FinetuneSettings(epochs=500, batch=8, train_images=48, augment="none")
    job = workspace.start_finetune(plan, settings, "tuned.safetensors")
    wait(store, job, lambda j: len(workspace.finetune_records(j)) >= 2)
    client.stop(store, job.id)
    done = wait(store, job, ended)
    assert done.state == "done", (done.error, log(store))
    result = done.outcome
    assert isinstance(result, FinetuneResult) and result.report is not None
    assert result.report.stopped_early
    assert result.report.epochs[-1].epoch < 500
    assert Path(result.path).stat().st_size == result.bytes
    assert client.stop(store, job.id).state == "done"  # has no effect any more


def test_failures_have_messages(store: Store) -> None:
    missing = Workspace(Subject(model="missing.safetensors", data="digits"), store)
    assert missing.summary() is None
    failed = wait(store, missing.request_summary(), ended)
    assert failed.state == "failed"
    assert "no model or file missing.safetensors" in failed.error
    other = Workspace(Subject(data="digits", split="test", limit=10), store)
    refused = wait(store, other.start_sweep(QUICK), ended)
    assert "never use the test split" in refused.error
    assert len(pids(store)) == 1  # the worker survives failed jobs


def test_waiting_jobs_can_be_cancelled_and_found(store: Store) -> None:
    job = Job(id="a", task="sweep", title="t", params={"subject": {}}, created=1.0)
    client.save(store, job)
    assert client.find_job(store, "a").state == "queued"
    assert client.cancel(store, "a").state == "cancelled"
    with pytest.raises(JobError, match="no job 'b'"):
        client.find_job(store, "b")


def test_a_reused_pid_is_not_mistaken_for_the_worker(store: Store) -> None:
    started = workers.process_started(os.getpid())
    assert started is not None
    job = make_job(
        state="running",
        pid=os.getpid(),
        pid_started=started,
    )
    client.save(store, job)
    assert client.find_job(store, "a").state == "running"
    client.save(store, dataclasses.replace(job, pid_started=started - 60))
    assert client.find_job(store, "a").state == "interrupted"
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        assert workers.process_started(process.pid) is None


def test_reconcile_starts_workers_for_waiting_jobs(store: Store) -> None:
    subject = dataclasses.replace(SUBJECT, limit=5)
    job = Job(
        id="a",
        task="measure",
        title="t",
        created=1.0,
        params={"subject": subject.to_dict(), "plan": None},
    )
    client.save(store, job)  # as after a crash before a worker ran it
    assert pids(store) == []
    client.reconcile(store)
    assert wait(store, job, ended).state == "done"


def test_the_remaining_time_counts_computed_steps_only() -> None:
    job = make_job(
        state="running",
        started=0.0,
        paced=2.0,
        done=60,
        total=100,
        fresh=10,
    )
    assert job.seconds_left(now=20.0) == pytest.approx(80.0)
    assert dataclasses.replace(job, fresh=1).seconds_left(now=20.0) is None
    assert dataclasses.replace(job, paced=None).seconds_left(now=20.0) is None


def test_workspace_without_a_job(workspace: Workspace) -> None:
    assert workspace.sweep_key() is None
    assert workspace.jobs() == []
    size = workspace.size()
    plan = workspace.plan_by_hand({"stage3.stream": 0.5})
    assert workspace.size(plan).bytes < size.bytes
    assert "torch" not in workspace.__class__.__module__
