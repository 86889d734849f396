"""What a store has of a run: the sweep, measured plans, recoveries and trainings; no torch.

Nothing is measured or fitted here. What the store does not have stays None, and the page says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from psvit_core.errors import InvalidPlanError
from psvit_core.pareto import ParetoArchive, ParetoPoint
from psvit_core.plan.size import plan_size
from psvit_core.records import (
    Conditions,
    EpochRecord,
    FinetuneReport,
    Interval,
    Measurement,
    ModelSummary,
    PrunePlan,
    RecoveryReport,
    SensitivityTable,
    Size,
    Subject,
)
from psvit_core.records.jobs import ExportResult, FinetuneResult, JobResult
from psvit_core.sensitivity.spec import load_spec, read_table
from psvit_core.storage.store import Store
from psvit_core.tasks.matching import Matcher
from psvit_core.tasks.stored import find_archive, find_sweep
from psvit_core.tasks.unpruned import (
    profiled_measurement_key,
    read_measurement,
    shipped_measurement_key,
)
from psvit_core.zoo.cards import ModelCard
from psvit_core.zoo.header import read_header

PRUNED = "Pruned"  # name of the stage without recovery and training


class StoredJob(Protocol):
    """What the report reads of a background job (``jobs.client.Job``)."""

    @property
    def state(self) -> str: ...  # noqa: D102

    @property
    def plan(self) -> PrunePlan | None: ...  # noqa: D102

    @property
    def outcome(self) -> JobResult | None: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Unpruned:
    """What is stored of the unpruned network."""

    size: Size  # exact, from its widths
    accuracy: Interval | None = None  # fraction
    conditions: Conditions | None = None  # of the accuracy
    sops: float | None = None
    measurement: Measurement | None = None  # if all of it was stored


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A measured state of the plan: as pruned, recovered or fine-tuned."""

    name: str
    measurement: Measurement


@dataclass(frozen=True, kw_only=True)
class Written:
    """A checkpoint that was made by the plan."""

    name: str
    bytes: int | None = None
    sha256: str = ""
    recovery: RecoveryReport | None = None
    finetuning: FinetuneReport | None = None
    measurement: Measurement | None = None  # of the file


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """All that a report shows of a run."""

    subject: Subject  # with the recovery that the report is about
    summary: ModelSummary
    card: ModelCard | None
    unpruned: Unpruned
    table: SensitivityTable | None = None  # of the sweep
    archive: ParetoArchive | None = None  # plans measured under the subject's recovery
    plan: PrunePlan | None = None
    chosen_by: str = ""  # why it is this plan
    origin: ParetoPoint | None = None  # the plan in the archive
    stages: tuple[Stage, ...] = ()  # of the plan, on the planning split
    test: tuple[Stage, ...] = ()  # on the test split; empty if nobody asked for it
    written: tuple[Written, ...] = ()  # newest first

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the parts of a run that the store does not have, in words."""
        parts = {
            "accuracy of the unpruned network": self.unpruned.accuracy,
            "sensitivity": self.table,
            "front": self.archive,
            "plan": self.stages,
            "test split": self.test,
            "fine-tuning": self.curve,
        }
        return tuple(name for name, found in parts.items() if not found)

    @property
    def curve(self) -> tuple[EpochRecord, ...]:
        """Return the newest training's epochs; none without a training."""
        return next((w.finetuning.epochs for w in self.written if w.finetuning), ())


def collect(
    store: Store,
    subject: Subject,
    summary: ModelSummary,
    *,
    plan: PrunePlan | None = None,
    pruned: str | Path | None = None,
    recovery: str | None = None,
    jobs: Sequence[StoredJob] = (),
) -> RunReport:
    """Collect what a store has of a run.

    Args:
        store: The store, with shipped results if they count.
        subject: The model, the images and how they are run.
        summary: The model.
        plan: The plan to report on. None: that of ``pruned``; else of the newest checkpoint that a
            job wrote; else the knee of the measured front.
        pruned: A pruned file of this model, whose header tells of its plan, recovery and training.
        recovery: Recovery of the numbers; None: ``auto`` if anything was measured under it.
        jobs: Jobs of the store, newest first.

    Raises:
        InvalidPlanError: If the plan or the file is of another model.
        CheckpointError: If the file is not a pruned file.
    """
    subject = dataclasses.replace(subject, recovery=recovery or "auto")
    if recovery is None and not _is_known(store, subject, summary):
        subject = dataclasses.replace(subject, recovery="none")
    matcher = Matcher(subject)
    archive = find_archive(store, matcher, summary)
    table = _table(store, matcher, summary)
    of_file = _read_file(Path(pruned), summary) if pruned is not None else None
    if plan is not None:
        plan.check(summary.groups, summary.weights_hash)
    if plan is not None and of_file is not None and plan.kept != of_file[0].kept:
        raise InvalidPlanError(
            f"{pruned} was pruned by another plan than the one given. Omit one of the two."
        )
    chosen, why = _choose(plan, of_file[0] if of_file else None, jobs, summary, archive)
    every = find_archive(store, matcher, summary, improved=True)
    # A plan is judged on all test images, however many images it was chosen on.
    judged = Matcher(dataclasses.replace(subject, limit=None))
    tested = find_archive(store, judged, summary, "test", improved=True)
    written = [of_file[1]] if of_file else []
    written += _written(jobs, chosen, summary)
    return RunReport(
        subject=subject,
        summary=summary,
        card=matcher.card,
        unpruned=_unpruned(store, matcher, summary, every, table),
        table=table,
        archive=archive,
        plan=chosen,
        chosen_by=why,
        origin=_origin(every, chosen, subject.recovery),
        stages=_stages(every, chosen),
        test=_stages(tested, chosen),
        written=tuple(written),
    )


def _is_known(store: Store, subject: Subject, summary: ModelSummary) -> bool:
    """Return whether anything was measured under the subject's recovery."""
    matcher = Matcher(subject)
    if find_archive(store, matcher, summary) is not None:
        return True
    return find_sweep(store, matcher, summary) is not None


def _table(store: Store, matcher: Matcher, summary: ModelSummary) -> SensitivityTable | None:
    key = find_sweep(store, matcher, summary)
    return read_table(store, load_spec(store, key)) if key is not None else None


# ---- the plan ----------------------------------------------------------------------------------


def _choose(
    given: PrunePlan | None,
    of_file: PrunePlan | None,
    jobs: Sequence[StoredJob],
    summary: ModelSummary,
    archive: ParetoArchive | None,
) -> tuple[PrunePlan | None, str]:
    """Return the plan to report on, and why it is this one."""
    if given is not None:
        return given, "the plan that the report was asked for"
    if of_file is not None:
        return of_file, "the plan of the pruned file that the report was asked for"
    for job in jobs:
        if _made_file(job, summary) and job.plan is not None:
            return job.plan, "no plan was given: that of the newest checkpoint"
    knee = archive.knee() if archive is not None else None
    if knee is not None:
        return knee.point.plan, "no plan was given: the knee of the measured front"
    return None, ""


def _origin(
    archive: ParetoArchive | None, plan: PrunePlan | None, recovery: str
) -> ParetoPoint | None:
    """Return the archive's entry of a plan, preferably under a recovery."""
    found = list(_points(archive, plan))
    return next((p for p in found if p.recovery == recovery), found[0] if found else None)


def _points(archive: ParetoArchive | None, plan: PrunePlan | None) -> Iterator[ParetoPoint]:
    if archive is None or plan is None:
        return
    yield from (p for p in archive.points if p.plan.kept == plan.kept)


def _stages(archive: ParetoArchive | None, plan: PrunePlan | None) -> tuple[Stage, ...]:
    """Return the plan's measurements: as pruned first, then recovered, then fine-tuned."""
    found = sorted(
        _points(archive, plan), key=lambda p: (bool(p.made[0].finetuning), not p.plain, p.recovery)
    )
    stages = [Stage(name=_stage_name(p), measurement=p.measurement) for p in found]
    if stages and not any(p.plain for p in found):  # a recovered measurement contains it
        plain = next((m for p in found if (m := p.measurement.plain) is not None), None)
        stages = [Stage(name=PRUNED, measurement=plain), *stages] if plain else stages
    return tuple(stages)


def _stage_name(point: ParetoPoint) -> str:
    if point.made[0].finetuning:
        return "Fine-tuned"
    if point.plain:
        return PRUNED
    return f"Recovered by {point.recovery}"


# ---- the unpruned network ------------------------------------------------------------------------


def _unpruned(
    store: Store,
    matcher: Matcher,
    summary: ModelSummary,
    archive: ParetoArchive | None,
    table: SensitivityTable | None,
) -> Unpruned:
    """Return what is stored of the unpruned network, from the fullest source.

    Where plans were measured, only numbers on the same images count.
    """
    images = (archive.n_images, archive.images) if archive is not None else None
    size = plan_size(summary, None)
    keys = [shipped_measurement_key(summary.weights_hash)]
    keys = [profiled_measurement_key(archive), *keys] if archive is not None else keys
    for found in (read_measurement(store, key) for key in keys):
        if found is not None and _is_of(found, matcher, summary, images):
            return Unpruned(
                size=found.size,
                accuracy=found.accuracy,
                conditions=found.conditions,
                sops=found.sops,
                measurement=found,
            )
    swept = table.conditions if table is not None else None
    if table is not None and swept and images in (None, (swept.n_images, swept.images)):
        return Unpruned(
            size=size,
            accuracy=table.baseline_accuracy,
            conditions=dataclasses.replace(swept, recovery="none"),
            sops=table.baseline_sops,
        )
    for point in archive.points if archive is not None else ():
        m = point.measurement
        if m.baseline_accuracy is not None:
            conditions = dataclasses.replace(m.conditions, recovery="none")
            return Unpruned(size=size, accuracy=m.baseline_accuracy, conditions=conditions)
    return Unpruned(size=size)


def _is_of(
    found: Measurement, matcher: Matcher, summary: ModelSummary, images: tuple[int, str] | None
) -> bool:
    """Return whether a measurement has the subject's conditions, and these images if any."""
    c, limit = found.conditions, matcher.subject.limit
    batch = c.batch if summary.batch_coupled else None
    if images is not None and images != (c.n_images, c.images):
        return False
    return matcher.same_run(c, batch, summary.T) and limit in (None, c.n_images)


# ---- checkpoints ---------------------------------------------------------------------------------


def _made_file(job: StoredJob, summary: ModelSummary) -> ExportResult | FinetuneResult | None:
    """Return the checkpoint that a job made of this model's plan; None if it made none."""
    done, plan = job.outcome, job.plan
    if job.state != "done" or not isinstance(done, (ExportResult, FinetuneResult)) or not done.path:
        return None
    return done if plan is not None and plan.weights_hash == summary.weights_hash else None


def _written(
    jobs: Sequence[StoredJob], plan: PrunePlan | None, summary: ModelSummary
) -> Iterator[Written]:
    for job in jobs:
        done = _made_file(job, summary)
        if done is None or plan is None or job.plan is None or job.plan.kept != plan.kept:
            continue
        yield Written(
            name=Path(done.path).name,
            bytes=done.bytes,
            sha256=done.sha256,
            recovery=done.recovery,
            finetuning=done.report if isinstance(done, FinetuneResult) else None,
            measurement=done.file_measurement,
        )


def _read_file(path: Path, summary: ModelSummary) -> tuple[PrunePlan, Written]:
    """Return the plan of a pruned file, and what its header tells.

    Raises:
        CheckpointError: If it is not a pruned file.
        InvalidPlanError: If it was pruned from another model.
    """
    header = read_header(path)
    provenance: dict[str, Any] = header["provenance"]
    last = PrunePlan.from_dict(provenance["plans"][-1])
    plan = dataclasses.replace(
        last,
        model=summary.model,
        weights_hash=str(provenance["origin_weights_hash"]),
        kept={group: tuple(units) for group, units in provenance["kept"].items()},
    )
    plan.check(summary.groups, summary.weights_hash)
    recoveries, finetunes = provenance.get("recoveries", []), provenance.get("finetunes", [])
    measured = [Measurement.from_dict(m) for m in header.get("measurements", [])]
    return plan, Written(
        name=path.name,
        bytes=path.stat().st_size,
        recovery=RecoveryReport.from_dict(recoveries[-1]) if recoveries else None,
        finetuning=FinetuneReport.from_dict(finetunes[-1]) if finetunes else None,
        measurement=measured[-1] if measured else None,
    )
