"""Typed requests and results of jobs, as this and other versions stored them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from psvit_core.errors import RecordError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import PrunePlan, RecoverySettings, Subject, SweepSettings
from psvit_core.records.jobs import (
    TASKS,
    ExportRequest,
    ExportResult,
    FileStamps,
    FitsRequest,
    GraphRequest,
    InspectRequest,
    JobRequest,
    LatencyRequest,
    MeasureRequest,
    QuantizeRequest,
    ReportRequest,
    SummaryRequest,
    SweepRequest,
    SweepResult,
)
from psvit_core.storage.store import Store

PLAN = PrunePlan(
    model="m", weights_hash="w", criterion="l2", policy="uniform", kept={"a": (0, 2), "b": (1,)}
)


def job(task: str, params: dict[str, Any], **more: Any) -> Job:
    return Job(id="a", task=task, title="", params=params, **more)


def test_every_task_has_a_request_and_a_result() -> None:
    assert set(TASKS) == set(client.KINDS)
    for task, (request, result) in TASKS.items():
        assert request.task == task
        assert result() == result.read({})


@pytest.mark.parametrize(
    "request_",
    [
        SummaryRequest(),
        InspectRequest(path="x.pth"),
        MeasureRequest(plan=PLAN, profile=True),
        SweepRequest(settings=SweepSettings(ratios=(0.5,))),
        ExportRequest(plan=PLAN, file_name="x", recovery=RecoverySettings(method="bn")),
        GraphRequest(path="x.safetensors", file_name="x.onnx"),
        QuantizeRequest(path="x.safetensors", file_name="y.safetensors", kind="bfloat16"),
        ReportRequest(plan=PLAN, file_name="x.html", recovery="lsq"),
        FitsRequest(plan=PLAN),
        LatencyRequest(batch=2),
    ],
)
def test_a_submitted_request_is_read_back(
    request_: JobRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ensure_worker", lambda *_: None)
    store, subject = Store(tmp_path), Subject(limit=5)
    sent = client.submit(store, "title", subject, request_)
    assert client.submit(store, "title", subject, request_).id == sent.id  # not queued twice
    assert client.submit(store, "title", Subject(limit=6), request_).id != sent.id
    found = client.find_job(store, sent.id)
    assert (found.task, found.subject, found.request) == (request_.task, subject, request_)
    assert found.stamps == FileStamps()
    assert found.plan == (PLAN if "plan" in request_.to_dict() else None)


def test_jobs_of_old_versions_are_read() -> None:
    subject = {"model": "m", "limit": 5}
    old = job("measure", {"subject": subject, "plan": None})
    assert (old.subject, old.stamps) == (Subject(model="m", limit=5), None)
    assert (old.request, old.measurement, old.written) == (MeasureRequest(), None, None)
    export = job("export", {"plan": json.loads(json.dumps(PLAN.to_dict())), "file_name": "x"})
    assert export.request == ExportRequest(plan=PLAN, file_name="x")
    assert job("sweep", {}, result={"sweep_key": "k"}).outcome == SweepResult(sweep_key="k")


def test_jobs_of_other_versions_give_none() -> None:
    later = job("measure", {"subject": {"later": 1}, "plan": None, "later": 1})
    assert (later.subject, later.request) == (None, None)
    with pytest.raises(RecordError, match="later"):
        later.read_request()
    unknown = job("dream", {"subject": {}})
    assert (unknown.request, unknown.outcome) == (None, None)
    with pytest.raises(RecordError, match=r"Unknown task .dream.\. Known: summary"):
        unknown.read_request()


def test_one_foreign_field_of_a_result_leaves_the_others() -> None:
    foreign = {"document": "measurement", "version": 99}
    result = {"path": "x", "bytes": 4, "file_measurement": foreign, "later": 1}
    done = job("export", {}, state="done", result=result)
    assert done.written == ExportResult(path="x", bytes=4)
    assert job("export", {}, state="failed", result=result).written is None
