"""The detached worker: ``python -m psvit_core.jobs.worker STORE DEVICE``.

Takes queued jobs one after the other, short ones also between two batches of a long one, and stays
for a while with the model loaded. One per device and store, by a file lock.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psvit_core.demo import DemoStore
from psvit_core.errors import CancelledError, PsvitError
from psvit_core.jobs import client
from psvit_core.jobs.client import SHORT, Job
from psvit_core.jobs.engine import (
    Engine,
    PlanSettings,
    RecoverySettings,
    Subject,
    SweepSettings,
    summarize_model,
    warm_up,
)
from psvit_core.jobs.fronts import ParetoSettings, run_pareto
from psvit_core.jobs.improved import measure_file
from psvit_core.jobs.opening import check_data, inspect_file
from psvit_core.jobs.planning import run_plan
from psvit_core.jobs.stamps import CodeStamp, code_stamp, data_stamp, model_stamp
from psvit_core.jobs.tasks import evaluate, prune, run_sweep
from psvit_core.jobs.tuning import run_finetune
from psvit_core.records import FinetuneSettings, Partial, PrunePlan, SensitivityTable
from psvit_core.sensitivity.table import load_spec, read_table
from psvit_core.store import Store, digest

log = logging.getLogger("psvit.worker")

IDLE_SECONDS = 900.0  # how long a worker without work keeps its model loaded
_POLL_SECONDS = 0.2
_LOCK_SECONDS = 2.0  # a client that looks whether a worker is there holds the lock for a moment
_SAVE_SECONDS = 0.3  # progress is written at most this often
_LOOK_SECONDS = 0.2  # between batches, look for cancelling and short jobs at most this often
_ENGINES = 3  # loaded models with their images that are kept
_NICE = 10  # the browser and the app come first


class OutdatedError(Exception):
    """The code on the disk is no longer the code that this process runs."""


def main(arguments: list[str]) -> None:
    """Work until nothing has come for ``IDLE_SECONDS``.

    When the code on the disk has changed, the process starts itself anew before it takes a job:
    jobs are written by the code that submits them.
    """
    folder, device, *warm = arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.nice(max(0, _NICE - os.nice(0)))  # once, however often the process starts itself anew
    store, code = Store(folder), code_stamp()
    while True:
        with client.worker_lock(store, device, timeout=_LOCK_SECONDS) as free:
            if not free:
                return
            from psvit_core.runtime import use_default_threads

            use_default_threads()
            worker = Worker(store, device, code)
            worker.work(Subject.from_dict(json.loads(warm[0])) if warm else None)
        if worker.outdated() and _waiting(store, device):
            log.info("the code has changed: starting anew")
            command = [sys.executable, "-m", "psvit_core.jobs.worker", *arguments]
            os.execv(sys.executable, command)
        # A job may have come after the last look and before the lock was free again.
        if not _waiting(store, device):
            return


def _waiting(store: Store, device: str, tasks: tuple[str, ...] = client.KINDS) -> list[Job]:
    jobs = (j for j in client.list_jobs(store) if j.state == "queued" and j.device == device)
    short_first = sorted(jobs, key=lambda j: (j.task not in SHORT, j.created))
    return [job for job in short_first if job.task in tasks]


class Worker:
    """One process's work on one device.

    Args:
        store: Where jobs and results are kept.
        device: Whose jobs it takes.
        code: Stamp of the code that this process runs; that on the disk when None.
    """

    def __init__(self, store: Store, device: str, code: CodeStamp | None = None) -> None:
        self.store = store
        self.device = device
        self._code = code or code_stamp()
        self._engines: dict[str, tuple[list[float], Engine]] = {}  # the one used last at the end
        self._looked = 0.0

    def outdated(self) -> bool:
        """Whether the code on the disk is no longer the one that this process runs."""
        return code_stamp() != self._code

    def work(self, warm: Subject | None = None) -> None:
        """Run jobs until idle for long, or until there is one and the code has changed.

        While none waits, it gets ready for jobs on ``warm``.
        """
        last = time.monotonic()
        steps = warm_up(self.engine(warm)) if warm else iter(())
        while time.monotonic() - last < IDLE_SECONDS:
            waiting = _waiting(self.store, self.device)
            if waiting:
                if self.outdated():
                    return
                self.run_job(waiting[0])
                last = time.monotonic()
            elif not self._get_ready(steps):
                time.sleep(_POLL_SECONDS)

    def _get_ready(self, steps: Iterator[str]) -> bool:
        """Take the next step of getting ready; whether there was one."""
        try:
            step = next(steps, None)
        except PsvitError as error:  # whoever asks for this model is told by the job
            log.warning("not warm: %s", error)
            return False
        if step:
            log.info("warm: %s", step)
        return step is not None

    def run_job(self, job: Job) -> None:
        """Run one job to its end and keep how it ended."""
        job = dataclasses.replace(
            job, state="running", started=time.time(), pid=os.getpid(),
            pid_started=client.process_started(os.getpid()), fresh=0,
            paced=None,
        )  # fmt: skip
        runner = _Runner(self, client.save(self.store, job))
        log.info("%s %s: start", job.id, job.title)
        try:
            result = runner.run()
            ended = dataclasses.replace(runner.job, state="done", result=result)
        except OutdatedError:  # back into the queue, for the new code
            client.save(self.store, dataclasses.replace(runner.job, state="queued", partial=None))
            return
        except CancelledError:
            ended = dataclasses.replace(runner.job, state="cancelled")
        except PsvitError as error:
            ended = dataclasses.replace(runner.job, state="failed", error=str(error))
        except Exception as error:  # a defect or lack of memory: tell it and live on
            log.error("%s", traceback.format_exc())
            text = f"{type(error).__name__}: {error}. The whole story is in the log."
            ended = dataclasses.replace(runner.job, state="failed", error=text)
        client.save(self.store, dataclasses.replace(ended, ended=time.time()))
        log.info("%s %s: %s %s", job.id, job.title, ended.state, ended.error)

    def engine(self, subject: Subject) -> Engine:
        """The loaded model and images of a subject; the last few are kept for the next jobs.

        One whose checkpoint or images have changed on the disk is loaded anew.
        """
        key = digest(subject.to_dict())
        stamp = [*model_stamp(subject), *data_stamp(subject.data)]
        known = self._engines.pop(key, None)
        if known is None or known[0] != stamp:
            while len(self._engines) >= _ENGINES:
                self._engines.pop(next(iter(self._engines)))
            known = (stamp, Engine(subject, self.store))
        self._engines[key] = known
        return known[1]

    def look(self, job: Job) -> None:
        """Between batches: stop a cancelled job, let short ones in."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if client.cancel_asked(self.store, job.id):
            raise CancelledError(f"{job.title} was cancelled.")
        if job.task not in SHORT:
            for short in _waiting(self.store, self.device, SHORT):
                if self.outdated():
                    raise OutdatedError("The code has changed; the job goes on with the new one.")
                self.run_job(short)


class _Runner:
    """One job's run: its task, its progress."""

    def __init__(self, worker: Worker, job: Job) -> None:
        self.worker = worker
        self.job = job
        self._saved = 0.0
        self._work = 0
        self._counted = 0
        self._first = 0  # images of a measurement when its pace began to count

    def run(self) -> dict[str, Any]:
        """Run the task; returns what is kept as the job's result."""
        params = self.job.params
        engine = self.worker.engine(Subject.from_dict(params["subject"]))
        return {
            "summary": self._summary,
            "inspect": self._inspect,
            "check_data": self._check_data,
            "measure": self._measure,
            "sweep": self._sweep,
            "plan": self._plan,
            "pareto": self._pareto,
            "export": self._export,
            "finetune": self._finetune,
        }[self.job.task](engine, params)

    def tick(self) -> None:
        """Called before each batch."""
        self._work += 1
        self.worker.look(self.job)

    def progress(self, done: int, total: int, what: str) -> None:
        """Called after each step."""
        step = max(done - self.job.done, 0)  # 0: it only says what goes on within a step
        worked = self._work > self._counted  # else no batch was run: it came from the store
        fresh, paced = self.job.fresh, self.job.paced
        if step:
            self._counted = self._work
        if step and worked:
            # The first step may hold all that an earlier run has done: it only starts the clock.
            fresh, paced = (1, time.time()) if paced is None else (fresh + step, paced)
        self.job = dataclasses.replace(
            self.job, done=done, total=total, what=what, fresh=fresh, paced=paced
        )
        now = time.monotonic()
        if now - self._saved >= _SAVE_SECONDS or done == total:
            self._saved = now
            client.save(self.worker.store, self.job)

    def _summary(self, engine: Engine, params: dict[str, Any]) -> dict[str, Any]:
        return {"summary": summarize_model(engine).to_dict()}

    def _inspect(self, engine: Engine, params: dict[str, Any]) -> dict[str, Any]:
        return {"report": inspect_file(params["path"], self.tick).to_dict()}

    def _check_data(self, engine: Engine, params: dict[str, Any]) -> dict[str, Any]:
        return {"report": check_data(engine, self.tick).to_dict()}

    def _measure(self, engine: Engine, params: dict[str, Any]) -> dict[str, Any]:
        plan = PrunePlan.from_dict(params["plan"]) if params.get("plan") else None
        found = evaluate(
            engine, plan, self.tick, profile=bool(params.get("profile")), partial=self._partial
        )
        return {"measurement": found.to_dict()}

    def _partial(self, partial: Partial) -> None:
        what = "images" if partial.accuracy else "images of the unpruned model"
        if self.job.paced is None:
            self._first = partial.done
        self.job = dataclasses.replace(
            self.job, partial=partial, done=partial.done, total=partial.total, what=what,
            fresh=1 + partial.done - self._first, paced=self.job.paced or time.time(),
        )  # fmt: skip
        client.save(self.worker.store, self.job)  # they come seldom enough to be kept all

    def _sweep(self, engine: Engine, params: dict[str, Any]) -> dict[str, Any]:
        settings = SweepSettings.from_dict(params["settings"])
        table = run_sweep(engine, settings, self._started, self.progress, self.tick)
        return {**self.job.result, "cells": len(table.rows)}

    def _started(self, sweep_key: str) -> None:
        self.job = dataclasses.replace(self.job, result={"sweep_key": sweep_key})
        client.save(self.worker.store, self.job)

    def _plan(self, engine: Engine, params: dict[str, Any]) -> dict[str, Any]:
        table = self._table(params["sweep_key"])
        settings = PlanSettings.from_dict(params["settings"])
        plan, measurement = run_plan(engine, table, settings, self.progress, self.tick)
        return {
            "plan": plan.to_dict(),
            "measurement": measurement.to_dict() if measurement else None,
        }

    def _pareto(self, engine: Engine, params: dict[str, Any]) -> dict[str, Any]:
        settings = ParetoSettings.from_dict(params["settings"])
        key = params.get("sweep_key")
        table = self._table(key) if key else None
        archive = run_pareto(engine, settings, table, self.progress, self.tick)
        return {
            "points": len(archive.points),
            "unreached": [item.to_dict() for item in archive.unreached],
        }

    def _table(self, sweep_key: str) -> SensitivityTable:
        with_shipped = DemoStore(self.worker.store.folder)
        spec = load_spec(with_shipped, sweep_key)
        table = read_table(with_shipped, spec)
        with_shipped.close()
        if table is None or not table.finished:
            raise PsvitError("The sweep is not finished. Let it finish, then plan.")
        return table

    def _export(self, engine: Engine, params: dict[str, Any]) -> dict[str, Any]:
        plan = PrunePlan.from_dict(params["plan"])
        out = self._place(params)
        recovery = RecoverySettings.from_dict(params.get("recovery", {}))
        path, report = prune(engine, plan, out, recovery, self.tick)
        measured = {}
        if params.get("measure"):
            plain, found = (
                evaluate(engine, plan, self.tick),
                measure_file(engine, plan, path, self.tick),
            )
            measured = {"pruned_measurement": plain.to_dict(), "file_measurement": found.to_dict()}
        return {
            "path": str(path),
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
            "recovery": report.to_dict() if report else None,
            **measured,
        }

    def _place(self, params: dict[str, Any]) -> Path:
        """Where the model that the job makes is written: in its own folder, whatever the name."""
        return self.worker.store.place("exports", self.job.id, Path(params["file_name"]).name)

    def _finetune(self, engine: Engine, params: dict[str, Any]) -> dict[str, Any]:
        plan = PrunePlan.from_dict(params["plan"]) if params.get("plan") else None
        done = run_finetune(
            engine,
            FinetuneSettings.from_dict(params["settings"]),
            self._place(params),
            plan=plan,
            recovery=RecoverySettings.from_dict(params.get("recovery", {})),
            started=self._curve_started,
            progress=self.progress,
            tick=self.tick,
            stop=lambda: client.stop_asked(self.worker.store, self.job.id),
        )
        return {
            **self.job.result,
            "path": str(done.out),
            "last_path": str(done.last),
            "bytes": done.out.stat().st_size,
            "sha256": _sha256(done.out),
            "recovery": done.recovery.to_dict() if done.recovery else None,
            "report": done.report.to_dict(),
            "pruned_measurement": done.plain.to_dict() if done.plain else None,
            "recovered_measurement": done.recovered.to_dict() if done.recovered else None,
            "file_measurement": done.measurement.to_dict(),
        }

    def _curve_started(self, curve: Path) -> None:
        self.job = dataclasses.replace(self.job, result={"records": str(curve)})
        client.save(self.worker.store, self.job)


def _sha256(path: Any) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
