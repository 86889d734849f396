"""Importance criteria, one per file, and rankings of units by them."""

from __future__ import annotations

import torch

from psvit_core.callbacks import Tick, keep_going
from psvit_core.data import EvalSet
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.importance._base import Calibration, Criterion, Scores
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
from psvit_core.records import WEIGHT_CRITERIA
from psvit_core.runtime import Run
from psvit_core.storage.store import ENGINE_VERSION, Store, digest
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

Ranking = dict[str, tuple[int, ...]]  # group_id -> units, most important first


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
#: Criteria by name; ``records.WEIGHT_CRITERIA`` and ``records.IMAGE_CRITERIA`` list the names.
CRITERIA: dict[str, Criterion] = {c.name: c for c in _ALL}


def criterion(name: str) -> Criterion:
    """Return a criterion by name.

    Raises:
        UnknownNameError: If the name is unknown.
    """
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
    tick: Tick = keep_going,
) -> Scores:
    """Compute the importance of each unit of every group; units with higher scores are kept.

    Args:
        model: The model, which is not changed. Runs in its own precision, in evaluation mode.
        name: A key of ``CRITERIA``.
        calib: Labelled calibration images, e.g. ``load_data(spec, split="calib")``; ignored by
            criteria that need none.
        run: Device, batch size and workers; None for the defaults.
        seed: Seed of the criterion ``random``.
        tick: Called before each batch; may raise to stop.

    Returns:
        (n_units,) float64 by group, finite and at least 0; comparable within a group only.

    Raises:
        UnknownNameError: If the criterion is unknown.
        DataError: If required images are missing, from the test split, or of classes that the
            model does not have.
    """
    chosen = criterion(name)
    if chosen.needs_images:
        _check_calibration(name, model, calib)
    images = calib if chosen.needs_images else None
    calibration = Calibration(images=images, run=(run or Run()).exact, seed=seed, tick=tick)
    return chosen.all_scores(model, calibration)


def _check_calibration(name: str, model: SpikingModel, calib: EvalSet | None) -> None:
    if calib is None or not len(calib):
        raise DataError(
            f"Criterion {name!r} needs calibration images. Give them, e.g. "
            "calib=load_data('digits', split='calib'), or use a criterion that needs none: "
            f"{', '.join(WEIGHT_CRITERIA)}."
        )
    if calib.split == "test":
        raise DataError(
            "Criteria must not use the test split, which would bias its results. Use the split "
            "calib."
        )
    if max(calib.labels) >= model.num_classes:
        raise DataError(
            f"{calib.spec} has labels up to {max(calib.labels)}, but {model.name} has "
            f"{model.num_classes} outputs. Use images of the classes it was trained on."
        )


def rank(
    model: SpikingModel,
    name: str,
    *,
    calib: EvalSet | None = None,
    run: Run | None = None,
    seed: int = 0,
    store: Store | None = None,
    tick: Tick = keep_going,
) -> Ranking:
    """Rank the units of every group, most important first, ties in index order.

    Args:
        model: As for ``all_scores``, which raises the same errors.
        name: A key of ``CRITERIA``.
        calib: As for ``all_scores``.
        run: As for ``all_scores``.
        seed: As for ``all_scores``.
        store: Cache of rankings that use images, or None.
        tick: As for ``all_scores``.
    """
    by_images = criterion(name).needs_images and calib is not None
    key = _key(model, name, calib, run or Run()) if store and by_images else None
    cached = store.get(key) if store and key else None
    if cached:
        return {group_id: tuple(units) for group_id, units in cached.items()}
    scores = all_scores(model, name, calib=calib, run=run, seed=seed, tick=tick)
    ranking = {
        group_id: tuple(torch.sort(own, descending=True, stable=True).indices.tolist())
        for group_id, own in scores.items()
    }
    if store and key:
        with store.optional():
            store.put(key, ranking)
    return ranking


def _key(model: SpikingModel, name: str, calib: EvalSet | None, run: Run) -> str:
    """Return the store key of a ranking that uses images."""
    assert calib is not None
    batch = run.batch if model.batch_coupled else None
    images = [calib.split, calib.transform, *calib.ids]
    return "ranking/" + digest([ENGINE_VERSION, weights_hash(model), name, model.T, batch, images])


__all__ = ["CRITERIA", "WEIGHT_CRITERIA", "Criterion", "all_scores", "criterion", "rank"]
