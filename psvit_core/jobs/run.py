"""Run one job: its task, its progress and its result."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psvit_core.errors import DataError, PsvitError
from psvit_core.files import sha256_of
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.engines import engine_of_jobs
from psvit_core.jobs.finetuning import Finetuning, write_code
from psvit_core.records import (
    Measurement,
    Partial,
    RecoverySettings,
    SensitivityTable,
    Subject,
)
from psvit_core.records.jobs import (
    CheckDataRequest,
    CheckDataResult,
    ExportRequest,
    ExportResult,
    FinetuneRequest,
    FinetuneResult,
    FitsRequest,
    FitsResult,
    GraphRequest,
    GraphResult,
    InspectRequest,
    InspectResult,
    JobRequest,
    JobResult,
    LatencyRequest,
    LatencyResult,
    MeasureRequest,
    MeasureResult,
    ParetoRequest,
    ParetoResult,
    PlanRequest,
    PlanResult,
    QuantizeRequest,
    QuantizeResult,
    ReportRequest,
    ReportResult,
    SummaryRequest,
    SummaryResult,
    SweepRequest,
    SweepResult,
)
from psvit_core.sensitivity.spec import load_spec, read_table
from psvit_core.storage.shipped import DemoStore
from psvit_core.storage.store import Store
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.fits import count_needs
from psvit_core.tasks.graph import write_graph
from psvit_core.tasks.inspect import check_data, inspect_entries
from psvit_core.tasks.latency import measure_latency
from psvit_core.tasks.matching import Matcher
from psvit_core.tasks.pareto import run_pareto
from psvit_core.tasks.plan import run_plan
from psvit_core.tasks.prune import write_pruned
from psvit_core.tasks.quantize import quantize_file
from psvit_core.tasks.session import Session, summarize_model
from psvit_core.tasks.sweep import run_sweep
from psvit_core.tasks.written import measure_written

log = logging.getLogger(__name__)

_SAVE_SECONDS = 0.3  # progress is stored at most this often


class JobRun:
    """The run of one job.

    Args:
        store: The store of jobs and results.
        job: The job, already stored as running.
        session_of: Returns the loaded session of a subject.
        between_batches: Called before each batch with the job; may raise to stop.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        session_of: Callable[[Subject], Session],
        between_batches: Callable[[Job], None],
    ) -> None:
        self.store = store
        self.job = job  # with the progress so far
        self._session_of = session_of
        self._between_batches = between_batches
        self._saved = 0.0  # time of the last stored progress
        self._n_batches = 0  # that this run has begun
        self._n_reported = 0  # of them at the last step
        self._first = 0  # images of a measurement when its pace began to count
        self._sweep_key = ""
        self._said: list[str] = []  # by the task, with ``Session.warn``

    def run(self) -> JobResult:
        """Run the task.

        Raises:
            RecordError: If another version wrote the request.
            ClusterError: If the choice of where jobs run cannot be read.
            UnknownNameError: If the job's ``PSVIT_ENGINE`` names an unknown engine.
        """
        request = self.job.read_request()
        session = self._session_of(Subject.from_dict(self.job.params.get("subject")))
        runs: dict[type[JobRequest], Callable[[Session, Any], JobResult]] = {
            SummaryRequest: self._summary,
            InspectRequest: self._inspect,
            CheckDataRequest: self._check_data,
            MeasureRequest: self._measure,
            SweepRequest: self._sweep,
            PlanRequest: self._plan,
            ParetoRequest: self._pareto,
            ExportRequest: self._export,
            QuantizeRequest: self._quantize,
            GraphRequest: self._graph,
            ReportRequest: self._report,
            FinetuneRequest: self._finetune,
            FitsRequest: _fits,
            LatencyRequest: self._latency,
        }
        # The session outlives the job, and may be that of a job which this one interrupts.
        engine, warn = session.engine, session.warn
        session.engine, session.warn = engine_of_jobs(self.store, self.job.engine), self._remark
        try:
            return runs[type(request)](session, request)
        finally:
            session.engine, session.warn = engine, warn

    def warnings(self, session: Session) -> tuple[str, ...]:
        """Return the warnings that hold for a session, and what the task said, each once."""
        return tuple(dict.fromkeys((*session.warnings, *self._said)))

    def _remark(self, text: str) -> None:
        log.warning("%s", text)
        self._said.append(text)

    def tick(self) -> None:
        """Count a batch that is about to run; stop the job if the user cancelled it."""
        self._n_batches += 1
        self._between_batches(self.job)

    def progress(self, done: int, total: int, what: str) -> None:
        """Update the job's progress; a ``Progress`` callback."""
        n_steps = max(done - self.job.done, 0)  # 0: a message within a step
        computed = self._n_batches > self._n_reported  # otherwise the step came from the store
        fresh, paced = self.job.fresh, self.job.paced
        if n_steps:
            self._n_reported = self._n_batches
        if n_steps and computed:
            # The first step may include an earlier run's work, so it only starts the clock.
            fresh, paced = (1, time.time()) if paced is None else (fresh + n_steps, paced)
        self.job = dataclasses.replace(
            self.job, done=done, total=total, what=what, fresh=fresh, paced=paced
        )
        now = time.monotonic()
        if now - self._saved >= _SAVE_SECONDS or done == total:
            self._saved = now
            client.save(self.store, self.job)

    def _estimate(self, partial: Partial) -> None:
        """Store the estimates of a running measurement; they come too rarely to skip any."""
        what = "images" if partial.accuracy else "images of the unpruned model"
        if self.job.paced is None:
            self._first = partial.done
        self.job = dataclasses.replace(
            self.job,
            partial=partial,
            done=partial.done,
            total=partial.total,
            what=what,
            fresh=1 + partial.done - self._first,
            paced=self.job.paced or time.time(),
        )
        client.save(self.store, self.job)

    def _save_result(self, so_far: JobResult) -> None:
        self.job = dataclasses.replace(self.job, result=so_far.to_dict())
        client.save(self.store, self.job)

    # ---- one function per task -----------------------------------------------------------------

    def _summary(self, session: Session, request: SummaryRequest) -> SummaryResult:
        return SummaryResult(summary=summarize_model(session))

    def _inspect(self, session: Session, request: InspectRequest) -> InspectResult:
        return InspectResult(report=inspect_entries(request.path, self.tick, request.entry))

    def _check_data(self, session: Session, request: CheckDataRequest) -> CheckDataResult:
        return CheckDataResult(report=check_data(session, self.tick))

    def _measure(self, session: Session, request: MeasureRequest) -> MeasureResult:
        found = evaluate(
            session,
            request.plan,
            self.tick,
            profile=request.profile,
            partial=self._estimate,
            predicted=request.predicted,
            pruned=self._pruned,
        )
        so_far = MeasureResult.read(self.job.result)
        return dataclasses.replace(so_far, measurement=found, pruned=None)

    def _pruned(self, plain: Measurement) -> None:
        """Store what is known of a measured plan while its recovery runs."""
        self.job = dataclasses.replace(self.job, what="recovering", done=0, total=0)
        self._save_result(MeasureResult(pruned=plain, pruned_at=time.time()))

    def _sweep(self, session: Session, request: SweepRequest) -> SweepResult:
        table = run_sweep(session, request.settings, self._sweep_started, self.progress, self.tick)
        return SweepResult(
            sweep_key=self._sweep_key, cells=len(table.rows), warnings=self.warnings(session)
        )

    def _sweep_started(self, sweep_key: str) -> None:
        self._sweep_key = sweep_key
        self._save_result(SweepResult(sweep_key=sweep_key))

    def _plan(self, session: Session, request: PlanRequest) -> PlanResult:
        table = _finished_table(self.store, request.sweep_key)
        plan, measurement = run_plan(session, table, request.settings, self.progress, self.tick)
        return PlanResult(plan=plan, measurement=measurement)

    def _pareto(self, session: Session, request: ParetoRequest) -> ParetoResult:
        table = _finished_table(self.store, request.sweep_key) if request.sweep_key else None
        archive = run_pareto(session, request.settings, table, self.progress, self.tick)
        return ParetoResult(
            points=len(archive.points), unreached=tuple(u.to_dict() for u in archive.unreached)
        )

    def _export(self, session: Session, request: ExportRequest) -> ExportResult:
        plan, out = request.plan, self._out_path(request.file_name)
        recovery, reasons = request.recovery, []
        if request.default_recovery:
            recovery, reason = session.available_recovery(RecoverySettings(method="auto"))
            reasons += [f"Pruned without recovery: {reason}."] if reason else []
        path, report = write_pruned(session, plan, out, recovery, self.tick)
        plain = found = None
        if request.measure:
            try:
                plain, found = measure_written(session, plan, path, self.tick)
            except DataError as error:  # the file is written, and needs no images
                reasons.append(f"Not measured: {error}")
        return ExportResult(
            path=str(path),
            bytes=path.stat().st_size,
            sha256=sha256_of(path),
            code=write_code(path),
            recovery=report,
            pruned_measurement=plain,
            file_measurement=found,
            warnings=tuple(reasons),
        )

    def _quantize(self, session: Session, request: QuantizeRequest) -> QuantizeResult:
        out = self._out_path(request.file_name)
        done = quantize_file(session, request.path, request.kind, out, self.tick)
        size, code = out.stat().st_size, write_code(out)
        return dataclasses.replace(done, bytes=size, sha256=sha256_of(out), code=code)

    def _graph(self, session: Session, request: GraphRequest) -> GraphResult:
        out = self._out_path(request.file_name)
        report = write_graph(session, request.path, out)
        return GraphResult(
            path=str(out), bytes=out.stat().st_size, sha256=sha256_of(out), report=report
        )

    def _report(self, session: Session, request: ReportRequest) -> ReportResult:
        from psvit_core.report import collect, write_page  # jinja2 loads slowly

        subject = session.subject
        with_shipped = DemoStore(self.store.folder)
        found = collect(
            with_shipped,
            subject,
            Matcher(subject).shipped_summary() or summarize_model(session),
            plan=request.plan,
            recovery=request.recovery,
            jobs=client.list_jobs(with_shipped),
        )
        with_shipped.close()
        path = write_page(found, self._out_path(request.file_name))
        return ReportResult(
            path=str(path),
            bytes=path.stat().st_size,
            sha256=sha256_of(path),
            missing=found.missing,
        )

    def _latency(self, session: Session, request: LatencyRequest) -> LatencyResult:
        table = measure_latency(session, request.batch, self.progress, self.tick)
        return LatencyResult(table=table)

    def _out_path(self, file_name: str) -> Path:
        """Return the path of the file to write: in the job's own folder, whatever the name."""
        return self.store.place("exports", self.job.id, Path(file_name).name)

    def _finetune(self, session: Session, request: FinetuneRequest) -> FinetuneResult:
        return Finetuning(self, request, self._save_result).run(
            session, self._out_path(request.file_name)
        )


def _finished_table(store: Store, sweep_key: str) -> SensitivityTable:
    """Return the table of a finished sweep, which may be one that ships with a model."""
    with_shipped = DemoStore(store.folder)
    table = read_table(with_shipped, load_spec(with_shipped, sweep_key))
    with_shipped.close()
    if table is None or not table.finished:
        raise PsvitError("The sweep is not finished. Wait until it is, then plan.")
    return table


def _fits(session: Session, request: FitsRequest) -> FitsResult:
    unpruned, pruned = count_needs(session, request.plan)
    return FitsResult(unpruned=unpruned, pruned=pruned)
