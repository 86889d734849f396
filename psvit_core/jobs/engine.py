"""Names in, a loaded model with its images out: what every task works on.

Torch is imported inside, so that this module can be named without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from psvit_core.errors import DataError
from psvit_core.planners import DEFAULT_BUDGET
from psvit_core.records import ModelSummary, Record
from psvit_core.sensitivity.table import DEFAULT_RATIOS
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
