"""The order of the queue changed by a user; jobs run in this process."""

from __future__ import annotations

import pytest

from psvit_core.errors import JobError
from psvit_core.jobs import client, queue, versions, worker
from psvit_core.jobs.run import JobRun
from psvit_core.jobs.worker import Worker
from psvit_core.records import Subject, SweepSettings
from psvit_core.records.jobs import SweepResult
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.jobs.test_order import ids, plan, store

__all__ = ["store"]  # the fixture

SUBJECT = Subject(model="e_spikeformer_digits", data="digits", limit=5, batch=5)


def sweeps(store: Store, count: int) -> list[str]:
    """Queue sweeps that differ; return their ids in the order of the requests."""
    workspace = Workspace(SUBJECT, store)
    ratios = [(0.5,), (0.25,), (0.75,), (0.125,)][:count]
    return [workspace.start_sweep(SweepSettings(ratios=r)).id for r in ratios]


def order(store: Store) -> list[str]:
    return ids(queue.waiting(store, "cpu"))


def test_a_waiting_job_is_moved_first_and_before_another(store: Store) -> None:
    a, b, c, d = sweeps(store, 4)
    assert order(store) == [a, b, c, d]
    assert ids(queue.move(store, c)) == [c, a, b, d]
    assert ids(queue.move(store, d, before=b)) == [c, a, d, b]
    assert ids(queue.move(store, c, before=b)) == [a, d, c, b]  # backwards, too
    for _ in range(60):  # any number of moves: places never get too close to tell apart
        queue.move(store, b, before=queue.waiting(store, "cpu")[0].id)
        queue.move(store, d, before=b)
    assert order(store) == [d, b, a, c]
    later = Workspace(SUBJECT, store).start_sweep(SweepSettings(ratios=(0.9,)))
    assert order(store) == [d, b, a, c, later.id]


def test_measurements_still_go_before_a_job_moved_first(store: Store) -> None:
    a, b = sweeps(store, 2)
    workspace = Workspace(SUBJECT, store)
    export = workspace.export(plan(workspace, 0.4), "a.safetensors").id
    measured = workspace.measure(plan(workspace, 0.3), owner="ann").id
    queue.move(store, b)
    assert order(store) == [measured, export, b, a]
    with pytest.raises(JobError, match="measurements run before other short jobs"):
        queue.move(store, b, before=measured)
    with pytest.raises(JobError, match="before itself"):
        queue.move(store, b, before=b)
    client.cancel(store, a)
    with pytest.raises(JobError, match=r"is cancelled\. Only jobs that wait"):
        queue.move(store, a)
    with pytest.raises(JobError, match="There is no job"):
        queue.move(store, "nobody")


def test_places_go_with_their_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = sweeps(store, 3)
    queue.move(store, c)
    client.cancel(store, c)
    monkeypatch.setattr(client, "ensure_worker", lambda *_, **__: None)
    client.resume(store, c)  # at its own time again, which is that of the request
    assert order(store) == [a, b, c]
    client.cancel(store, b)
    versions.remove(store, b)
    assert {key.removeprefix("place/") for key in store.keys("place/")} == {a}


def test_the_worker_takes_jobs_in_the_new_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = sweeps(store, 3)
    ran: list[str] = []

    def run(self: JobRun) -> SweepResult:
        ran.append(self.job.id)
        if len(ran) == 1:  # moved while another one runs
            queue.move(store, c, before=b)
        return SweepResult(sweep_key="", cells=0)

    monkeypatch.setattr(JobRun, "run", run)
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.3)
    Worker(store, "cpu").work()
    assert ran == [a, c, b]
    assert not list(store.keys("place/"))
