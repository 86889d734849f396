"""The worker: changed code and images, its sessions, jobs of other versions, and task results."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from psvit_core.jobs import client, worker, workers
from psvit_core.jobs.client import Job
from psvit_core.jobs.run import JobRun
from psvit_core.jobs.worker import Worker
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import (
    Conditions,
    FinetuneSettings,
    Measurement,
    ModelSummary,
    ParetoSettings,
    RecoverySettings,
    Subject,
    SweepSettings,
)
from psvit_core.records.jobs import ExportResult, FinetuneResult, ParetoResult
from psvit_core.sensitivity.buffer import ResultBuffer
from psvit_core.sensitivity.spec import SweepSpec, save_spec
from psvit_core.storage.predictions import Outcome
from psvit_core.storage.store import Store
from psvit_core.tasks.fingerprints import code_stamp, data_stamp, file_stamp
from psvit_core.tasks.session import summarize_model
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import model_card, shipped_summary
from psvit_core.zoo.checkpoint import load_model
from tests.patience import JOB

MODEL = "e_spikeformer_digits"
SUBJECT = Subject(model=MODEL, data="digits", limit=20, batch=5)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose jobs wait until the test runs them."""
    monkeypatch.setattr(client, "ensure_worker", lambda store, device="cpu": None)
    return Store(tmp_path / "cache")


def summary() -> ModelSummary:
    found = shipped_summary(MODEL)
    assert found is not None
    return found


# ---- stamps ----------------------------------------------------------------------------------


def test_code_stamp_sees_edits_new_and_gone_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("1")
    (tmp_path / "y.txt").write_text("1")
    stamps = [code_stamp(tmp_path)]
    (tmp_path / "y.txt").write_text("22")  # no code
    assert code_stamp(tmp_path) == stamps[0]
    (tmp_path / "a" / "x.py").write_text("22")
    stamps.append(code_stamp(tmp_path))
    os.utime(tmp_path / "a" / "x.py", (1, 1))
    stamps.append(code_stamp(tmp_path))
    (tmp_path / "z.py").write_text("")
    stamps.append(code_stamp(tmp_path))
    (tmp_path / "z.py").unlink()
    assert code_stamp(tmp_path) == stamps[2]
    assert len(set(stamps)) == 4
    assert {name for name, *_ in code_stamp()} >= {"workspace.py", "tasks/fingerprints.py"}


def test_data_stamps(tmp_path: Path) -> None:
    assert data_stamp(None) == data_stamp("digits") == data_stamp(f"npz:{tmp_path}/none") == []
    file = tmp_path / "d.npz"
    file.write_bytes(b"1")
    before = data_stamp(f"npz:{file}")
    file.write_bytes(b"22")
    assert data_stamp(f"npz:{file}") != before
    cat = tmp_path / "images" / "val" / "cat"
    cat.mkdir(parents=True)
    os.utime(cat, (1, 1))
    before = data_stamp(f"folder:{tmp_path / 'images'}")
    assert data_stamp(f"folder:{tmp_path / 'images'}") == before
    (cat / "new.png").write_bytes(b"")
    assert data_stamp(f"folder:{tmp_path / 'images'}") != before
    assert file_stamp("") == file_stamp("\0") == []


# ---- sessions --------------------------------------------------------------------------------


def test_the_most_recent_sessions_stay_loaded(store: Store) -> None:
    owner = Worker(store, "cpu")
    subjects = [dataclasses.replace(SUBJECT, limit=n) for n in range(1, 5)]
    first, second, third = (owner.session(s) for s in subjects[:3])
    assert owner.session(subjects[0]) is first
    owner.session(subjects[3])  # drops the least recently used one
    assert owner.session(subjects[0]) is first
    assert owner.session(subjects[2]) is third
    assert owner.session(subjects[1]) is not second


def test_changed_images_are_reloaded(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "7"
    folder.mkdir(parents=True)
    Image.new("L", (28, 28)).save(folder / "a.png")
    os.utime(folder, (1, 1))
    subject = dataclasses.replace(SUBJECT, data=f"folder:{tmp_path / 'images'}")
    owner = Worker(store, "cpu")
    loaded = owner.session(subject)
    assert owner.session(subject) is loaded
    Image.new("L", (28, 28)).save(folder / "b.png")
    assert owner.session(subject) is not loaded


# ---- changed code ----------------------------------------------------------------------------


def changing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes the code appear changed."""
    real = code_stamp()

    def change() -> None:
        monkeypatch.setattr(worker, "code_stamp", lambda: real | {("new.py", 1, 1)})

    return change


def test_old_code_runs_no_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    change = changing(monkeypatch)
    old = Worker(store, "cpu", code_stamp())
    assert not old.outdated()
    change()
    job = Workspace(SUBJECT, store).measure(None)
    old.work()  # returns at once
    assert client.find_job(store, job.id).state == "queued"
    assert old.outdated()

    started: list[list[str]] = []

    class StopError(Exception):
        pass

    def execute(program: str, arguments: list[str]) -> None:
        started.append([program, *arguments])
        raise StopError

    stamps = iter([code_stamp()])
    later = code_stamp() | {("new.py", 1, 1)}
    monkeypatch.setattr(worker, "code_stamp", lambda: next(stamps, later))
    monkeypatch.setattr(worker.os, "execv", execute)  # type: ignore[attr-defined]
    monkeypatch.setattr(worker.os, "nice", lambda by: 0)  # type: ignore[attr-defined]
    with pytest.raises(StopError):
        worker.main([str(store.folder), "cpu"])
    assert started == [
        [sys.executable, sys.executable, "-m", "psvit_core.jobs.worker", str(store.folder), "cpu"]
    ]
    with workers.worker_lock(store, "cpu") as free:
        assert free  # the new process can acquire it


@pytest.mark.slow
def test_new_code_continues_a_long_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_CHECK_SECONDS", 0.0)
    change = changing(monkeypatch)
    workspace = Workspace(dataclasses.replace(SUBJECT, limit=10), store)
    sweep = workspace.start_sweep(SweepSettings(ratios=(0.5,)))
    old = Worker(store, "cpu", code_stamp())
    real = JobRun.progress
    changed: list[int] = []

    def progress(self: Any, done: int, total: int, what: str) -> None:
        real(self, done, total, what)
        if done > total / 2 and not changed:
            changed.append(done)
            change()
            workspace.measure(None)

    run: list[int] = []  # images of a cell at a time
    add = ResultBuffer.add

    def count(self: ResultBuffer, key: str, outcome: Outcome) -> None:
        run.append(len(outcome))
        add(self, key, outcome)

    monkeypatch.setattr(ResultBuffer, "add", count)
    monkeypatch.setattr(JobRun, "progress", progress)
    old.run_job(client.find_job(store, sweep.id))
    waiting = client.find_job(store, sweep.id)
    assert waiting.state == "queued"
    assert waiting.done in range(changed[0], waiting.total)
    assert [j.state for j in workspace.jobs("measure")] == ["queued"]  # old code did not run it
    assert 0 < sum(run) < 45 * 10
    new = Worker(store, "cpu")
    new.run_job(client.find_job(store, sweep.id))
    done = client.find_job(store, sweep.id)
    assert done.state == "done"
    assert sum(run) == 45 * 10  # no image of a cell twice
    assert done.fresh < done.total - waiting.done / 2


@pytest.mark.slow
def test_a_live_worker_restarts_itself(tmp_path: Path) -> None:
    """A worker process whose code changes while it waits for work."""
    code, store = tmp_path / "code", Store(tmp_path / "cache")
    shutil.copytree(ROOT / "psvit_core", code / "psvit_core")
    with workers.log_path(store, "cpu").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "psvit_core.jobs.worker", str(store.folder), "cpu"],
            cwd=code,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(code)},
        )
    try:
        for changed in (False, True):
            if changed:
                with (code / "psvit_core" / "errors.py").open("a") as file:
                    file.write("\n# changed\n")
            params = {"subject": SUBJECT.to_dict(), "plan": None}
            job = Job(
                id=str(changed), task="measure", title="t", params=params, created=time.time()
            )
            client.save(store, job)
            deadline = time.monotonic() + JOB
            while client.find_job(store, job.id).active and time.monotonic() < deadline:
                time.sleep(0.1)
            ended = client.find_job(store, job.id)
            assert ended.state == "done", workers.log_path(store, "cpu").read_text()
            assert ended.pid == process.pid  # the same process all along
            restarts = workers.log_path(store, "cpu").read_text().count("restarting")
            assert restarts == changed
    finally:
        process.kill()
        process.wait()


# ---- what the workspace finds ----------------------------------------------------------------


def test_a_measure_job_stores_estimates(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psvit_core.estimates._PARTIAL_SECONDS", 0.0)
    workspace = Workspace(SUBJECT, store)
    plan = workspace.plan_by_hand({"stage3.stream": 0.5})
    job = workspace.measure(plan, profile=True)
    seen: list[Job] = []
    save = client.save

    def watch(store: Store, job: Job) -> Job:
        seen.append(job)
        return save(store, job)

    monkeypatch.setattr(client, "save", watch)
    Worker(store, "cpu").run_job(job)
    ended = client.find_job(store, job.id)
    assert ended.state == "done", ended.error
    estimates = [j.partial for j in seen if j.partial and j.partial.accuracy]
    assert estimates
    assert estimates[0].n_images == 5  # after the first batch
    assert estimates[0].drop is not None
    assert seen[-2].total == 40  # the baseline's images and the plan's
    assert ended.what == "images"
    found = workspace.measurement(plan)
    assert found is not None
    assert found.profile is not None
    archive = workspace.archive()
    assert archive is not None
    assert [w.policy for p in archive.points for w in p.made] == ["by hand"]


def test_jobs_of_other_versions_are_skipped(store: Store) -> None:
    others = [
        ("alien", {"document": "job", "version": 99}),
        ("future", {**Job(id="future", task="summary", title="", params={}).to_dict(), "new": 1}),
    ]
    for job_id, data in others:
        store.put(f"job/{job_id}", data)
    asked = Subject(model="x.safetensors", limit=5, batch=3, data="digits")
    for created, subject, result in (
        (3.0, {**asked.to_dict(), "later": 1}, {"summary": summary().to_dict()}),
        (2.0, asked.to_dict(), {"summary": {"document": "model_summary", "version": 0}}),
        (1.0, asked.to_dict(), {"summary": summary().to_dict()}),
    ):
        done = Job(
            id=str(created),
            task="summary",
            title="",
            state="done",
            created=created,
            params={"subject": subject},
            result=result,
        )
        client.save(store, done)
    assert len(client.list_jobs(store)) == 3
    for same in (asked, dataclasses.replace(asked, limit=None, batch=9, data=None, split="test")):
        assert Workspace(same, store).summary() == summary()
    for other in ({"checkpoint": "c"}, {"time_steps": 2}, {"num_heads": 4}, {"image_size": 64}):
        assert Workspace(dataclasses.replace(asked, **other), store).summary() is None


def test_the_shipped_summary_is_for_the_unchanged_model_only(store: Store) -> None:
    subject = Subject(model=MODEL)
    for same in ({}, {"num_heads": 8, "image_size": 32}, {"limit": 9, "data": "npz:a.npz"}):
        assert Workspace(dataclasses.replace(subject, **same), store).summary() == summary()
    for other in ({"num_heads": 1}, {"image_size": 64}, {"checkpoint": "c"}):
        assert Workspace(dataclasses.replace(subject, **other), store).summary() is None


def test_a_measurement_is_found_with_default_or_explicit_options(store: Store) -> None:
    subject = Subject(model=MODEL, limit=10)
    Worker(store, "cpu").run_job(Workspace(subject, store).measure(None))
    explicit = dataclasses.replace(subject, data="digits", batch=125, workers=2)
    for same in (subject, explicit):
        assert Workspace(same, store).measurement(None) is not None
    for other in ({"limit": 20}, {"split": "test"}, {"batch": 5}, {"precision": "float64"}):
        assert Workspace(dataclasses.replace(subject, **other), store).measurement(None) is None


def test_a_measurement_of_a_replaced_file_is_not_shown(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "images.npz"

    def write(seed: int) -> None:
        pixels = np.random.RandomState(seed).randint(256, size=(4, 28, 28), dtype=np.uint8)
        np.savez(place, images=pixels, labels=np.arange(4))
        os.utime(place, (seed, seed))

    write(1)
    workspace = Workspace(Subject(model=MODEL, data=f"npz:{place}", batch=4), store)
    work = Worker(store, "cpu")
    work.run_job(workspace.measure(None))
    old = workspace.measurement(None)
    assert old is not None
    write(2)
    assert workspace.measurement(None) is None
    job = workspace.measure(None)
    work.run_job(job)
    new = workspace.measurement(None)
    assert new is not None and new.conditions.images != old.conditions.images
    client.save(
        store,
        dataclasses.replace(
            client.find_job(store, job.id),
            params={"subject": workspace.subject.to_dict(), "plan": None},
        ),
    )
    assert workspace.measurement(None) == new  # a job of an old version has no stamps


def test_the_workspace_finds_the_sweep_of_its_subject(store: Store) -> None:
    subject = Subject(model="sdt_v1_digits")
    model, card = shipped_summary(subject.model), model_card(subject.model)
    assert model is not None

    def swept(**conditions: Any) -> str:
        how = {
            "data": "digits",
            "split": "val",
            "n_images": 30,
            "T": 4,
            "batch": 9,
            "device": "cpu",
            "precision": "float32",
            "transform": card.transform.name,
            **conditions,
        }
        ids = tuple(map(str, range(how["n_images"])))
        spec = SweepSpec(
            summary=model, criterion="l2", ratios=(0.5,), conditions=Conditions(**how), ids=ids
        )
        save_spec(store, spec)
        return spec.key

    def found(**changes: Any) -> str | None:
        return Workspace(dataclasses.replace(subject, **changes), store).sweep_key()

    two_steps = swept(T=2)
    assert found() is None
    assert found(time_steps=2) == two_steps
    larger = swept(transform=card.at(64).transform.name)
    assert found() is None
    assert found(data="npz:other") is None
    frames = swept(transform="frames", T=10)
    assert found(time_steps=4) is None
    assert found() == frames
    whole, part = swept(n_images=40), swept(n_images=20)
    assert found() == whole
    assert found(limit=20) == part
    assert found(limit=10) is None
    assert len({two_steps, larger, frames, whole, part}) == 5
    workspace = Workspace(dataclasses.replace(subject, limit=100), store)
    assert workspace.sweep_key() is None
    job = workspace.start_sweep(SweepSettings())  # of a data set that has no 100 images
    client.save(store, dataclasses.replace(job, result={"sweep_key": whole}))
    assert workspace.sweep_key() == whole


def test_an_export_stays_in_its_folder_and_is_measured_as_it_is(store: Store) -> None:
    subject = dataclasses.replace(SUBJECT, limit=5, num_heads=1, image_size=32)
    one = Worker(store, "cpu")
    described = summarize_model(one.session(subject))  # other heads are another model
    plan = plan_from_ratios(described, {"stage3.stream": 0.5}, criterion="l2")
    job = Workspace(subject, store).export(plan, "../../../../x.safetensors", measure=True)
    one.run_job(job)
    ended = client.find_job(store, job.id)
    assert ended.state == "done", ended.error
    written = ended.written
    assert written is not None
    assert Path(written.path) == store.place("exports", job.id, "x.safetensors")
    assert load_model(written.path).arguments["num_heads"] == 1
    assert Path(written.code) == store.place("exports", job.id, "x.py")
    assert 'WEIGHTS = "x.safetensors"' in Path(written.code).read_text(encoding="utf-8")
    assert written.file_measurement is not None
    assert written.file_measurement.conditions.n_images == 5


@pytest.mark.slow
def test_a_pareto_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psvit_core.kernels.lif.use_compiled", lambda: False)
    workspace = Workspace(dataclasses.replace(SUBJECT, limit=5), store)
    assert workspace.archive() is None
    settings = ParetoSettings(policies=("uniform",), savings=(0.3, 0.9999), ratios=(0.5,))
    job = workspace.start_pareto(settings)
    Worker(store, "cpu").run_job(job)
    ended = client.find_job(store, job.id)
    assert ended.state == "done", ended.error
    assert (ended.done, ended.total) == (47, 47)
    assert isinstance(ended.outcome, ParetoResult)
    assert ended.outcome.points == 1
    assert "the maximum is" in ended.outcome.unreached[0]["reason"]
    archive = workspace.archive()
    assert archive is not None
    assert archive.points[0].made[0].memory_saving == 0.3


@pytest.mark.slow
def test_each_step_after_pruning_is_measured(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psvit_core.kernels.lif.use_compiled", lambda: False)
    workspace = Workspace(SUBJECT, store)
    plan = workspace.plan_by_hand({g.group_id: 0.5 for g in summary().groups})
    recovery = RecoverySettings(method="bn", n_images=10)
    settings = FinetuneSettings(epochs=0.1, batch=8, train_images=16, augment="none")
    tuning = workspace.start_finetune(plan, settings, "tuned.safetensors", recovery)
    export = workspace.export(plan, "small.safetensors", recovery, measure=True)
    one = Worker(store, "cpu")
    results = []
    for job in (tuning, export):
        one.run_job(job)
        done = client.find_job(store, job.id)
        assert done.state == "done", done.error
        results.append(done.outcome)
    tuned, small = results
    assert isinstance(tuned, FinetuneResult) and isinstance(small, ExportResult)

    def compared(found: Measurement | None) -> Measurement:
        assert found is not None
        assert found.drop is not None and found.baseline_accuracy is not None
        return found

    pruned, recovered = compared(tuned.pruned_measurement), compared(tuned.recovered_measurement)
    assert pruned == compared(small.pruned_measurement)
    assert recovered.kl == compared(small.file_measurement).kl != pruned.kl
    report = tuned.report
    assert report is not None
    assert recovered.accuracy == report.epochs[0].val_accuracy
    best = next(r for r in report.epochs if r.epoch == report.best_epoch)
    assert compared(tuned.file_measurement).accuracy == best.val_accuracy
    archive = workspace.archive(improved=True)
    assert archive is not None
    ways = {way.recovery for point in archive.points for way in point.made}
    assert ways == {"none", "bn"}
