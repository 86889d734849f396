"""What a job leaves in the worker's log, its exit code, its pace, and jobs of other versions."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from psvit_core.errors import JobError
from psvit_core.files import lines_between, program_version
from psvit_core.jobs import client, versions, workers
from psvit_core.jobs.client import Job
from psvit_core.jobs.logs import WORKER_BEGINS, job_log, printable
from psvit_core.jobs.run import JobRun
from psvit_core.jobs.words import how_far, rate_text
from psvit_core.jobs.worker import Worker
from psvit_core.records import Subject
from psvit_core.records.jobs import MeasureRequest
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.made import make_job

SUBJECT = Subject(model="e_spikeformer_digits", data="digits", limit=5, batch=5)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(client, "ensure_worker", lambda *_, **__: None)
    return Store(tmp_path / "cache")


@pytest.fixture
def written_log(store: Store) -> Iterator[Path]:
    """A worker's log, which gets what this process logs, as that of a worker process."""
    path = workers.log_path(store, "cpu")
    path.write_text("of an earlier job\n", encoding="utf-8")
    handler = logging.FileHandler(path)
    logger = logging.getLogger("psvit.worker")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield path
    logger.removeHandler(handler)
    logger.setLevel(level)
    handler.close()


def test_a_failed_job_has_its_own_lines_with_the_cause(
    store: Store, written_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(SUBJECT, store)
    job = workspace.measure(None)

    def fail(run: JobRun) -> None:
        raise RuntimeError("no \x1b[2J luck")

    with monkeypatch.context() as changed:
        changed.setattr(JobRun, "run", fail)
        Worker(store, "cpu").run_job(job)
    failed = client.find_job(store, job.id)
    assert (failed.state, failed.exit_code) == ("failed", 1)
    lines = job_log(store, failed, 60)
    assert f"{job.id} {job.title}: start" in lines[0]
    assert "RuntimeError: no \\x1b[2J luck" in lines  # of the traceback, without its escape code
    assert "failed RuntimeError" in lines[-1]
    assert not any("earlier job" in line for line in lines)
    assert job_log(store, failed, 1) == lines[-1:]

    with written_log.open("a") as log:
        log.write("of a later job\n")
    assert job_log(store, failed, 60) == lines
    written_log.unlink()
    assert job_log(store, failed, 60) == []


def test_the_log_of_an_interrupted_job_ends_with_its_worker(store: Store) -> None:
    path = workers.log_path(store, "cpu")
    before, own = "another job\n", "it begins\nterminate called after std::bad_alloc\n"
    path.write_text(
        f"{before}{own}12:00 {WORKER_BEGINS} 7 on cpu\nthe next job\n", encoding="utf-8"
    )
    job = make_job(state="interrupted", log_from=len(before))
    assert job_log(store, job, 60) == own.splitlines()
    running = dataclasses.replace(job, state="running")
    assert job_log(store, running, 60)[-1] == "the next job"
    assert job_log(store, make_job(state="queued"), 60) == []


def test_characters_that_a_terminal_obeys_are_written_out() -> None:
    assert printable("a\tb\x1b[31mc\x07d") == "a\tb\\x1b[31mc\\x07d"
    assert printable("größe · 50\N{RIGHT-TO-LEFT OVERRIDE}") == "größe · 50\\u202e"


def test_exit_codes_are_those_of_the_command_line(store: Store) -> None:
    workspace = Workspace(dataclasses.replace(SUBJECT, data="folder:/no/such"), store)
    bad = workspace.measure(None)
    Worker(store, "cpu").run_job(bad)
    assert client.find_job(store, bad.id).exit_code == 2  # as psvit evaluate --data folder:/no/such
    again = client.resume(store, bad.id)
    assert (again.state, again.exit_code) == ("queued", None)


@pytest.mark.parametrize(
    ("task", "fresh", "seconds", "text"),
    [
        ("sweep", 1001, 10.0, "100 images/s"),
        ("sweep", 30_001, 10.0, "3,000 images/s"),
        ("measure", 26, 10.0, "2.5 images/s"),
        ("finetune", 4, 60.0, "3.0 steps/min"),
        ("finetune", 1, 60.0, ""),  # one step only starts the clock
    ],
)
def test_the_pace_in_words(task: str, fresh: int, seconds: float, text: str) -> None:
    job = make_job(task=task, state="running", fresh=fresh, paced=1000.0, done=fresh, total=10**6)
    assert rate_text(job, 1000.0 + seconds).replace("\N{NO-BREAK SPACE}", " ") == text
    if text:
        expected = (10**6 - fresh) * seconds / (fresh - 1)
        assert job.seconds_left(1000.0 + seconds) == pytest.approx(expected)


def test_the_finished_part_is_rounded_down() -> None:
    assert how_far(make_job(done=999, total=1000)) == "99\N{NO-BREAK SPACE}%"
    assert how_far(make_job(done=5, total=0)) == ""


# ---- other versions ------------------------------------------------------------------------------


def test_jobs_of_other_versions_are_named_and_can_be_removed(store: Store) -> None:
    own = Workspace(SUBJECT, store).measure(None)
    assert own.program
    assert not own.misfit
    newer = {**own.to_dict(), "id": "newer", "speed": 3, "program": "9.0"}
    store.put("job/newer", newer)
    params = {"subject": SUBJECT.to_dict(), **MeasureRequest(plan=None).to_dict(), "colour": "red"}
    client.save(store, make_job(id="older", task="measure", state="interrupted", params=params))
    client.save(store, make_job(id="ended", task="measure", state="done", params=params))
    store.put("job/broken", "no job at all")

    found = {other.id: other for other in versions.list_other_jobs(store)}
    assert set(found) == {"newer", "older", "broken"}
    assert (found["newer"].program, found["newer"].title) == ("9.0", own.title)
    assert "speed" in found["newer"].why
    assert (found["older"].program, found["older"].state) == ("", "interrupted")
    assert "colour" in found["older"].why

    with pytest.raises(JobError, match=r"an older version of this program .*colour.* anew"):
        client.resume(store, "older")
    for name in ("newer", "older", "broken"):
        versions.remove(store, name)
    assert versions.list_other_jobs(store) == []
    with pytest.raises(JobError, match="still waits or runs"):
        versions.remove(store, own.id)


def test_a_job_whose_file_is_still_there_is_not_removed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.touch()
    result = {"path": str(path), "bytes": 0, "sha256": ""}
    client.save(store, make_job(id="a", task="export", state="done", result=result))
    with pytest.raises(JobError, match=r"wrote .*a\.safetensors"):
        versions.remove(store, "a")
    path.unlink()
    versions.remove(store, "a")
    with pytest.raises(JobError, match="There is no job"):
        client.find_job(store, "a")


def test_the_version_is_named_where_it_is_another() -> None:
    own = Job(id="a", task="measure", title="", params={}).program
    assert versions.version_note(own) == ""
    assert versions.version_note(program_version()) == ""
    assert versions.version_note("0.3.0") == "version 0.3.0"


def test_lines_of_a_part_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = "".join(f"line {n:06}\n" for n in range(100_000))
    path.write_text(text, encoding="utf-8")
    start, end = text.index("line 000500"), text.index("line 099000")
    assert lines_between(path, start, end, 2) == ["line 098998", "line 098999"]
    assert lines_between(path, start, None, 1) == ["line 099999"]
    assert lines_between(path, start, start + 24, 60) == ["line 000500", "line 000501"]
    assert len(lines_between(path, 0, None, 10**6)) < 30_000  # memory is bounded
    assert lines_between(path, 10**9, None, 5) == []
