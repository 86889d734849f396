"""Warnings in the results of jobs: each names what concerns it, and no other job's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from psvit_core.jobs import client
from psvit_core.jobs.run import JobRun
from psvit_core.records import FinetuneSettings, Subject
from psvit_core.records.jobs import (
    FinetuneRequest,
    FinetuneResult,
    JobRequest,
    JobResult,
    MeasureRequest,
    MeasureResult,
)
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session
from tests.tiny import random_plan

SUBJECT = Subject(model="sdt_v1_digits", limit=10)
SETTINGS = FinetuneSettings(epochs=1, batch=8, train_images=16, augment="none", teacher="none")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(client, "ensure_worker", lambda *_, **__: None)
    return Session(SUBJECT, Store(tmp_path))


def run_job(session: Session, request: JobRequest) -> JobResult:
    job = client.submit(session.store, "t", SUBJECT, request)
    return JobRun(session.store, job, lambda _: session, lambda _: None).run()


def test_what_a_training_says_is_in_its_own_result_only(session: Session) -> None:
    session.caution("Half of the images are blank.")
    trials = tuple(dataclasses.replace(SETTINGS, alpha=alpha) for alpha in (0.2, 0.4))
    trained = run_job(
        session,
        FinetuneRequest(
            settings=SETTINGS,
            file_name="a.safetensors",
            plan=random_plan(session.model, 0),
            trials=trials,
        ),
    )
    assert isinstance(trained, FinetuneResult)
    of_session, left_out = trained.warnings
    assert of_session == "Half of the images are blank."
    assert left_out.startswith("1 of 2 trainings were left out")

    measured = run_job(session, MeasureRequest())
    assert isinstance(measured, MeasureResult) and measured.measurement is not None
    assert measured.measurement.warnings == (of_session,)
