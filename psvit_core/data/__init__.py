"""Images to measure on: digits, CIFAR-10, class folders, ImageNet and ``.npz`` files.

A specification names the data (``digits``, ``folder:DIR``, ...); ``load_data`` returns an
``EvalSet`` of one split. Image ids are stable over runs, so that results are kept per image. One
file holds one kind of source; none executes anything that it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from psvit_core.data.cifar10 import cifar10_source
from psvit_core.data.digits import digits_arrays, digits_source, digits_split
from psvit_core.data.distorted import distorted_source
from psvit_core.data.evalset import N_CALIB, SPLITS, EvalSet, Source
from psvit_core.data.files import UnreadableImageError
from psvit_core.data.folder import folder_source
from psvit_core.data.imagenet import imagenet_source
from psvit_core.data.npz import npz_source
from psvit_core.data.pixels import fit, normalise
from psvit_core.errors import UnknownNameError
from psvit_core.records import DIGITS_TRANSFORM, Transform

__all__ = [
    "N_CALIB",
    "ON_BAD",
    "SPECS",
    "SPLITS",
    "EvalSet",
    "UnreadableImageError",
    "count_images",
    "digits_arrays",
    "digits_split",
    "fit",
    "load_data",
    "normalise",
]

SPECS = ("digits", "digits:distorted", "cifar10:DIR", "folder:DIR", "imagenet:DIR", "npz:FILE")
ON_BAD = ("stop", "skip")

_BUILT_IN: dict[str, Callable[[str, Transform], Source]] = {
    "digits": digits_source,
    "digits:distorted": distorted_source,
}
_PLACED: dict[str, Callable[[Path, str, Transform], Source]] = {
    "cifar10": cifar10_source,
    "folder": folder_source,
    "imagenet": imagenet_source,
    "npz": npz_source,
}


def load_data(
    spec: str,
    *,
    split: str = "val",
    transform: Transform | None = None,
    limit: int | None = None,
    on_bad: str = "stop",
    seed: int = 0,
) -> EvalSet:
    """One split of the data that ``spec`` names.

    Only the images of the subset are looked at, and none is decoded before it is needed.

    Args:
        spec: ``digits``; ``digits:distorted`` (the same, rotated, scaled, sheared and noisy);
            ``cifar10:DIR`` (the published batches, python or binary version);
            ``folder:DIR`` (class folders, in DIR or in DIR/SPLIT); ``imagenet:DIR`` (train/ and
            val/); or ``npz:FILE`` (``labels`` [N] and either ``images`` [N, H, W] or
            [N, H, W, C] of uint8, or ``frames`` [N, T, C, H, W] of uint8 or float32).
        split: One of ``train``, ``calib``, ``val``, ``test``.
        transform: The model's evaluation transform; the digits' own when None.
        limit: Keep a stratified, seeded subset of so many images, as ``EvalSet.limit``.
        on_bad: What to do with unreadable images: ``stop`` raises when one is decoded; ``skip``
            decodes all images of the subset now, leaves the unreadable ones out and names them in
            ``EvalSet.bad``.
        seed: Which images a ``limit`` keeps.

    Raises:
        DataError: If there are no usable images or no such split.
        UnknownNameError: If ``spec`` names no kind of data.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if on_bad not in ON_BAD:
        raise UnknownNameError("way with bad images", on_bad, ON_BAD)
    source = _source(spec, split, transform or DIGITS_TRANSFORM)
    return source.choose(spec, split, limit, skip_bad=on_bad == "skip", seed=seed)


def count_images(
    spec: str, split: str, transform: Transform | None = None
) -> tuple[list[int], tuple[str, ...]]:
    """How many images one split of the data has, by class; no image is read.

    Args:
        spec: As for ``load_data``.
        split: As for ``load_data``.
        transform: As for ``load_data``.

    Returns:
        (images of each class, names of the classes).

    Raises:
        DataError: If there are no usable images or no such split.
        UnknownNameError: If ``spec`` names no kind of data.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    source = _source(spec, split, transform or DIGITS_TRANSFORM)
    counts = [0] * max(len(source.classes), 1 + max(source.labels, default=0))
    for label in source.labels:
        counts[label] += 1
    return counts, source.classes


def _source(spec: str, split: str, transform: Transform) -> Source:
    kind, _, place = spec.partition(":")
    if spec in _BUILT_IN:
        return _BUILT_IN[spec](split, transform)
    if kind not in _PLACED or not place:
        raise UnknownNameError("data", spec, SPECS)
    return _PLACED[kind](Path(place), split, transform)
