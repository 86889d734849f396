"""The heavy work behind the command line and the app's worker: names in, records out.

Every task takes its settings as plain data, the store, and callbacks for progress and stopping, so
that a shell and a background process run the very same code. Torch is imported inside, so that this
module can be named without it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.errors import DataError, InvalidPlanError, ModelError, UnknownNameError
from psvit_core.files import check_model_file
from psvit_core.pareto import Made, add_point
from psvit_core.planners import DEFAULT_BUDGET
from psvit_core.plans import default_criterion
from psvit_core.records import (
    RECOVERIES,
    Measurement,
    ModelSummary,
    Partial,
    PrunePlan,
    Record,
    RecoveryReport,
    SensitivityTable,
)
from psvit_core.sensitivity.table import DEFAULT_RATIOS, save_spec
from psvit_core.store import Store
from psvit_core.zoo.cards import DEFAULT_MODEL, ModelCard

if TYPE_CHECKING:
    from psvit_core.data import EvalSet
    from psvit_core.runtime import Run
    from psvit_core.zoo.base import SpikingModel

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
Tick = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Subject(Record):
    """Which model on which images, and how it is run."""

    model: str = DEFAULT_MODEL  # registered name or pruned file
    checkpoint: str | None = None
    data: str | None = None  # None: what the model was trained for
    split: str = "val"
    limit: int | None = None
    batch: int | None = None  # None: the card's
    device: str = "cpu"
    precision: str = "float32"
    time_steps: int | None = None  # None: the model's own
    image_size: int | None = None  # side in pixels; None: the model's own
    num_heads: int | None = None  # None: the card's
    ema: bool = False  # take the checkpoint's moving average
    workers: int = 0  # processes that decode images
    bad_images: str = "stop"  # at unreadable images, or skip them
    plugin: str | None = None  # file or module that registers the user's own models; runs code


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Record):
    """What a sweep measures."""

    ratios: tuple[float, ...] = DEFAULT_RATIOS
    criterion: str | None = None  # None: plans.DEFAULT_CRITERIA by what the data holds
    calib_images: int = 256  # for criteria that need images
    seed: int = 0  # of these images, and of the criterion random
    mode: str = "exact"  # or progressive: few images in every cell, then more where it matters
    memory_budget: int | None = None  # bytes for the values of a batch; None: a quarter of the free


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Record):
    """What a planner is asked for."""

    policy: str = "psvit"
    memory_saving: float | None = None  # of the float32 bytes; or
    max_drop: float | None = None
    scope: str = "all"
    round_to: int = 1
    saving: float | None = None  # of the resource; or
    resource: str = "memory"
    locked: dict[str, float] = field(default_factory=dict)  # prune ratio by group
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)  # least and largest
    budget_evaluations: int = DEFAULT_BUDGET  # plans that optimal measures at most


@dataclass(frozen=True, kw_only=True)
class RecoverySettings(Record):
    """How a pruned model is recovered without training."""

    method: str = "none"  # one of records.RECOVERIES
    n_images: int = 256  # calibration images
    seed: int = 0  # that chooses them


@dataclass
class Engine:
    """A model and its images, loaded; what tasks run on.

    Args:
        subject: What to load.
        store: Where results are kept.
        warn: Told in one line of images that are left out.
    """

    subject: Subject
    store: Store
    warn: Callable[[str], None] = field(default=log.warning, repr=False)
    _model: SpikingModel | None = field(default=None, repr=False)
    _data: EvalSet | None = field(default=None, repr=False)
    _description: ModelSummary | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.subject.plugin is not None:
            from psvit_core.custom import load_plugin

            load_plugin(self.subject.plugin, self.store)

    @property
    def card(self) -> ModelCard:
        """The card of the model, or of the one that it was pruned from."""
        from psvit_core.zoo.checkpoint import find_card

        return find_card(self.subject.model).at(self.model.input_shape[1])

    @property
    def model(self) -> SpikingModel:
        """The model, loaded once."""
        if self._model is None:
            from psvit_core.zoo.checkpoint import load_model

            s = self.subject
            self._model = load_model(
                s.model, s.checkpoint, image_size=s.image_size, num_heads=s.num_heads, ema=s.ema
            )
            if s.time_steps is not None:
                self._model.set_time_steps(s.time_steps)
        return self._model

    @property
    def data(self) -> EvalSet:
        """The images, loaded once."""
        if self._data is None:
            from psvit_core.data import load_data

            card, s = self.card, self.subject
            data = load_data(
                s.data or card.data, split=s.split, transform=card.transform, limit=s.limit,
                on_bad=s.bad_images,
            )  # fmt: skip
            if data.time_steps is not None:
                self._take_time_steps(data.time_steps)
            if n_bad := len(data.bad):
                more = f" and {n_bad - 3} more" if n_bad > 3 else ""
                self.warn(
                    f"{n_bad} of {len(data) + n_bad} images cannot be read and are left out: "
                    f"{', '.join(data.bad[:3])}{more}."
                )
            self._data = data
        return self._data

    def calib(self, n_images: int, seed: int) -> EvalSet:
        """Calibration images with the model's transform, stratified.

        Seed 0 takes them from the data's own ``calib`` split (256 images at most); any other seed
        draws others from the training images.
        """
        from psvit_core.data import load_data

        card, s = self.card, self.subject
        images = load_data(
            s.data or card.data, split="train" if seed else "calib", transform=card.transform,
            limit=n_images, on_bad=s.bad_images, seed=seed,
        )  # fmt: skip
        if images.time_steps is not None:
            self._take_time_steps(images.time_steps)
        return images

    def _take_time_steps(self, T: int) -> None:
        """Run the model for as many time steps as the frames hold."""
        asked = self.subject.time_steps
        if "T" not in self.model.arguments or asked not in (None, T):
            raise DataError(
                f"{self.subject.data} holds frames of {T} time steps, but "
                + (
                    f"--time-steps is {asked}. Leave it away."
                    if "T" in self.model.arguments
                    else f"{self.model.name} has no time axis. Give it images."
                )
            )
        self.model.set_time_steps(T)

    @property
    def description(self) -> ModelSummary:
        """The model's summary without rankings, made once, after the images chose its T."""
        if self._description is None:
            from psvit_core.groups import summarize

            _ = self.data
            self._description = summarize(self.model, {})
        return self._description

    @property
    def run(self) -> Run:
        """Device, batch, precision."""
        from psvit_core.runtime import Run

        s = self.subject
        return Run(
            device=s.device,
            batch=self.card.batch if s.batch is None else s.batch,
            precision=s.precision,
            workers=s.workers,
        )


def summarize_model(engine: Engine) -> ModelSummary:
    """The model's summary with its rankings by the norms of weights.

    They cost milliseconds; a ranking by another criterion comes with the sweep that uses it.
    """
    from psvit_core.groups import summarize
    from psvit_core.importance import rank

    names = ("l1", "l2", "l2_group")
    return summarize(engine.model, {name: rank(engine.model, name) for name in names})


def refused_groups(engine: Engine) -> dict[str, str]:
    """Groups that are left out, with the reason: only of models of the user's own."""
    return dict(getattr(engine.model, "refused", {}))


def evaluate(
    engine: Engine,
    plan: PrunePlan | None = None,
    tick: Tick = lambda: None,
    *,
    profile: bool = False,
    partial: Callable[[Partial], None] | None = None,
    made: Made | None = None,
) -> Measurement:
    """Measure the model, or what a plan makes of it; every measured plan goes into the archive.

    Args:
        engine: The model and its images.
        plan: The plan; None measures the model itself.
        tick: Called before each batch; may raise to stop.
        profile: As for ``evaluate.measure``.
        partial: As for ``evaluate.measure``.
        made: How the plan came to be, for the archive; by its own policy when None.
    """
    from psvit_core.evaluate import measure

    result = measure(
        engine.model, engine.data, plan, run=engine.run, store=engine.store,
        summary=engine.description, profile=profile, tick=tick, partial=partial,
    )  # fmt: skip
    if plan:
        made = made or Made(policy=plan.policy, criterion=plan.criterion)
        add_point(engine.store, result, made, batch_coupled=engine.model.batch_coupled)
    return result


def compare_published(card: ModelCard, measured: Measurement) -> tuple[str, bool] | None:
    """How a baseline stands beside the published top-1 at its time steps and image size.

    Returns:
        (one line, whether the published value lies in the measured 95 % interval), or None where
        nothing comparable was published or measured.
    """
    c, side = measured.conditions, card.transform.crop + 2 * card.transform.pad
    if c.data.partition(":")[0] != card.data or c.split not in ("val", "test"):
        return None
    for p in card.published:
        if (p.T, p.px) == (c.T, side):
            a = measured.accuracy
            low, value, high = (100 * x for x in (a.low, a.value, a.high))
            inside = low <= p.top1 <= high
            doubt = "" if p.verified else ", not verified"
            line = f"published {p.top1:.2f} % ({p.source}{doubt}), measured {value:.2f} % "
            return line + f"[{low:.2f}, {high:.2f}] on {c.n_images} images", inside
    return None


_WARM_BASELINE = 1000  # images that the unpruned model runs before anybody asks


def warm_up(engine: Engine) -> Iterator[str]:
    """Get ready for jobs on an engine, step by step; yields what was done."""
    yield f"{engine.model.name} loaded"
    yield f"{len(engine.data)} images loaded"
    from psvit_core import fused

    yield f"{fused.kernels()} kernels"  # compiles them if this machine has not yet
    _ = engine.description  # imports what torch imports late
    yield "model described"
    from psvit_core.evaluate import Baseline, place, predict

    if len(engine.data) <= _WARM_BASELINE:  # what every plan is compared with
        Baseline(place(engine.model, engine.run), engine.data, engine.run, engine.store)
        yield f"baseline on {len(engine.data)} images"
        return
    few = engine.data.take(range(engine.run.batch))
    predict(place(engine.model, engine.run), few, engine.run)  # torch chooses its kernels
    yield f"{len(few)} images run"


def run_sweep(
    engine: Engine,
    settings: SweepSettings,
    started: Callable[[str], None] = lambda key: None,
    progress: Progress = lambda done, total, what: None,
    tick: Tick = lambda: None,
) -> SensitivityTable:
    """Run or resume a sweep; ``started`` is told its key in the store before the first cell."""
    from psvit_core.sensitivity.sweep import make_spec, run_spec

    if not engine.model.channel_groups():
        raise ModelError(
            f"{engine.model.name} has no channel group that can be removed exactly. The command "
            "groups says why."
        )
    criterion, calib = _ranked_by(engine, settings)
    spec = make_spec(
        engine.model, engine.data, ratios=settings.ratios, criterion=criterion,
        calib=calib, run=engine.run, seed=settings.seed, store=engine.store, mode=settings.mode,
        tick=tick,
    )  # fmt: skip
    save_spec(engine.store, spec)
    started(spec.key)
    return run_spec(
        spec, engine.model, engine.data, run=engine.run, store=engine.store,
        progress=progress, tick=tick, memory_budget=settings.memory_budget,
    )  # fmt: skip


def _ranked_by(engine: Engine, settings: SweepSettings) -> tuple[str, EvalSet | None]:
    """The criterion of a sweep with the images that it needs; a default by what the data holds."""
    from psvit_core.importance import CRITERIA, WEIGHT_CRITERIA, criterion

    chosen = settings.criterion
    if chosen is not None and not criterion(chosen).needs_images:
        return chosen, None
    try:
        calib = engine.calib(settings.calib_images, settings.seed)
    except DataError as error:
        if chosen is not None:
            raise
        by_weights = default_criterion(WEIGHT_CRITERIA)
        engine.warn(f"Units are ranked by {by_weights}, for want of calibration images: {error}")
        return by_weights, None
    return chosen or default_criterion(CRITERIA), calib


#: Conditions of a sweep that decide its numbers, and what chooses them.
_DECIDES = {
    "data": "--data", "split": "--split", "T": "--time-steps", "precision": "--precision",
    "transform": "--image-size, or other data",
}  # fmt: skip


def check_swept(table: SensitivityTable, summary: ModelSummary) -> None:
    """Raise ``InvalidPlanError`` unless a table is of these weights."""
    if table.summary.weights_hash != summary.weights_hash:
        raise InvalidPlanError(
            f"The sweep is of {table.summary.model} with other weights than {summary.model}. "
            "Sweep this model, or name the one that was swept."
        )


def check_table(table: SensitivityTable, engine: Engine) -> None:
    """Raise unless what is measured on an engine can stand beside a table.

    Weights, images and how they are run must be the same; not the batch, the device or how many
    images of the split there are.

    Raises:
        InvalidPlanError: Naming what differs.
    """
    from psvit_core.evaluate import conditions_of

    check_swept(table, engine.description)
    swept, here = table.conditions, conditions_of(engine.model, engine.data, engine.run)
    differing = [
        f"{name} {getattr(swept, name)}, here {getattr(here, name)} ({option})"
        for name, option in _DECIDES.items()
        if _settled(name, getattr(swept, name)) != _settled(name, getattr(here, name))
    ]
    if differing:
        raise InvalidPlanError(
            f"The sweep was measured with {'; '.join(differing)}: its drops are not those of what "
            "is measured here. Give what was given to the sweep, or sweep again."
        )


def _settled(name: str, value: object) -> object:
    """A condition as it is compared: a folder's or file's path may be spelt in many ways."""
    if name != "data":
        return value
    kind, _, place = str(value).partition(":")
    return kind, str(Path(place).resolve()) if place else ""


def run_plan(
    engine: Engine | None,
    table: SensitivityTable,
    settings: PlanSettings,
    progress: Progress = lambda done, total, what: None,
    tick: Tick = lambda: None,
    *,
    profile: bool = False,
) -> tuple[PrunePlan, Measurement | None]:
    """Choose a plan; with an engine, measured while planning and at the end (then profiled).

    Raises:
        InvalidPlanError: If the table does not fit the engine (``check_table``).
    """
    from psvit_core.planners import make_plan

    made = made_by(settings, table)
    measure = _measuring(engine, made, progress, tick) if engine else None
    if engine:
        check_table(table, engine)
    cost = _timing(engine, tick) if engine and settings.resource == "latency" else None
    plan = make_plan(
        table, settings.policy, memory_saving=settings.memory_saving, max_drop=settings.max_drop,
        scope=settings.scope, measure=measure, round_to=settings.round_to, saving=settings.saving,
        resource=settings.resource, locked=settings.locked, bounds=settings.bounds,
        budget=settings.budget_evaluations, cost=cost,
    )  # fmt: skip
    if engine is None:
        return plan, None
    return plan, evaluate(engine, plan, tick, profile=profile, made=made)


def made_by(settings: PlanSettings, table: SensitivityTable) -> Made:
    """How the plan of these settings comes to be, for the archive."""
    return Made(
        policy=settings.policy, criterion=table.criterion, scope=settings.scope,
        memory_saving=settings.memory_saving, max_drop=settings.max_drop, saving=settings.saving,
        resource=settings.resource, locked=settings.locked, bounds=settings.bounds,
        round_to=settings.round_to, seed=table.seed,
    )  # fmt: skip


def _measuring(
    engine: Engine, made: Made, progress: Progress, tick: Tick
) -> Callable[[PrunePlan], Measurement]:
    """What measures the plans that a planner tries; counts them as progress."""
    from psvit_core.sensitivity.sweep import refuse_test

    refuse_test(engine.data)
    measured = count(1)
    made = dataclasses.replace(made, tried=True)

    def measure(plan: PrunePlan) -> Measurement:
        result = evaluate(engine, plan, tick, made=made)
        progress(next(measured), 0, "plans measured")
        return result

    return measure


def _timing(engine: Engine, tick: Tick) -> Callable[[PrunePlan], float]:
    """What gives a plan's latency on this device, unpruned 1; equal widths are timed once."""
    from psvit_core.evaluate import place
    from psvit_core.metrics.profile import latencies_in_turns
    from psvit_core.surgery import apply_plan

    run, whole = engine.run, place(engine.model, engine.run)
    x = next(engine.data.take([0]).batches(1, run.dtype)).to(run.device)
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def latency(plan: PrunePlan) -> float:
        widths = tuple(sorted((group, len(units)) for group, units in plan.kept.items()))
        if widths not in known:
            small = place(apply_plan(engine.model, plan), run)
            with run.autocast:
                mine, unpruned = latencies_in_turns((small, whole), x, tick=tick)
            known[widths] = mine / unpruned
        return known[widths]

    return latency


def pruned(
    engine: Engine,
    plan: PrunePlan,
    recovery: RecoverySettings | None = None,
    tick: Tick = lambda: None,
) -> tuple[SpikingModel, RecoveryReport | None]:
    """What a plan leaves of the model, recovered, and how that went (None: not asked for)."""
    from psvit_core.recover import recover
    from psvit_core.surgery import apply_plan

    settings = recovery or RecoverySettings()
    check_recovery(settings)
    if settings.method == "none":
        return apply_plan(engine.model, plan), None
    calib = engine.calib(settings.n_images, settings.seed)  # first: frames set the time steps
    small = apply_plan(engine.model, plan)
    return recover(
        small, engine.model, plan, calib, method=settings.method, run=engine.run,
        seed=settings.seed, tick=tick,
    )  # fmt: skip


def check_recovery(settings: RecoverySettings) -> None:
    """Raise unless there is such a recovery."""
    if settings.method not in RECOVERIES:
        raise UnknownNameError("recovery", settings.method, RECOVERIES)


def prune(
    engine: Engine,
    plan: PrunePlan,
    out: str | Path,
    recovery: RecoverySettings | None = None,
    tick: Tick = lambda: None,
) -> tuple[Path, RecoveryReport | None]:
    """Apply a plan, recover, and write the pruned checkpoint, whose provenance tells of both."""
    from psvit_core.export.pruned import save_pruned

    check_model_file(out)
    small, report = pruned(engine, plan, recovery, tick)
    return save_pruned(small, out), report
