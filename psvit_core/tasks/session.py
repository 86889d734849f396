"""A loaded model with its images: the input of every task.

Torch is imported inside functions, so that importing this module stays cheap.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.cluster.settings import EngineSettings, engine_of
from psvit_core.errors import DataError, PsvitWarning, StoreError
from psvit_core.plan.size import plan_size
from psvit_core.records import ModelSummary, RecoverySettings, Subject, check_recovery
from psvit_core.storage.store import Store
from psvit_core.tasks.cautions import class_warning
from psvit_core.zoo.cards import ModelCard

if TYPE_CHECKING:
    from psvit_core.data import EvalSet
    from psvit_core.runtime import Run
    from psvit_core.zoo.base import SpikingModel

log = logging.getLogger(__name__)

_WARM_MACS = 1e11  # multiply-accumulates of ``warm_up``: seconds, during which no job can start
_NAMED = 3  # unreadable images that a warning names


@dataclass
class Session:
    """A subject's model and images, each loaded when first used.

    Args:
        subject: The model, the images and how they are run.
        store: The store of results.
        warn: Called with one line of text: about images that are skipped, about changes to a
            checkpoint's tensors, and with ``warnings``.
        warnings: Reasons why numbers of this session may be wrong.
        unkept: Called if a measured plan cannot be added to the archive, because the disk is full,
            for example; that raises when None.
        engine: Where sweeps, fronts, recoveries and trainings run (docs/cluster.md); by default
            what the environment names.
    """

    subject: Subject
    store: Store
    warn: Callable[[str], None] = field(default=log.warning, repr=False)
    warnings: list[str] = field(default_factory=list, repr=False)
    unkept: Callable[[StoreError], None] | None = field(default=None, repr=False)
    engine: EngineSettings = field(default_factory=lambda: engine_of(os.environ))
    _model: SpikingModel | None = field(default=None, repr=False)
    _data: EvalSet | None = field(default=None, repr=False)
    _description: ModelSummary | None = field(default=None, repr=False)
    _calib: dict[tuple[int, int], EvalSet] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.subject.plugin is not None:
            from psvit_core.custom import load_plugin

            load_plugin(self.subject.plugin, self.store)

    @property
    def card(self) -> ModelCard:
        """The card of the model, or of the model that it was pruned from."""
        from psvit_core.zoo.checkpoint import card_of

        return card_of(self.model).at(self.model.input_shape[1])

    @property
    def model(self) -> SpikingModel:
        """The model."""
        if self._model is None:
            from psvit_core.zoo.checkpoint import load_model

            s = self.subject
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PsvitWarning)  # given below, by ``warn``
                self._model = load_model(
                    s.model,
                    s.checkpoint,
                    image_size=s.image_size,
                    num_heads=s.num_heads,
                    T=s.time_steps,
                    ema=s.ema,
                    entry=s.entry,
                    **s.arguments,
                )
            for note in self._model.notes:
                self.warn(f"{Path(s.checkpoint or s.model).name}: {note}")
        return self._model

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed while the model's file was read; empty before it is loaded."""
        return self._model.notes if self._model is not None else ()

    @property
    def data(self) -> EvalSet:
        """The images of the subject's split."""
        if self._data is None:
            self._data = self.load_images(self.subject.split, self.subject.limit)
            self._warn_of_bad(self._data)
            model, spec, n_classes = self.model, self._data.spec, len(self._data.classes)
            self.caution(class_warning(spec, n_classes, model.name, model.num_classes))
        return self._data

    def caution(self, warning: str | None) -> None:
        """Add a warning to ``warnings``, once; None adds nothing."""
        if warning is not None and warning not in self.warnings:
            self.warnings.append(warning)
            self.warn(warning)

    def calib(self, n_images: int, seed: int) -> EvalSet:
        """Load stratified calibration images with the model's transform.

        Args:
            n_images: Number of images; the ``calib`` split has at most 256.
            seed: 0 takes the data's own ``calib`` split; others draw from the training images.
        """
        key = (n_images, seed)
        if key not in self._calib:  # listing the training images may take long
            self._calib[key] = self.load_images("train" if seed else "calib", n_images, seed)
        return self._calib[key]

    @property
    def recovery(self) -> RecoverySettings:
        """The recovery that numbers of pruned models include.

        ``auto`` is ``none`` where the data has no calibration images; ``warnings`` then say why.

        Raises:
            UnknownNameError: If the subject's recovery is unknown.
            DataError: If a method other than ``auto`` has no calibration images.
        """
        settings, reason = self.available_recovery(RecoverySettings(method=self.subject.recovery))
        self.caution(f"Pruned without recovery: {reason}." if reason else None)
        return settings

    def without_recovery(self) -> Session:
        """Return this session for numbers without recovery (``with_recovery``)."""
        return self.with_recovery("none")

    def with_recovery(self, method: str) -> Session:
        """Return this session for numbers under a recovery; both share the model and images.

        Args:
            method: One of ``RECOVERIES``.
        """
        if method == self.subject.recovery:
            return self
        _ = self.data  # loads the model, too: once for both
        subject = dataclasses.replace(self.subject, recovery=method)
        return dataclasses.replace(self, subject=subject, warnings=list(self.warnings))

    def available_recovery(self, wanted: RecoverySettings) -> tuple[RecoverySettings, str]:
        """Return the recovery that is possible with the session's data.

        Args:
            wanted: The recovery asked for; ``auto`` is ``none`` without calibration images.

        Returns:
            (the settings, why there is no recovery; empty unless ``auto`` has no images).

        Raises:
            UnknownNameError: If the method is unknown.
            DataError: If a method other than ``auto`` has no calibration images.
        """
        check_recovery(wanted)
        if wanted.method == "none":
            return wanted, ""
        try:
            self.calib(wanted.n_images, wanted.seed)
        except DataError as error:
            if wanted.method != "auto":
                raise
            return RecoverySettings(), f"no calibration images ({error})"
        return wanted, ""

    @property
    def data_spec(self) -> str:
        """The data specification: the subject's, or that of the model's card.

        Raises:
            DataError: If the model is a file of unknown origin and no data is given.
        """
        spec = self.subject.data or self.card.data
        if not spec:
            raise DataError(
                f"{self.subject.model} does not record which images it was trained on. Set "
                "--data, for example to folder:DIR or imagenet:DIR."
            )
        return spec

    def load_images(self, split: str, limit: int | None, seed: int = 0) -> EvalSet:
        """Load images of the subject's data with the model's transform.

        Event frames set the model's time steps.

        Args:
            split: ``train``, ``calib``, ``val`` or ``test``.
            limit: Number of images, stratified; None loads all.
            seed: Seed of that choice.

        Raises:
            DataError: If there are no such images, or frames do not fit the time steps.
        """
        from psvit_core.data import load_data

        card, s = self.card, self.subject
        images = load_data(
            self.data_spec,
            split=split,
            transform=card.transform,
            limit=limit,
            on_bad=s.bad_images,
            seed=seed,
        )
        if images.time_steps is not None:
            self._use_time_steps(images.time_steps)
        return images

    def _warn_of_bad(self, images: EvalSet) -> None:
        n_bad = len(images.bad)
        if n_bad:
            more = f" and {n_bad - _NAMED} more" if n_bad > _NAMED else ""
            self.warn(
                f"Skipped {n_bad} of {len(images) + n_bad} images that cannot be read: "
                f"{', '.join(images.bad[:_NAMED])}{more}."
            )

    def _use_time_steps(self, T: int) -> None:
        """Run the model for as many time steps as the event frames have."""
        data = self.subject.data
        if "T" not in self.model.arguments:
            raise DataError(
                f"{data} has frames of {T} time steps, but {self.model.name} has no time axis. "
                "Use images instead."
            )
        if self.subject.time_steps not in (None, T):
            raise DataError(
                f"{data} has frames of {T} time steps, but --time-steps is "
                f"{self.subject.time_steps}. Omit --time-steps."
            )
        self.model.set_time_steps(T)

    @property
    def description(self) -> ModelSummary:
        """The model's summary without rankings, after the images have set its time steps."""
        if self._description is None:
            from psvit_core.groups import summarize

            _ = self.data
            self._description = summarize(self.model, {})
        return self._description

    @property
    def run(self) -> Run:
        """Device, batch size, precision and decoding processes."""
        from psvit_core.runtime import Run

        s = self.subject
        return Run(
            device=s.device,
            batch=self.card.batch if s.batch is None else s.batch,
            precision=s.precision,
            workers=s.workers,
        )


def loaded_session(
    subject: Subject,
    store: Store,
    model: SpikingModel,
    data: EvalSet,
    calib: Mapping[tuple[int, int], EvalSet],
) -> Session:
    """Return a session whose model and images are there already, and nothing else is.

    It measures by itself, whatever engine the environment names: a worker uses no other workers.

    Args:
        subject: The subject that they were loaded for.
        store: The store of results.
        model: The model.
        data: The images of the subject's split.
        calib: Calibration images by their number and seed.
    """
    own = EngineSettings()
    return Session(subject, store, engine=own, _model=model, _data=data, _calib=dict(calib))


def summarize_model(session: Session) -> ModelSummary:
    """Return the model's summary, with rankings by weight norms.

    These cost milliseconds. A sweep adds the ranking by its own criterion.
    """
    from psvit_core.groups import summarize
    from psvit_core.importance import rank

    names = ("l1", "l2", "l2_group")
    return summarize(session.model, {name: rank(session.model, name) for name in names})


def refused_groups(session: Session) -> dict[str, str]:
    """Return the reason for each group of a custom model that cannot be pruned exactly."""
    return dict(getattr(session.model, "refused", {}))


def warm_up(session: Session) -> Iterator[str]:
    """Prepare a session for jobs, step by step.

    Yields:
        A description of each finished step.
    """
    yield f"{session.model.name} loaded"
    yield f"{len(session.data)} images loaded"
    from psvit_core.kernels import lif

    yield f"{lif.kernels()} kernels"  # compiled now unless this machine has them already
    _ = session.description  # imports the parts of torch that load late
    yield "model described"
    from psvit_core.evaluate import Baseline, place_once, predict, prepare_plans

    run, weights_hash = session.run, session.description.weights_hash
    model = place_once(session.model, run, weights_hash)
    import scipy.stats  # noqa: F401 - estimates need it, and it loads late

    yield "statistics loaded"
    prepare_plans(session.model, session.data, run, weights_hash)
    yield "forward pass recorded"
    recovery = session.recovery  # loads the calibration images
    if recovery.method != "none":
        yield "calibration images loaded"
    per_image = plan_size(session.description, None).macs * session.description.T
    if len(session.data) * per_image <= _WARM_MACS:  # every plan is compared with the baseline
        Baseline(model, session.data, run, session.store)
        yield f"baseline on {len(session.data)} images"
    else:
        n_few = min(run.batch, int(_WARM_MACS / per_image))
        few = session.data.take(range(max(1, n_few)))
        predict(model, few, run)  # makes torch choose its kernels
        yield f"{len(few)} images run"
    if recovery.method == "auto":  # last: a plan is measured without recovery first
        calib = session.calib(recovery.n_images, recovery.seed)
        if len(calib) * per_image <= _WARM_MACS:
            from psvit_core.recover import prepare

            prepare(session.model, calib, run)
            yield "recovery prepared"
