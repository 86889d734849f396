"""A whole run by a configuration file: sweep, plan, pruned file, training, exports, test, report.

Every finished stage leaves a record in the folder of the results, so that a run that was stopped
goes on where it was. Torch is imported inside functions.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from psvit_core.batch.folder import RESULT, RunFolder, StageRecord
from psvit_core.batch.schema import RunConfig, load_run_config
from psvit_core.batch.stages import (
    CHOICES,
    Stage,
    Work,
    check_possible,
    file_names,
    leftovers,
    make_stages,
)
from psvit_core.batch.targets import Judged, judge
from psvit_core.callbacks import Progress, Tick, ignore_progress, keep_going
from psvit_core.errors import OutputError
from psvit_core.records import Measurement
from psvit_core.storage.store import ENGINE_VERSION, Store
from psvit_core.tasks.session import Session

__all__ = ["RunCallbacks", "RunConfig", "RunOutcome", "load_run_config", "run_config"]

_PACKAGES = ("torch", "numpy", "spikingjelly", "timm", "safetensors", "onnx", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class RunCallbacks:
    """Functions that ``run_config`` calls."""

    stage: Callable[[str, int, int], None] = lambda name, number, total: None  # before each stage
    progress: Progress = ignore_progress  # within a stage
    tick: Tick = keep_going  # before each batch; may raise to stop
    say: Callable[[str], None] = lambda text: None  # with warnings, and what changed


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What a run left."""

    folder: Path
    result: dict[str, Any]  # the content of result.json
    targets: tuple[Judged, ...]
    reused: tuple[str, ...]  # stages that an earlier call had finished
    changes: tuple[str, ...]  # fields that differ from the last call's

    @property
    def missed_on_test(self) -> bool:
        """Whether a target was missed and the test split was asked for."""
        return self.result["test"] is not None and not all(t.met for t in self.targets)


def run_config(
    config: RunConfig | str | Path,
    *,
    store: Store | None = None,
    plugin: str | None = None,
    replace: bool = False,
    callbacks: RunCallbacks | None = None,
) -> RunOutcome:
    """Do all that a configuration describes, and go on where an earlier call stopped.

    Args:
        config: The configuration, or its file.
        store: Store of results; that of the default folder when None.
        plugin: File or module that registers custom models; its code runs.
        replace: Replace files of other settings in the folder of the results.
        callbacks: Called meanwhile.

    Returns:
        The result, which is also in ``result.json``.

    Raises:
        ConfigError: If the file is not a valid configuration.
        OutputError: If the folder cannot be written, is in use, or holds results of other settings
            that would be replaced.
        TargetError: If no plan meets the targets.
    """
    config = config if isinstance(config, RunConfig) else load_run_config(config)
    calls, store = callbacks or RunCallbacks(), store or Store()
    folder = RunFolder(config.folder)
    with folder.opened((*file_names(config), RESULT)), store.using():
        session = Session(config.subject(plugin), store, warn=calls.say)
        _ = session.recovery  # warns if it is not possible, before anything runs
        work = Work(config, session, folder, calls.progress, calls.tick)
        stages = make_stages(config, session)
        changes = folder.changes(config.model_dump(mode="json"))
        done = _finished(folder, stages, changes, replace=replace)
        _say_changes(calls.say, folder, stages, changes, done)
        check_possible(work, {s.name for s in stages} - done.keys())
        folder.save_config(config.model_dump(mode="json"))
        reused = tuple(done)
        for number, stage in enumerate(stages, 1):
            if stage.name in done:
                continue
            calls.stage(stage.name, number, len(stages))
            before, result = folder.find(stage.name), stage.run(work)
            warnings = tuple(session.warnings)
            record = folder.save(stage.name, stage.key, result, stage.files, *warnings)
            if before and stage.name in CHOICES and before.files != record.files:
                done = {s.name: done[s.name] for s in stages[:number] if s.name in done}
            done[stage.name] = record
        targets = _judge(work, done)
        result = _result(work, {s.name: done[s.name] for s in stages}, targets)
        folder.save_result(result)
    return RunOutcome(
        folder=folder.place,
        result=result,
        targets=tuple(targets),
        reused=reused,
        changes=tuple(changes),
    )


def _finished(
    folder: RunFolder, stages: list[Stage], changes: list[str], *, replace: bool
) -> dict[str, StageRecord]:
    """Return the records of the stages that need not run again.

    Raises:
        OutputError: If files of other settings would be replaced, and ``replace`` is not given.
    """
    done, lost = {}, []
    for stage in stages:
        record = folder.find(stage.name)
        if record is None:
            continue
        altered = folder.altered(record)
        if record.key != stage.key and not stage.derived:
            lost += [name for name in record.files if name not in folder.missing(record)]
        elif altered:
            lost += altered
        elif record.key == stage.key and not folder.missing(record):
            done[stage.name] = record
    if lost and not replace:
        why = "; ".join(changes) or (
            "no field of the configuration, but the model, its images, this program's version or "
            "the files themselves"
        )
        raise OutputError(
            f"{folder.place} has results of other settings, and these files would be replaced: "
            f"{', '.join(lost)}. What changed: {why}. Choose another folder as out, or --replace "
            "them."
        )
    return done


def _say_changes(
    say: Callable[[str], None],
    folder: RunFolder,
    stages: list[Stage],
    changes: list[str],
    done: Mapping[str, StageRecord],
) -> None:
    """Say what differs from the last run in this folder, and what is kept."""
    if changes:
        say(f"The configuration has changed since the last run in {folder.place}: {changes[0]}")
        for change in changes[1:]:
            say(f"  {change}")
    if done:
        todo = [stage.name for stage in stages if stage.name not in done]
        say(f"Already done: {', '.join(done)}. To do: {', '.join(todo) or 'nothing'}.")
    if left := list(leftovers(folder, stages)):
        say(f"Files of earlier settings stay: {', '.join(sorted(left))}.")


def _judge(work: Work, done: Mapping[str, StageRecord]) -> list[Judged]:
    """Judge the targets on the test split if it was asked for, else on the planning split."""
    final = done.get("tuned", done["pruned"])
    records = (done["test"], done["test"]) if "test" in done else (done["baseline"], final)
    keys = ("baseline", "measurement") if "test" in done else ("measurement", "measurement")
    base, found = (
        Measurement.from_dict(record.result[key]) for record, key in zip(records, keys, strict=True)
    )
    latency = done["latency"].result["saving"] if "latency" in done else None
    target = work.config.plan_settings().target
    return judge(target, work.session.description, work.plan, (base, found), latency)


def _result(work: Work, done: Mapping[str, StageRecord], targets: list[Judged]) -> dict[str, Any]:
    """Return the content of the result file."""
    config, session = work.config, work.session
    warnings = [text for record in done.values() for text in record.warnings]
    exports = [done[kind].result for kind in dict.fromkeys(config.exports)]
    results = {name: record.result for name, record in done.items()}
    return {
        "document": "run_result",
        "version": 1,
        "config": config.model_dump(mode="json"),
        "config_sha256": config.hash,
        "model": session.description.model,
        "weights_hash": session.description.weights_hash,
        "versions": _versions(),
        "checkpoint": work.final.name,
        "baseline": results["baseline"],
        "sweep": results["sweep"],
        "plan": results["plan"],
        "pruned": results["pruned"],
        "latency": results.get("latency"),
        "tuned": results.get("tuned"),
        "exports": exports,
        "test": results.get("test"),
        "report": results.get("report"),
        "targets": [judged.to_dict() for judged in targets],
        "files": {
            name: {"bytes": (work.folder.place / name).stat().st_size, "sha256": digest}
            for record in done.values()
            for name, digest in record.files.items()
        },
        "warnings": list(dict.fromkeys(warnings)),
        "notes": list(session.notes),
    }


def _versions() -> dict[str, str | int]:
    """Return the versions of this program and of what numbers depend on."""
    found: dict[str, str | int] = {"engine": ENGINE_VERSION, "python": platform.python_version()}
    for name in ("psvit-explorer", *_PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an extra, or a checkout that is not installed
            continue
    return found
