"""``npz:FILE``: labels with images, or with frames of event cameras, as numpy arrays.

An archive is read only where its headers agree with what it holds and with the free memory.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.lib import format as npy
from torch import Tensor

from psvit_core.data.evalset import Source
from psvit_core.data.files import UnreadableImageError, digest, reason_of, shown
from psvit_core.data.pixels import ArrayImages, Prepare, normalise, standardise, to_pixels
from psvit_core.errors import DataError
from psvit_core.records import Transform

MAX_CLASSES = 100_000
MAX_DEFLATE = 1_100  # zlib packs at most 1,032 bytes into one
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}

Array = np.ndarray[Any, Any]


def npz_source(place: Path, split: str, transform: Transform) -> Source:
    """The images or frames of a file; it holds one split, ``val``."""
    if split != "val":
        raise DataError(f"An .npz file holds one split, val; asked for {split!r}.")
    arrays = _read(place)
    labels = arrays["labels"]
    if "images" in arrays:
        return _images(place, arrays["images"], labels, transform)
    return _frames(place, arrays["frames"], labels, transform)


# ---- images ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SizedImages:
    """``load`` of images (N, H, W, C) that already have the size of the model's crop."""

    pixels: Array
    transform: Transform

    def __call__(self, position: int) -> Tensor:
        return normalise(to_pixels(self.pixels[position]), self.transform)


def _images(place: Path, images: Array, labels: Array, transform: Transform) -> Source:
    """Images of the crop's size are taken as cropped before; others are resized and cropped."""
    if images.ndim == 3:
        images = images[..., None]
    fits = images.ndim == 4 and images.dtype == np.uint8 and images.shape[3] == transform.channels
    if not fits or not images.size or not _are_labels(labels, images):
        raise DataError(
            f"{shown(place)}: 'images' must be uint8 [N, H, W] or [N, H, W, {transform.channels}] "
            "and 'labels' [N] integers from 0 to 99,999 with N > 0; got "
            f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}."
        )
    sized = images.shape[1:3] == (transform.crop, transform.crop)
    return _source(
        images,
        labels,
        transform=transform.name,
        load=_SizedImages(images, transform) if sized else ArrayImages(images, Prepare(transform)),
    )


# ---- frames ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frames:
    """``load`` of frames (N, T, C, H, W); uint8 like pixels, float32 as they are."""

    place: Path
    frames: Array
    transform: Transform

    def __call__(self, position: int) -> Tensor:
        self.check(position)
        frames = torch.from_numpy(self.frames[position])
        if frames.dtype == torch.float32:
            return frames
        return standardise(frames.float() / 255, self.transform)

    def check(self, position: int) -> None:
        """Raise ``UnreadableImageError`` unless all values are finite."""
        frames = self.frames[position]
        if frames.dtype != np.uint8 and not np.isfinite(frames).all():
            name = f"{shown(self.place)}, frames[{position}]"
            raise UnreadableImageError(name, "values that are infinite or no numbers")


def _frames(place: Path, frames: Array, labels: Array, transform: Transform) -> Source:
    """Frames have the size of the network's input; nothing is resized or padded."""
    side = transform.crop + 2 * transform.pad
    shape = (transform.channels, side, side)
    fits = frames.ndim == 5 and frames.dtype in (np.uint8, np.float32) and frames.shape[2:] == shape
    if not fits or not frames.size or not _are_labels(labels, frames):
        raise DataError(
            f"{shown(place)}: 'frames' must be uint8 or float32 [N, T, {', '.join(map(str, shape))}"
            "] for this model and 'labels' [N] integers from 0 to 99,999 with N and T > 0; got "
            f"{frames.dtype} {frames.shape} and {labels.dtype} {labels.shape}."
        )
    stats = ",".join(f"{v:g}" for v in (*transform.mean, *transform.std))
    load = _Frames(place, frames, transform)
    return _source(
        frames,
        labels,
        transform="frames" + (f", normalise {stats}" if frames.dtype == np.uint8 else ""),
        load=load,
        check=load.check,
        time_steps=frames.shape[1],
    )


# ---- both ------------------------------------------------------------------------------------


def _are_labels(labels: Array, images: Array) -> bool:
    whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == images.shape[:1]
    return bool(whole and labels.min() >= 0 and labels.max() < MAX_CLASSES)


def _source(images: Array, labels: Array, **facts: Any) -> Source:
    """An image's id is its label and content."""
    numbers = tuple(int(label) for label in labels)

    def identify(position: int) -> str:
        image = np.ascontiguousarray(images[position])
        facts = f"{numbers[position]}/{image.dtype}/{image.shape}/"
        return digest(facts.encode() + image.tobytes())

    classes = tuple(str(c) for c in range(max(numbers) + 1))
    return Source(labels=numbers, classes=classes, identify=identify, **facts)


def _read(place: Path) -> dict[str, Array]:
    """The arrays ``labels`` and ``images`` or ``frames`` of an archive."""
    try:
        if not place.is_file():
            raise ValueError("there is no such file")
        with zipfile.ZipFile(place) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            kinds = sorted(names & {"images", "frames"})
            if "labels" not in names or len(kinds) != 1:
                raise ValueError(f"it holds {', '.join(sorted(names))[:200] or 'nothing'}")
            return {name: _read_array(archive, f"{name}.npy") for name in ("labels", *kinds)}
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for damaged files
        raise DataError(
            f"{shown(place)} is not an .npz file with arrays 'labels' and either 'images' or "
            f"'frames' ({reason_of(error)})."
        ) from error


def _read_array(archive: zipfile.ZipFile, name: str) -> Array:
    """An array of the archive; raises ``ValueError`` if its header promises what is not there."""
    member = archive.getinfo(name)
    ways = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: MAX_DEFLATE}
    packed = min(member.compress_size, Path(str(archive.filename)).stat().st_size)
    if member.file_size > ways.get(member.compress_type, 0) * packed:
        raise ValueError(f"{packed:,} bytes in it cannot hold {member.file_size:,} of {name}")
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} is of the unknown version {version}")
        shape, _, dtype = _HEADERS[version](file)
        n_bytes = math.prod(shape) * dtype.itemsize
        if (
            dtype.hasobject
            or min(shape, default=0) < 0
            or n_bytes != member.file_size - file.tell()
        ):
            raise ValueError(
                f"the header of {name} says {shape} {dtype}, {n_bytes:,} bytes; it holds "
                f"{member.file_size - file.tell():,}"
            )
    free = psutil.virtual_memory().available
    if n_bytes > free:
        raise ValueError(f"{name} takes {n_bytes:,} bytes of memory and {free:,} are free")
    with archive.open(member) as file:
        array: Array = npy.read_array(file, allow_pickle=False)
        file.read(1)  # its end, where the checksum is compared
    return array
