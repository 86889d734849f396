"""``npz:FILE``: numpy arrays of labels with images, or with frames of event cameras.

Before an array is read, its header is compared with the archive's contents and the free memory.
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
from psvit_core.data.files import UnreadableImageError, content_hash, escape, reason_of
from psvit_core.data.pixels import ArrayImages, Prepare, normalise, standardise, to_pixels
from psvit_core.errors import DataError
from psvit_core.records import Transform

MAX_CLASSES = 100_000
MAX_DEFLATE = 1_100  # zlib compresses at most 1,032 bytes into one
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}

Array = np.ndarray[Any, Any]


def npz_source(place: Path, split: str, transform: Transform) -> Source:
    """Return the images or frames of a file, which has a single split, ``val``."""
    if split != "val":
        raise DataError(f"An .npz file has only the split val; got {split!r}. Use --split val.")
    arrays = _read(place)
    labels = arrays["labels"]
    if "images" in arrays:
        return _images(place, arrays["images"], labels, transform)
    return _frames(place, arrays["frames"], labels, transform)


# ---- images ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SizedImages:
    """Loads images (N, H, W, C) that have the size of the model's crop."""

    pixels: Array
    transform: Transform

    def __call__(self, position: int) -> Tensor:
        return normalise(to_pixels(self.pixels[position]), self.transform)


def _images(place: Path, images: Array, labels: Array, transform: Transform) -> Source:
    """Return a source of images; those not of the crop's size are resized and cropped."""
    if images.ndim == 3:
        images = images[..., None]
    valid = images.ndim == 4 and images.dtype == np.uint8 and images.shape[3] == transform.channels
    if not valid or not images.size or not _are_labels(labels, images):
        raise DataError(
            f"{escape(place)}: 'images' must be uint8 [N, H, W] or [N, H, W, {transform.channels}] "
            f"and 'labels' [N] integers from 0 to {MAX_CLASSES - 1:,} with N > 0; got "
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
    """Loads frames (N, T, C, H, W): uint8 is normalised like pixels, float32 is unchanged."""

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
            name = f"{escape(self.place)}, frames[{position}]"
            raise UnreadableImageError(name, "infinite or undefined values")


def _frames(place: Path, frames: Array, labels: Array, transform: Transform) -> Source:
    """Return a source of frames, which must have the size of the network's input."""
    side = transform.crop + 2 * transform.pad
    shape = (transform.channels, side, side)
    known_dtype = frames.dtype in (np.uint8, np.float32)
    valid = frames.ndim == 5 and known_dtype and frames.shape[2:] == shape
    if not valid or not frames.size or not _are_labels(labels, frames):
        raise DataError(
            f"{escape(place)}: 'frames' must be uint8 or float32 [N, T, "
            f"{', '.join(map(str, shape))}] for this model and 'labels' [N] "
            f"integers from 0 to {MAX_CLASSES - 1:,} with N and T > 0; got "
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
    integers = np.issubdtype(labels.dtype, np.integer) and labels.shape == images.shape[:1]
    return bool(integers and labels.min() >= 0 and labels.max() < MAX_CLASSES)


def _source(images: Array, labels: Array, **facts: Any) -> Source:
    """Return a source whose ids are hashes of label and content."""
    numbers = tuple(int(label) for label in labels)

    def identify(position: int) -> str:
        image = np.ascontiguousarray(images[position])
        facts = f"{numbers[position]}/{image.dtype}/{image.shape}/"
        return content_hash(facts.encode() + image.tobytes())

    classes = tuple(str(c) for c in range(max(numbers) + 1))
    return Source(labels=numbers, classes=classes, identify=identify, **facts)


def _read(place: Path) -> dict[str, Array]:
    """Read the arrays ``labels`` and ``images`` or ``frames`` of an archive."""
    try:
        if not place.is_file():
            raise ValueError("the file does not exist")
        with zipfile.ZipFile(place) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            kinds = sorted(names & {"images", "frames"})
            if "labels" not in names or len(kinds) != 1:
                raise ValueError(f"it contains {', '.join(sorted(names))[:200] or 'nothing'}")
            return {name: _read_array(archive, f"{name}.npy") for name in ("labels", *kinds)}
    except Exception as error:  # numpy, zipfile and zlib raise many types for damaged files
        raise DataError(
            f"{escape(place)} is not an .npz file with arrays 'labels' and either 'images' or "
            f"'frames' ({reason_of(error)})."
        ) from error


def _read_array(archive: zipfile.ZipFile, name: str) -> Array:
    """Read an array; raise ``ValueError`` if its header does not match the contents."""
    member = archive.getinfo(name)
    max_ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: MAX_DEFLATE}
    compressed = min(member.compress_size, Path(str(archive.filename)).stat().st_size)
    if member.file_size > max_ratio.get(member.compress_type, 0) * compressed:
        raise ValueError(
            f"{compressed:,} compressed bytes cannot contain the {member.file_size:,} of {name}"
        )
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} has the unknown version {version}")
        shape, _, dtype = _HEADERS[version](file)
        n_bytes = math.prod(shape) * dtype.itemsize
        if (
            dtype.hasobject
            or min(shape, default=0) < 0
            or n_bytes != member.file_size - file.tell()
        ):
            raise ValueError(
                f"the header of {name} announces {shape} {dtype}, {n_bytes:,} bytes, but it "
                f"contains {member.file_size - file.tell():,}"
            )
    free = psutil.virtual_memory().available
    if n_bytes > free:
        raise ValueError(f"{name} needs {n_bytes:,} bytes of memory and {free:,} are free")
    with archive.open(member) as file:
        array: Array = npy.read_array(file, allow_pickle=False)
        file.read(1)  # reaches the end, where the checksum is verified
    return array
