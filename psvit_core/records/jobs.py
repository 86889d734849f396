"""Requests to the background worker and their results: one pair of records per task.

A job stores both as JSON (``psvit_core.jobs.client.Job``). A request must be readable in full to be
run. A result is read field by field: one field of another version leaves the others readable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from psvit_core.errors import RecordError
from psvit_core.records._base import Interval, Record
from psvit_core.records.fits import FitReport
from psvit_core.records.latency import LatencyTable
from psvit_core.records.model import ModelSummary, PrunePlan
from psvit_core.records.reports import DataReport, FileReport
from psvit_core.records.results import Measurement
from psvit_core.records.settings import (
    ParetoSettings,
    PlanSettings,
    RecoverySettings,
    SweepSettings,
)
from psvit_core.records.training import FinetuneReport, FinetuneSettings, RecoveryReport


@dataclass(frozen=True, kw_only=True)
class FileStamps(Record):
    """Sizes and times of a job's files when it was submitted; they show later changes."""

    model: tuple[float, ...] = ()
    data: tuple[float, ...] = ()


# ---- requests --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JobRequest(Record):
    """Base of all requests: the input of a task, next to the job's subject."""

    task: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class SummaryRequest(JobRequest):
    """Describe the model."""

    task = "summary"


@dataclass(frozen=True, kw_only=True)
class InspectRequest(JobRequest):
    """Inspect a checkpoint file."""

    task = "inspect"

    path: str
    entry: str | None = None  # state dict to inspect; None: the usual one
    stamp: tuple[float, ...] = ()  # size and time of the file at submission; () in older jobs


@dataclass(frozen=True, kw_only=True)
class CheckDataRequest(JobRequest):
    """Count the subject's images and decode some."""

    task = "check_data"


@dataclass(frozen=True, kw_only=True)
class MeasureRequest(JobRequest):
    """Measure the model or a plan."""

    task = "measure"

    plan: PrunePlan | None = None  # None: the unpruned model
    profile: bool = False  # also measure run-time memory and latency
    predicted: Interval | None = None  # drop predicted before, pp; kept with the measurement


@dataclass(frozen=True, kw_only=True)
class SweepRequest(JobRequest):
    """Run a sweep."""

    task = "sweep"

    settings: SweepSettings


@dataclass(frozen=True, kw_only=True)
class PlanRequest(JobRequest):
    """Choose a plan and measure it."""

    task = "plan"

    sweep_key: str  # store key of the finished sweep to plan from
    settings: PlanSettings


@dataclass(frozen=True, kw_only=True)
class ParetoRequest(JobRequest):
    """Measure policies x targets for the archive."""

    task = "pareto"

    settings: ParetoSettings
    sweep_key: str | None = None  # None: run a sweep first


@dataclass(frozen=True, kw_only=True)
class ExportRequest(JobRequest):
    """Prune, recover and write a checkpoint."""

    task = "export"

    plan: PrunePlan
    file_name: str
    recovery: RecoverySettings | None = None
    default_recovery: bool = False  # recover as by default, in place of ``recovery``
    measure: bool = False  # also measure the plan alone and the written file


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest(JobRequest):
    """Prune, recover, train and write a checkpoint."""

    task = "finetune"

    settings: FinetuneSettings
    file_name: str
    plan: PrunePlan | None = None  # None: the model is a pruned file
    recovery: RecoverySettings | None = None
    trials: tuple[FinetuneSettings, ...] = ()  # to keep the best of; empty: ``settings`` alone


@dataclass(frozen=True, kw_only=True)
class GraphRequest(JobRequest):
    """Write a checkpoint's network as an ONNX file, and check that."""

    task = "graph"

    path: str  # the checkpoint, which a job wrote
    file_name: str


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest(JobRequest):
    """Write a checkpoint's network with weights in fewer bits, and measure it."""

    task = "quantize"

    path: str  # the checkpoint, which a job wrote
    file_name: str
    kind: str = "int8"  # one of ``STORED_WEIGHTS``


@dataclass(frozen=True, kw_only=True)
class ReportRequest(JobRequest):
    """Write what is stored of a run as one HTML page."""

    task = "report"

    file_name: str
    plan: PrunePlan | None = None  # None: as ``report.collect`` chooses
    recovery: str | None = None  # of the numbers; None: as ``report.collect`` chooses


@dataclass(frozen=True, kw_only=True)
class FitsRequest(JobRequest):
    """Count the bytes that the model needs to run, unpruned and pruned by a plan."""

    task = "fits"

    plan: PrunePlan | None = None  # None: only the unpruned model


@dataclass(frozen=True, kw_only=True)
class LatencyRequest(JobRequest):
    """Time the model's layers at a grid of widths."""

    task = "latency"

    batch: int = 1  # images that run at once


# ---- results ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JobResult(Record):
    """Base of all results; every field has a default for jobs that do not have it (yet)."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """Return the fields in ``data`` that this version can read; others keep their defaults."""
        found: dict[str, Any] = {}
        for name in (f.name for f in dataclasses.fields(cls) if f.name in data):
            try:
                found[name] = getattr(cls.from_dict({name: data[name]}), name)
            except RecordError:  # another version wrote this field
                continue
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class SummaryResult(JobResult):
    """Result of ``SummaryRequest``."""

    summary: ModelSummary | None = None


@dataclass(frozen=True, kw_only=True)
class InspectResult(JobResult):
    """Result of ``InspectRequest``."""

    report: FileReport | None = None


@dataclass(frozen=True, kw_only=True)
class CheckDataResult(JobResult):
    """Result of ``CheckDataRequest``."""

    report: DataReport | None = None


@dataclass(frozen=True, kw_only=True)
class MeasureResult(JobResult):
    """Result of ``MeasureRequest``."""

    measurement: Measurement | None = None
    pruned: Measurement | None = None  # without recovery, while the recovery runs
    pruned_at: float | None = None  # when that was known, seconds since the epoch


@dataclass(frozen=True, kw_only=True)
class SweepResult(JobResult):
    """Result of ``SweepRequest``."""

    sweep_key: str = ""  # of the sweep in the store; set before the first cell runs
    cells: int = 0
    warnings: tuple[str, ...] = ()  # why the numbers may be wrong


@dataclass(frozen=True, kw_only=True)
class PlanResult(JobResult):
    """Result of ``PlanRequest``."""

    plan: PrunePlan | None = None
    measurement: Measurement | None = None


@dataclass(frozen=True, kw_only=True)
class ParetoResult(JobResult):
    """Result of ``ParetoRequest``; the plans themselves are in the archive."""

    points: int = 0  # plans in the archive
    unreached: tuple[dict[str, Any], ...] = ()  # ``pareto.Unreached`` as JSON data


@dataclass(frozen=True, kw_only=True)
class WrittenModel(JobResult):
    """A checkpoint that a job wrote, a network in another format, or a page about it."""

    path: str = ""  # empty while the job runs
    bytes: int = 0  # size of the file
    sha256: str = ""
    code: str = ""  # Python file that runs it without this program; empty if there is none
    recovery: RecoveryReport | None = None
    pruned_measurement: Measurement | None = None  # of the plan alone
    file_measurement: Measurement | None = None  # of the written file


@dataclass(frozen=True, kw_only=True)
class ExportResult(WrittenModel):
    """Result of ``ExportRequest``."""

    warnings: tuple[str, ...] = ()  # what was asked for and could not be done


@dataclass(frozen=True, kw_only=True)
class GraphResult(WrittenModel):
    """Result of ``GraphRequest``; ``path`` is the ONNX file."""

    report: str = ""  # how it compares with the network in torch, as lines of text


@dataclass(frozen=True, kw_only=True)
class QuantizeResult(WrittenModel):
    """Result of ``QuantizeRequest``; ``file_measurement`` is paired with the unpruned network."""

    kind: str = ""  # one of ``STORED_WEIGHTS``
    weights_bytes: int = 0  # that inference reads, as stored
    float32_bytes: int = 0  # of the same tensors in float32
    memory_saving: float = 0.0  # against the unpruned network in float32
    against_float32: Measurement | None = None  # paired with the same network in float32
    warnings: tuple[str, ...] = ()  # what was asked for and could not be done


@dataclass(frozen=True, kw_only=True)
class ReportResult(WrittenModel):
    """Result of ``ReportRequest``; ``path`` is the page."""

    missing: tuple[str, ...] = ()  # parts that the store does not have


@dataclass(frozen=True, kw_only=True)
class FitsResult(JobResult):
    """Result of ``FitsRequest``."""

    unpruned: FitReport | None = None
    pruned: FitReport | None = None  # None without a plan


@dataclass(frozen=True, kw_only=True)
class LatencyResult(JobResult):
    """Result of ``LatencyRequest``."""

    table: LatencyTable | None = None  # of the worker's machine


@dataclass(frozen=True, kw_only=True)
class FinetuneResult(WrittenModel):
    """Result of ``FinetuneRequest``; ``path`` is the best epoch's model."""

    records: str = ""  # file with the training curve, set before training starts
    last_path: str = ""  # the last epoch's model
    report: FinetuneReport | None = None
    recovered_measurement: Measurement | None = None  # after recovery, before training
    trials: tuple[FinetuneReport, ...] = ()  # those that have ended, if several are tried
    warnings: tuple[str, ...] = ()  # such as trainings that were left out


#: The request and the result of every task.
TASKS: dict[str, tuple[type[JobRequest], type[JobResult]]] = {
    request.task: (request, result)
    for request, result in (
        (SummaryRequest, SummaryResult),
        (InspectRequest, InspectResult),
        (CheckDataRequest, CheckDataResult),
        (MeasureRequest, MeasureResult),
        (SweepRequest, SweepResult),
        (PlanRequest, PlanResult),
        (ParetoRequest, ParetoResult),
        (ExportRequest, ExportResult),
        (GraphRequest, GraphResult),
        (QuantizeRequest, QuantizeResult),
        (ReportRequest, ReportResult),
        (FinetuneRequest, FinetuneResult),
        (FitsRequest, FitsResult),
        (LatencyRequest, LatencyResult),
    )
}
