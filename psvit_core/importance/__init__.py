"""Importance criteria, one file each."""

from __future__ import annotations

import torch

from psvit_core.data import EvalSet
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.importance._base import Calibration, Criterion, Scores, Tick
from psvit_core.importance.activation_weight import ActivationWeight
from psvit_core.importance.bn_scale import BatchNormScale
from psvit_core.importance.firing_rate import FiringRate
from psvit_core.importance.fpgm import FPGM
from psvit_core.importance.l1 import L1
from psvit_core.importance.l2 import L2
from psvit_core.importance.l2_group import L2Group
from psvit_core.importance.random import Random
from psvit_core.importance.reconstruction import Reconstruction
from psvit_core.importance.taylor import Taylor
from psvit_core.runtime import Run
from psvit_core.store import ENGINE_VERSION, Store, digest
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

Ranking = dict[str, tuple[int, ...]]  # group_id -> units, most important first


def go_on() -> None:
    """Never stop."""


_ALL: tuple[Criterion, ...] = (
    L1(),
    L2(),
    L2Group(),
    FPGM(),
    BatchNormScale(),
    FiringRate(),
    ActivationWeight(),
    Taylor(),
    Reconstruction(),
    Random(),
)
CRITERIA: dict[str, Criterion] = {c.name: c for c in _ALL}
#: Criteria that need no images.
WEIGHT_CRITERIA = tuple(c.name for c in _ALL if not c.needs_images)


def criterion(name: str) -> Criterion:
    """The criterion of that name; ``UnknownNameError`` with the nearest name otherwise."""
    if name not in CRITERIA:
        raise UnknownNameError("criterion", name, CRITERIA)
    return CRITERIA[name]


def all_scores(
    model: SpikingModel,
    name: str,
    *,
    calib: EvalSet | None = None,
    run: Run | None = None,
    seed: int = 0,
    tick: Tick = go_on,
) -> Scores:
    """Importance of each unit of every group, higher means keep.

    Args:
        model: The model; not changed. It runs in its own precision, in evaluation mode.
        name: A name of ``CRITERIA``.
        calib: Calibration images, with labels; ignored by criteria that need none. The data set's
            own are ``load_data(spec, split="calib")``.
        run: Device, batch and decoding; the defaults when None.
        seed: For the criterion ``random``; which images are in ``calib`` is the caller's choice.
        tick: Called before each batch; may raise to stop.

    Returns:
        (n_units,) float64 by group, finite and at least 0; comparable inside a group only.

    Raises:
        UnknownNameError: If there is no such criterion.
        DataError: If it needs images and there are none, or they are a test split, or have labels
            that the model has no outputs for.
    """
    chosen = criterion(name)
    if not chosen.needs_images:
        calib = None  # so that it cannot matter
    elif calib is None or not len(calib):
        raise DataError(
            f"Criterion {name!r} ranks units by what they do on images: give calibration images, "
            f"e.g. calib=load_data('digits', split='calib'), or take one "
            f"that needs none: {', '.join(WEIGHT_CRITERIA)}."
        )
    elif calib.split == "test":
        raise DataError(
            "Criteria never see the test split: what is chosen on it could not be judged on it. "
            "Calibrate on --split calib."
        )
    elif max(calib.labels) >= model.num_classes:
        raise DataError(
            f"{calib.spec} has labels up to {max(calib.labels)}, but {model.name} has "
            f"{model.num_classes} outputs. Calibrate on images of the classes of its training."
        )
    given = Calibration(images=calib, run=run or Run(), seed=seed, tick=tick)
    return chosen.all_scores(model, given)


def rank(
    model: SpikingModel,
    name: str,
    *,
    calib: EvalSet | None = None,
    run: Run | None = None,
    seed: int = 0,
    store: Store | None = None,
    tick: Tick = go_on,
) -> Ranking:
    """Units of every group, most important first; equal scores in index order.

    Args:
        model: The model, as ``all_scores`` takes it; further arguments and errors are its, too.
        name: A name of ``CRITERIA``.
        calib: Calibration images.
        run: Device, batch and decoding.
        seed: For the criterion ``random``.
        store: Where rankings by images are kept and taken from, or None.
        tick: Called before each batch; may raise to stop.
    """
    by_images = criterion(name).needs_images and calib is not None
    key = _key(model, name, calib, run or Run()) if store and by_images else None
    known = store.get(key) if store and key else None
    if known:
        return {group_id: tuple(units) for group_id, units in known.items()}
    scores = all_scores(model, name, calib=calib, run=run, seed=seed, tick=tick)
    ranking = {
        group_id: tuple(torch.sort(own, descending=True, stable=True).indices.tolist())
        for group_id, own in scores.items()
    }
    if store and key:
        store.put(key, ranking)
    return ranking


def _key(model: SpikingModel, name: str, calib: EvalSet | None, run: Run) -> str:
    """Where the ranking by calibration images is kept."""
    assert calib is not None
    batch = run.batch if model.batch_coupled else None
    images = [calib.split, calib.transform, *calib.ids]
    return "ranking/" + digest([ENGINE_VERSION, weights_hash(model), name, model.T, batch, images])


__all__ = [
    "CRITERIA",
    "WEIGHT_CRITERIA",
    "Criterion",
    "all_scores",
    "criterion",
    "rank",
]
