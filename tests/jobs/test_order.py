"""Order, priority and superseding of measurements; jobs run in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psvit_core.errors import JobError
from psvit_core.jobs import client, worker, workers
from psvit_core.jobs.client import Job
from psvit_core.jobs.queue import Bell, priority, waiting
from psvit_core.jobs.run import JobRun
from psvit_core.jobs.worker import Worker
from psvit_core.records import PrunePlan, Subject, SweepSettings
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace

SUBJECT = Subject(model="e_spikeformer_digits", data="digits", limit=20, batch=5)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose jobs wait until the test runs them."""
    monkeypatch.setattr(client, "ensure_worker", lambda store, device="cpu": None)
    monkeypatch.setattr(worker, "_CHECK_SECONDS", 0.0)
    return Store(tmp_path / "cache")


def plan(workspace: Workspace, ratio: float) -> PrunePlan:
    return workspace.plan_by_hand({"stage3.stream": ratio})


def ids(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


def at_batch(n: int, then: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call ``then`` before the n-th batch of any job."""
    real, count = JobRun.tick, [0]

    def tick(self: Any) -> None:
        count[0] += 1
        if count[0] == n:
            then()
        real(self)

    monkeypatch.setattr(JobRun, "tick", tick)


def test_an_edit_removes_the_waiting_measurement_of_the_same_user(store: Store) -> None:
    workspace = Workspace(SUBJECT, store)
    old = workspace.measure(plan(workspace, 0.3), owner="ann")
    other = workspace.measure(plan(workspace, 0.3), owner="bob")
    by_button = workspace.measure(plan(workspace, 0.3))
    assert len({old.id, other.id, by_button.id}) == 3
    new = workspace.measure(plan(workspace, 0.5), owner="ann")
    assert workspace.measure(plan(workspace, 0.5), owner="ann").id == new.id
    assert ids(waiting(store, "cpu")) == [other.id, by_button.id, new.id]
    with pytest.raises(JobError):
        client.find_job(store, old.id)
    Worker(store, "cpu").run_job(old)  # picked up just before it was dropped
    with pytest.raises(JobError):
        client.find_job(store, old.id)
    assert ids(client.list_jobs(store)) == [new.id, by_button.id, other.id]
    client.supersede(store, "ann")
    assert ids(waiting(store, "cpu")) == [other.id, by_button.id]


def test_an_edit_stops_the_running_measurement(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(SUBJECT, store)
    first, second = plan(workspace, 0.3), plan(workspace, 0.5)
    old = workspace.measure(first, owner="ann")
    new: list[Job] = []
    at_batch(6, lambda: new.append(workspace.measure(second, owner="ann")), monkeypatch)
    owner = Worker(store, "cpu")
    owner.run_job(old)  # the baseline has 4 batches, then come 2 of the plan
    assert ids(client.list_jobs(store)) == ids(new)
    assert not list(store.keys("cancel/"))
    owner.run_job(new[0])
    assert workspace.measurement(first) is None
    assert workspace.measurement(second) is not None


def test_a_measurement_that_ends_before_it_is_stopped_stays(store: Store) -> None:
    workspace = Workspace(SUBJECT, store)
    old = workspace.measure(plan(workspace, 0.3), owner="ann")
    Worker(store, "cpu").run_job(old)
    workspace.measure(plan(workspace, 0.5), owner="ann")
    assert client.find_job(store, old.id).state == "done"
    assert workspace.measurement(plan(workspace, 0.3)) is not None


def test_a_result_that_comes_too_late_for_the_stop_is_kept(store: Store) -> None:
    job = Job(id="a", task="measure", title="t", params={}, state="running", owner="ann")
    store.put("cancel/a", client.SUPERSEDED)
    client.save_ended(store, dataclasses.replace(job, state="done"))
    assert client.find_job(store, "a").state == "done"
    assert not client.cancel_requested(store, "a")
    store.put("cancel/a", True)  # by the user's button
    client.save_ended(store, dataclasses.replace(job, state="cancelled"))
    assert client.find_job(store, "a").state == "cancelled"


def test_measurements_come_first_and_users_take_turns(store: Store) -> None:
    workspace = Workspace(SUBJECT, store)
    sweep = workspace.start_sweep(SweepSettings(ratios=(0.5,)))
    export = workspace.export(plan(workspace, 0.4), "a.safetensors")
    ann = workspace.measure(plan(workspace, 0.3), owner="ann")
    bob = workspace.measure(plan(workspace, 0.3), owner="bob")
    assert ids(waiting(store, "cpu")) == [ann.id, bob.id, export.id, sweep.id]
    assert ids(waiting(store, "cpu", below=priority("export"))) == [ann.id, bob.id]
    served = {"ann": 5.0}
    assert ids(waiting(store, "cpu", served))[:2] == [bob.id, ann.id]
    edited = workspace.measure(plan(workspace, 0.6), owner="ann")  # many edits, still after bob
    assert ids(waiting(store, "cpu", served))[:2] == [bob.id, edited.id]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sweep", "export"])
def test_a_measurement_runs_between_two_batches(
    task: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(SUBJECT, store)
    own = plan(workspace, 0.4)
    long = (
        workspace.start_sweep(SweepSettings(ratios=(0.5,)))
        if task == "sweep"
        else workspace.export(own, "a.safetensors", measure=True)
    )
    asked = plan(workspace, 0.3)
    at_batch(2, lambda: workspace.measure(asked, owner="ann"), monkeypatch)
    states: list[str] = []
    save = client.save_ended

    def watch(store: Store, job: Job) -> None:
        states.append(job.task)
        save(store, job)

    monkeypatch.setattr(client, "save_ended", watch)
    Worker(store, "cpu").run_job(long)
    assert states == ["measure", task]
    assert client.find_job(store, long.id).error == ""
    # Both ran on the same model at the same time: neither has counted the other's spikes.
    alone = Workspace(SUBJECT, Store(store.folder / "alone"))
    for p in (asked, own) if task == "export" else (asked,):
        found = workspace.measurement(p) or workspace.jobs(task)[0].written.pruned_measurement  # type: ignore[union-attr]
        Worker(alone.store, "cpu").run_job(alone.measure(p))
        assert alone.measurement(p) == found


def test_the_bell_rings_for_new_and_cancelled_jobs(store: Store) -> None:
    workspace = Workspace(SUBJECT, store)
    bell = Bell(store, "cpu")
    assert not bell.has_rung()
    job = workspace.measure(None)
    assert bell.has_rung()
    assert not bell.has_rung()
    workers.bell_path(store, "cpu").unlink()
    client.cancel(store, job.id)
    assert bell.has_rung()
