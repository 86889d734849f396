"""``psvit jobs``: watching, order, logs, jobs of other versions."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from psvit_core.cli import jobs, main, watching
from psvit_core.errors import CancelledError
from psvit_core.jobs import client, workers
from psvit_core.jobs.client import Job
from psvit_core.records import Subject, SweepSettings
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace

SUBJECT = Subject(model="e_spikeformer_digits", data="digits", limit=5, batch=5)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(client, "ensure_worker", lambda *_, **__: None)
    return Store()


def text_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["jobs", *arguments]) == 0
    return capsys.readouterr().out


def data_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(text_of(capsys, *arguments, "--json"))


def sweep(store: Store, ratio: float = 0.5) -> Job:
    return Workspace(SUBJECT, store).start_sweep(SweepSettings(ratios=(ratio,)))


def running(store: Store, job: Job, **changed: Any) -> Job:
    """Store a job as one that this process runs, a thousand images a second for ten seconds."""
    own = workers.process_started(1) and {"pid": 1, "pid_started": workers.process_started(1)}
    state = {"state": "running", "fresh": 10_001, "done": 10_001, "total": 40_001, **(own or {})}
    return client.save(store, dataclasses.replace(job, **{**state, **changed}))


def story(store: Store, monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """Let something happen at each of the watch's looks but the first."""
    left = list(steps)

    def sleep(seconds: float) -> None:
        left.pop(0)()

    monkeypatch.setattr(watching, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(watching, "_JSON_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "Watch", partial(watching.Watch, sleep=sleep))


# ---- watch -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"state": "done", "exit_code": 0}, 0),
        ({"state": "failed", "error": "No images.", "exit_code": 2}, 2),
        ({"state": "failed", "error": "of an older version"}, 1),
        ({"state": "cancelled", "exit_code": 130}, 130),
        ({"state": "interrupted"}, 1),
    ],
)
def test_watching_ends_with_the_jobs_exit_status(
    changed: dict[str, Any],
    status: int,
    store: Store,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = sweep(store)
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    story(
        store,
        monkeypatch,
        lambda: running(store, job, paced=now - 10.0),
        lambda: client.save(store, dataclasses.replace(job, **changed)),
    )
    assert main(["jobs", "watch", job.id]) == status
    seen = capsys.readouterr()
    first, second = seen.err.splitlines()
    assert f"{job.id}  queued  {job.title}" in first
    # 10,000 images in 10 s; 30,000 are left.
    assert "25 %, 10,001/40,001, 1,000 images/s, about 30 s left" in second
    assert changed["state"] in seen.out
    assert changed.get("error", "") in seen.out
    assert ("psvit jobs log" in seen.out) == (changed["state"] in ("failed", "interrupted"))


def test_watching_writes_lines_of_json(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = sweep(store)
    story(
        store,
        monkeypatch,
        lambda: running(store, job),
        lambda: client.save(store, dataclasses.replace(job, state="done", exit_code=0)),
    )
    assert main(["jobs", "watch", job.id, "--json"]) == 0
    seen = capsys.readouterr()
    lines = [json.loads(line) for line in seen.out.splitlines()]
    assert [(line["state"], line["exit_code"]) for line in lines] == [
        ("queued", None),
        ("running", None),
        ("done", 0),
    ]
    assert {line["id"] for line in lines} == {job.id}
    assert seen.err == ""


def test_without_an_id_all_active_jobs_are_watched(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no job waits or runs" in text_of(capsys, "watch")
    one, two, three = (sweep(store, ratio) for ratio in (0.25, 0.5, 0.75))
    client.cancel(store, three.id)
    story(
        store,
        monkeypatch,
        lambda: client.save(store, dataclasses.replace(one, state="done", exit_code=0)),
        lambda: client.forget(store, two.id),  # a newer request has taken its place
    )
    assert main(["jobs", "watch"]) == CancelledError.exit_code
    out = capsys.readouterr().out
    assert one.id in out
    assert "a newer request has taken its place" in out
    assert three.id not in out


def test_whoever_stops_watching_does_not_stop_the_job(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = sweep(store)

    def interrupt() -> None:
        raise KeyboardInterrupt

    story(store, monkeypatch, interrupt)
    assert main(["jobs", "watch", job.id]) == 130
    assert "The jobs go on" in capsys.readouterr().err
    assert client.find_job(store, job.id).state == "queued"


def test_a_terminal_gets_one_line_that_is_redrawn(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(store, sweep(store))
    story(
        store,
        monkeypatch,
        lambda: running(store, job, done=20_001),
        lambda: client.save(store, dataclasses.replace(job, state="done", exit_code=0)),
    )
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["jobs", "watch", job.id]) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1  # the change of state; progress is drawn over itself
    assert err.count("[##########..........]") == 1
    assert err.endswith("\r\x1b[K")


# ---- order, logs, versions -------------------------------------------------------------------


def test_the_queue_is_reordered(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (sweep(store, ratio).id for ratio in (0.25, 0.5, 0.75))
    assert data_of(capsys, "move", c, "--first")["waiting"] == [c, a, b]
    assert data_of(capsys, "move", b, "--before", a)["waiting"] == [c, b, a]
    places = {job["id"]: job["place"] for job in data_of(capsys, "list")["jobs"]}
    assert places == {c: 1, b: 2, a: 3}
    assert f"{a}  " in text_of(capsys, "list")
    assert "queued (number 3)" in text_of(capsys, "list")
    assert main(["jobs", "move", a]) == 2
    assert "--first, or --before ID" in capsys.readouterr().err
    assert main(["jobs", "move", a, "--before", "nobody"]) == 2
    assert "Unknown job 'nobody'" in capsys.readouterr().err


def test_a_jobs_log_shows_its_cause(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    workers.log_path(store, "cpu").write_text("before\nits own\x1b[2J\nafter\n", encoding="utf-8")
    job = dataclasses.replace(
        sweep(store), state="failed", error="out of luck", log_from=7, log_to=7 + 12
    )
    client.save(store, job)
    assert text_of(capsys, "log", job.id) == "its own\\x1b[2J\nfailed: out of luck\n"
    found = data_of(capsys, "log", job.id)
    assert (found["lines"], found["error"]) == (["its own\\x1b[2J"], "out of luck")
    other = sweep(store, 0.25)
    assert "has no lines of job" in text_of(capsys, "log", other.id)


def test_jobs_of_other_versions_are_listed_and_removed(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    own = sweep(store)
    store.put("job/newer", {**own.to_dict(), "id": "newer", "speed": 3, "program": "9.0"})
    text = text_of(capsys, "list")
    assert text.splitlines()[0].startswith(own.id)
    assert "newer" in text
    assert "[version 9.0]: Unknown fields in Job: ['speed']." in text
    for action in ("resume", "cancel", "watch", "log"):
        assert main(["jobs", action, "newer"]) == 1
        said = capsys.readouterr().err
        assert "made by version 9.0 of this program" in said
        assert "psvit jobs remove newer" in said
    assert data_of(capsys, "remove", "newer") == {"removed": "newer"}
    assert data_of(capsys, "list")["other_versions"] == []
    assert main(["jobs", "remove", "newer"]) == 2
    assert main(["jobs", "remove", own.id]) == 1
