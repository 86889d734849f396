"""Importance criteria, one file each."""

from __future__ import annotations

import torch

from psvit_core.data import EvalSet
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.importance._base import Criterion, Scores
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
from psvit_core.zoo.base import SpikingModel

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
DEFAULT_CRITERION = L2.name


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
) -> Scores:
    """Importance of each unit of every group, higher means keep.

    Args:
        model: The model; not changed. It runs in its own precision, in evaluation mode.
        name: A name of ``CRITERIA``.
        calib: Calibration images, with labels; ignored by criteria that need none. The data set's
            own are ``load_data(spec, split="calib")``.
        run: Device, batch and decoding; the defaults when None.
        seed: For the criterion ``random``; which images are in ``calib`` is the caller's choice.

    Returns:
        (n_units,) float64 by group, finite and at least 0; comparable inside a group only.

    Raises:
        UnknownNameError: If there is no such criterion.
        DataError: If it needs images and there are none, or they are a test split, or have labels
            that the model has no outputs for.
    """
    chosen = criterion(name)
    if not chosen.needs_images:
        calib = None
    elif calib is None or not len(calib):
        others = ", ".join(n for n, c in CRITERIA.items() if not c.needs_images)
        raise DataError(
            f"Criterion {name!r} ranks units by what they do on images: give calibration images, "
            f'e.g. calib=load_data("digits", split="calib"), or take one that needs none: {others}.'
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
    return chosen.all_scores(model, calib, run or Run(), seed)


def rank(
    model: SpikingModel,
    name: str,
    *,
    calib: EvalSet | None = None,
    run: Run | None = None,
    seed: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Units of every group, most important first; equal scores in index order.

    Args and errors are those of ``all_scores``.
    """
    scores = all_scores(model, name, calib=calib, run=run, seed=seed)
    return {
        group_id: tuple(torch.sort(own, descending=True, stable=True).indices.tolist())
        for group_id, own in scores.items()
    }


__all__ = ["CRITERIA", "DEFAULT_CRITERION", "Criterion", "all_scores", "criterion", "rank"]
