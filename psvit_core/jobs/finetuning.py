"""Run the job of a fine-tuning, and store its partial results while it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.files import sha256_of
from psvit_core.jobs import client
from psvit_core.records import FinetuneReport
from psvit_core.records.jobs import FinetuneRequest, FinetuneResult, JobResult
from psvit_core.tasks.finetune import (
    FinetuneCallbacks,
    FinetuneTask,
    WrittenFinetuning,
    run_finetune,
)
from psvit_core.tasks.session import Session

if TYPE_CHECKING:
    from psvit_core.jobs.run import JobRun


class Finetuning:
    """The run of a fine-tuning, which stores partial results.

    Args:
        job_run: The run of the job.
        request: The job's request.
        save: Stores the result so far.
    """

    def __init__(
        self, job_run: JobRun, request: FinetuneRequest, save: Callable[[JobResult], None]
    ) -> None:
        self._run, self._request, self._save = job_run, request, save
        self._curve = ""
        self._trials: dict[str, FinetuneReport] = {}  # that have ended, by their settings

    def run(self, session: Session, out: Path) -> FinetuneResult:
        """Prune, recover and train, unless an earlier process has written the file."""
        known = FinetuneResult.read(self._run.job.result)
        if known.sha256 and Path(known.path).exists():
            return known  # the process was killed before it stored the job's end
        request, store, job_id = self._request, self._run.store, self._run.job.id
        task = FinetuneTask(
            settings=request.settings,
            out=out,
            plan=request.plan,
            recovery=request.recovery,
            trials=request.trials,
        )
        callbacks = FinetuneCallbacks(
            started=self._curve_started,
            progress=self._run.progress,
            tick=self._run.tick,
            stop=lambda: client.stop_requested(store, job_id),
            trial_ended=self._trial_ended,
            finished=lambda done: self._finished(session, done),
        )
        run_finetune(session, task, callbacks)
        return FinetuneResult.read(self._run.job.result)

    def _curve_started(self, curve: Path) -> None:
        self._curve = str(curve)
        self._save_trials()

    def _trial_ended(self, report: FinetuneReport) -> None:
        if self._request.trials:
            self._trials[str(report.settings.to_dict())] = report
            self._save_trials()

    def _save_trials(self) -> None:
        self._save(FinetuneResult(records=self._curve, trials=tuple(self._trials.values())))

    def _finished(self, session: Session, done: WrittenFinetuning) -> None:
        run = self._run
        result = _finetune_result(str(done.curve or self._curve), done)
        self._save(dataclasses.replace(result, warnings=run.warnings(session)))
        run.store.put(client.PREFIX + run.job.id, run.job.to_dict())  # survives a power cut


def _finetune_result(curve: str, done: WrittenFinetuning) -> FinetuneResult:
    return FinetuneResult(
        records=curve,
        path=str(done.out),
        last_path=str(done.last),
        bytes=done.out.stat().st_size,
        sha256=sha256_of(done.out),
        code=write_code(done.out),
        recovery=done.recovery,
        report=done.report,
        trials=done.trials,
        pruned_measurement=done.plain,
        recovered_measurement=done.recovered,
        file_measurement=done.measurement,
    )


def write_code(path: Path) -> str:
    """Write the Python file of a pruned file; return its path, empty if there can be none."""
    from psvit_core.export import write_definition

    return str(write_definition(path) or "")
