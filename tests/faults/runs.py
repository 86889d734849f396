"""Jobs that are killed, or whose disk becomes full, at a chosen change of their files.

Runs in one program that is started with the library (``shim.py``) and imports torch once. Every run
of a job is a fork of it that opens the store anew, as a worker does.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import (
    FinetuneSettings,
    ParetoSettings,
    PlanSettings,
    PrunePlan,
    RecoverySettings,
    Subject,
)
from psvit_core.records import SweepSettings as Sweep
from psvit_core.records.jobs import (
    ExportRequest,
    FinetuneRequest,
    JobRequest,
    MeasureRequest,
    ParetoRequest,
    PlanRequest,
    QuantizeRequest,
    SweepRequest,
)
from psvit_core.sensitivity.spec import load_spec, read_table
from psvit_core.storage.leftovers import tidy
from psvit_core.storage.store import Store, digest
from psvit_core.zoo.cards import shipped_summary
from tests.faults.shim import loaded

MODEL = "sdt_v1_digits"
PLAIN = Subject(model=MODEL, data="digits", limit=10, batch=5, recovery="none")
KINDS = {  # and kills
    "sweep": 2,
    "planning": 1,
    "front": 2,
    "recovery": 1,
    "finetuning": 2,
    "export": 1,
    "quantizing": 1,
}
BASES = {"planning": "sweep", "front": "sweep", "quantizing": "export"}  # what must be done first
SEED = 17
_NEEDED = (
    "torchvision",
    *(f"psvit_core.{name}" for name in ("data", "evaluate", "export", "finetune", "recover")),
    *(f"psvit_core.{name}" for name in ("jobs.worker", "sensitivity.sweep", "zoo.checkpoint")),
)
_TIMES = ("seconds", "trained_seconds", "pruned_at")  # of results that are otherwise equal
_PLACES = ("path", "last_path", "records", "code")
_OF_TIMES = ("bytes", "sha256")  # of files that contain times


def _plan() -> PrunePlan:
    summary = shipped_summary(MODEL)
    assert summary is not None
    return plan_from_ratios(summary, {g.group_id: 0.25 for g in summary.groups}, criterion="l2")


def request_of(kind: str, store: Store) -> tuple[Subject, JobRequest]:
    recovery = RecoverySettings(method="bn", n_images=20)
    done = client.find_job(store, BASES[kind]) if kind in BASES else None
    if kind == "sweep":
        return PLAIN, SweepRequest(settings=Sweep(ratios=(0.5,)))
    if kind == "planning":
        assert done is not None
        settings = PlanSettings(policy="optimal", memory_saving=0.3, budget_evaluations=4)
        return PLAIN, PlanRequest(sweep_key=done.result["sweep_key"], settings=settings)
    if kind == "front":
        assert done is not None
        front = ParetoSettings(
            policies=("uniform", "psvit"),
            savings=(0.2, 0.4),
            recoveries=("none", "bn"),
            calib_images=20,
            measured_planning=False,
        )
        return PLAIN, ParetoRequest(settings=front, sweep_key=done.result["sweep_key"])
    if kind == "quantizing":
        assert done is not None and done.written is not None
        return PLAIN, QuantizeRequest(path=done.written.path, file_name="b.safetensors")
    if kind == "recovery":
        return dataclasses.replace(PLAIN, recovery="bn"), MeasureRequest(plan=_plan())
    if kind == "export":
        request = ExportRequest(plan=_plan(), file_name="a.safetensors", recovery=recovery)
        return PLAIN, dataclasses.replace(request, measure=True)
    training = FinetuneSettings(epochs=2, batch=8, train_images=24, augment="none")
    tuning = FinetuneRequest(settings=training, file_name="a.safetensors", plan=_plan())
    return PLAIN, dataclasses.replace(tuning, recovery=recovery)


# ---- one run, in a process of its own --------------------------------------------------------


def _counted(folder: Path) -> Path:
    """Return the file that counts what killed runs computed, too; nobody watches it."""
    place = folder.parent.with_name(f"{folder.parent.name}-counted")
    place.mkdir(exist_ok=True)
    return place / folder.name


def _count_work(counted: Path) -> None:
    """Let this process append a word to a file for every unit of work that it has computed."""
    from psvit_core import evaluate, recover
    from psvit_core.finetune.training import Training
    from psvit_core.sensitivity import buffer

    counted.touch()

    def count(place: Any, name: str, unit: str) -> None:
        plain = getattr(place, name)

        def computed(*arguments: Any, **options: Any) -> Any:
            found = plain(*arguments, **options)
            n = len(arguments[2]) if unit == "image" else 1
            with counted.open("a") as file:
                file.write(f"{unit}\n" * n)
            return found

        setattr(place, name, computed)

    count(buffer.ResultBuffer, "add", "image")
    count(Training, "_learn", "step")
    count(evaluate, "_measured", "plan")
    count(recover, "recover", "recovery")


def _run(folder: Path, kind: str, before: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Run a job as a worker does after its start; resume it if it was interrupted.

    Args:
        folder: The folder of the store.
        kind: The kind of the job.
        before: Called at once before the job runs.
    """
    from psvit_core.jobs import run, worker
    from psvit_core.sensitivity import buffer

    client.ensure_worker = worker.client.ensure_worker = lambda *_, **__: None  # type: ignore[attr-defined]
    buffer._FIRST_WRITE_SECONDS = buffer._WORK_PER_WRITE = 0.0  # write after every group
    run._SAVE_SECONDS = 0.0  # so that equal runs change files equally often
    worker._FAULT_SECONDS = 0.0
    counted = _counted(folder)
    _count_work(counted)
    store = Store(folder / "cache")
    tidy(store)
    left = leftovers(folder)
    job = client.find_job(store, kind)
    found = {"before": job.state, "reason": job.error, "left": left}
    if job.state != "queued":
        client.resume(store, kind)
    job, runner = client.find_job(store, kind), worker.Worker(store, "cpu")
    before()
    runner.run_job(job)
    job = client.find_job(store, kind)
    n_jobs = len(client.list_jobs(store))
    found |= {"state": job.state, "error": job.error, "result": essence(store, kind, job)}
    return found | {"jobs": n_jobs, "count": Counter(counted.read_text().split())}


def leftovers(folder: Path) -> list[str]:
    """Return temporary files, passing locks, and values' files that no row names."""
    import sqlite3

    found = [p.name for p in folder.rglob("*") if p.name.endswith((".part", ".tmp"))]
    found += [p.name for p in folder.rglob("cells-*")]
    index = folder / "cache" / "index"
    with sqlite3.connect(index / "cache.db") as rows:
        named = {name for (name,) in rows.execute("SELECT filename FROM Cache")}
    files = [p.relative_to(index).as_posix() for p in index.rglob("*.val")]
    return found + [name for name in files if name not in named]


def essence(store: Store, kind: str, job: Job) -> str:
    """Return what a job has found, without times and places, as JSON."""
    if job.state != "done":
        return ""
    found: dict[str, Any] = {"result": _without_times(job.result)}
    if kind == "sweep":
        table = read_table(store, load_spec(store, job.result["sweep_key"]))
        assert table is not None
        found["table"] = table.to_dict()
    if job.written is not None:
        from psvit_core.zoo.checkpoint import load_model, weights_hash

        found["weights"] = weights_hash(load_model(job.written.path))
    rows = {
        key: digest(_without_times(store.get(key)))
        for key in store.keys("")
        if key.startswith(("pareto", "frozen/", "quantized/"))
    }
    return json.dumps({**found, "kept": rows}, sort_keys=True)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        left = {k: v for k, v in value.items() if k not in (*_TIMES, *_PLACES, *_OF_TIMES)}
        return {k: _without_times(v) for k, v in left.items()}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


# ---- the program that forks ------------------------------------------------------------------


def _forked(work: Callable[[], dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """Do something in a fork; return the signal that ended it, or 0, and what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            begin = loaded().shim_count()
            found = {**work(), "changes": loaded().shim_count() - begin}
            with os.fdopen(writing, "w") as file:
                json.dump(found, file)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status), {}
    assert status == 0, f"a run failed in {child}"
    return 0, json.loads(text)


def _queue(folder: Path, kind: str) -> dict[str, Any]:
    store = Store(folder / "cache")
    subject, request = request_of(kind, store)
    params = {"subject": subject.to_dict(), **request.to_dict()}
    title = f"a {kind}"
    client.save(store, Job(id=kind, task=request.task, title=title, params=params, created=1.0))
    store.close()
    return {}


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def main(base: Path) -> dict[str, Any]:
    """Run every kind of job undisturbed, killed, and on a disk that becomes full."""
    import torch

    for name in _NEEDED:  # before the forks
        importlib.import_module(name)
    torch.set_num_threads(1)
    random = Random(SEED)
    found: dict[str, dict[str, Any]] = {}
    for kind, n_kills in KINDS.items():
        place = base / kind
        if kind in BASES:
            _copy(base / f"{BASES[kind]}-whole", place)
        else:
            place.mkdir()
        _forked(lambda: _queue(place, kind))  # noqa: B023 - runs at once
        whole = _copy(place, base / f"{kind}-whole")
        _, undisturbed = _forked(lambda: _run(whole, kind))  # noqa: B023
        n = undisturbed["changes"]
        found[kind] = {"whole": undisturbed, "killed": [], "full": []}
        # A run may make a few changes fewer than another: estimates are stored by the clock.
        for at in sorted(random.sample(range(n * 9 // 10), n_kills)):
            target = _copy(place, base / f"{kind}-{at}")
            found[kind]["killed"].append({"at": at, **_killed(target, kind, at)})
        at = random.randrange(n * 9 // 10)
        target = _copy(place, base / f"{kind}-full-{at}")
        found[kind]["full"].append({"at": at, **_filled(target, kind, at)})
    return found


def _killed(folder: Path, kind: str, at: int) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        loaded().shim_kill_at(at)
        return _run(folder, kind)

    ended_by, _ = _forked(run)
    assert ended_by == signal.SIGKILL, (kind, at, ended_by)
    return _forked(lambda: _run(folder, kind))[1]


def _filled(folder: Path, kind: str, at: int) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        return _run(folder, kind, lambda: loaded().shim_full_from(at, 60))

    _, first = _forked(run)
    again = first if first["state"] == "done" else _forked(lambda: _run(folder, kind))[1]
    return {"first": first, **again}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
