"""Image data sets: digits, CIFAR-10, image folders, ImageNet and ``.npz`` files.

A specification names the data (``digits``, ``folder:DIR``, ...); ``load_data`` returns one split as
an ``EvalSet``. Image ids are the same in every run because results are stored per image. Data files
are
untrusted: nothing in them is executed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from psvit_core.data.cifar10 import cifar10_jpeg_source, cifar10_source
from psvit_core.data.digits import digits_arrays, digits_source, digits_split
from psvit_core.data.distorted import distorted_source
from psvit_core.data.download import cifar10_folder, missing_cifar10
from psvit_core.data.evalset import N_CALIB, SPLITS, EvalSet, Source
from psvit_core.data.files import UnreadableImageError
from psvit_core.data.folder import folder_source
from psvit_core.data.imagenet import imagenet_source
from psvit_core.data.npz import npz_source
from psvit_core.data.pixels import fit, normalise
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.files import PLACELESS, expand
from psvit_core.records import DIGITS_TRANSFORM, Transform

__all__ = [
    "BAD_IMAGE_ACTIONS",
    "N_CALIB",
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

SPECS = (
    "digits",
    "digits:distorted",
    "cifar10",
    "cifar10:DIR",
    "cifar10-jpeg:DIR",
    "folder:DIR",
    "imagenet:DIR",
    "npz:FILE",
)
BAD_IMAGE_ACTIONS = ("stop", "skip")

_BUILT_IN: dict[str, Callable[[str, Transform], Source]] = {
    "digits": digits_source,
    "digits:distorted": distorted_source,
}
_WITH_PATH: dict[str, Callable[[Path, str, Transform], Source]] = {
    "cifar10": cifar10_source,
    "cifar10-jpeg": cifar10_jpeg_source,
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
    """Load one split of a data set.

    Only files of the selected subset are accessed, and images are decoded when they are needed.

    Args:
        spec: ``digits``; ``digits:distorted`` (rotated, scaled, sheared and noisy digits);
            ``cifar10:DIR`` (the published batches, Python or binary version; ``cifar10`` alone if
            they were downloaded, see ``data.download``); ``cifar10-jpeg:DIR``
            (JPEGs of them, in class folders in DIR/train and DIR/test); ``folder:DIR`` (one
            subfolder per class, in DIR or in DIR/SPLIT); ``imagenet:DIR`` (train/ and val/); or
            ``npz:FILE`` (``labels`` [N] and either ``images`` [N, H, W] or [N, H, W, C] of uint8,
            or ``frames`` [N, T, C, H, W] of uint8 or float32).
        split: One of ``train``, ``calib``, ``val``, ``test``.
        transform: The model's evaluation transform; None for that of the digits.
        limit: Size of a stratified, seeded subset, as for ``EvalSet.limit``; None for all images.
        on_bad: Handling of unreadable images: ``stop`` raises when one is decoded; ``skip`` checks
            all images of the subset now, removes the unreadable ones and lists them in
            ``EvalSet.bad``.
        seed: Seed of the subset.

    Raises:
        DataError: If there are no usable images or the data has no such split.
        UnknownNameError: If ``spec``, ``split`` or ``on_bad`` is unknown.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if on_bad not in BAD_IMAGE_ACTIONS:
        raise UnknownNameError("bad-image action", on_bad, BAD_IMAGE_ACTIONS)
    source = _source(spec, split, transform or DIGITS_TRANSFORM)
    return source.load_subset(spec, split, limit, skip_bad=on_bad == "skip", seed=seed)


def count_images(
    spec: str, split: str, transform: Transform | None = None
) -> tuple[list[int], tuple[str, ...]]:
    """Count the images of one split by class, without reading them.

    Args:
        spec: As for ``load_data``.
        split: As for ``load_data``.
        transform: As for ``load_data``.

    Returns:
        (number of images of each class, class names).

    Raises:
        DataError: If there are no usable images or the data has no such split.
        UnknownNameError: If ``spec`` or ``split`` is unknown.
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
    if spec == "cifar10":
        downloaded = cifar10_folder()
        if downloaded is None:
            raise missing_cifar10()
        return cifar10_source(downloaded, split, transform)
    if kind in PLACELESS and not place:  # the data of a model that ships without its images
        raise DataError(f"The images of {kind} are not included. Say where they are: {kind}:DIR.")
    if kind not in _WITH_PATH or not place:
        raise UnknownNameError("data set", spec, SPECS)
    try:
        return _WITH_PATH[kind](expand(place), split, transform)
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise DataError(
            f"Cannot read {kind}:{place:.80}: {error.strerror or error}. Check the path and its "
            "permissions."
        ) from error
