"""Folders of images: their splits and classes, told from names alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from psvit_core.files import expand_spec

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
READING = "2-"  # begins the digest of images that versions up to 0.2 read differently
WNID = re.compile(r"n\d{8}")  # name of a class folder of ImageNet
#: Folders that systems and tools leave among the class folders of a data set, in lower case.
_LEFTOVERS = frozenset(
    (
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "__pycache__",
        "lost+found",
        "system volume information",
    )
)
#: Names of split folders, in lower case, without an ``images`` before or after them.
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "calib": "calib",
    "calibration": "calib",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_EXTRA = r"(?:images?|imgs?|data|dataset|set|split)"
_SPLIT_NAME = re.compile(
    rf"(?:{_EXTRA}[ _.-]?)?({'|'.join(_SPLIT_WORDS)})(?:[ _.-]?{_EXTRA})?", re.IGNORECASE
)


def is_ignored_folder(name: str) -> bool:
    """Return whether a folder is hidden, or left by a system or tool, and never a class."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def is_image_name(name: str) -> bool:
    """Return whether a file's name ends like that of an image and is not hidden."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without those that are never a class.

    Raises:
        OSError: If the folder cannot be read.
    """
    with os.scandir(folder) as found:
        return sorted(e.name for e in found if not is_ignored_folder(e.name) and e.is_dir())


def has_images(folder: Path, *, deep: bool = True) -> bool:
    """Return whether a folder contains an image; with ``deep``, it may be in a subfolder.

    Raises:
        OSError: If a folder cannot be read.
    """
    return any(True for _ in _images(folder, set(), deep))


def _images(folder: Path, seen: set[tuple[int, int]], deep: bool) -> Iterator[str]:
    facts = folder.stat()
    if (facts.st_dev, facts.st_ino) in seen:  # links that lead here again
        return
    seen.add((facts.st_dev, facts.st_ino))
    below = []
    with os.scandir(folder) as found:
        for entry in found:
            if is_ignored_folder(entry.name):
                continue
            if entry.is_dir():
                below.append(Path(entry.path))
            elif is_image_name(entry.name):
                yield entry.path
    for place in below if deep else ():
        yield from _images(place, seen, deep)


def split_folders(place: Path) -> dict[str, list[Path]]:
    """Return the folders of each split in a data set's folder.

    Names are compared without case: ``train`` or ``training``, ``val``, ``valid`` or
    ``validation``, ``test``, ``calib``; also with ``images`` before or after, as in
    ``images_train``. A folder of the exact name (``val``) comes before all others. A folder of
    images among class folders is a class, whatever its name.

    Raises:
        OSError: If the folder cannot be read.
    """
    found: dict[str, list[Path]] = {}
    others = []
    for name in subfolders(place):
        match = _SPLIT_NAME.fullmatch(name)
        if match:
            found.setdefault(_SPLIT_WORDS[match[1].lower()], []).append(place / name)
        else:
            others.append(place / name)
    for split, folders in found.items():
        exact = [folder for folder in folders if folder.name == split]
        found[split] = exact or folders
    flat = [f for folders in found.values() for f in folders if _is_flat(f)]
    if flat and len(flat) == sum(map(len, found.values())) and any(map(has_images, others)):
        return {}  # a class named like a split, among other classes
    return found


def _is_flat(folder: Path) -> bool:
    return not subfolders(folder) and has_images(folder, deep=False)


def class_names(place: Path, splits: dict[str, list[Path]]) -> list[str]:
    """Return the names of all classes of a data set, sorted, over all of its splits.

    If there is a ``train`` split, an empty folder that is not in ``train`` is no class. Without
    that split, an empty folder counts as a class without images.

    Args:
        place: The data set's folder, with class folders if there are no splits.
        splits: Its split folders, as from ``split_folders``.

    Raises:
        OSError: If a folder cannot be read.
    """
    names = {name for folder in splits.get("train", ()) for name in subfolders(folder)}
    for root in [root for folders in splits.values() for root in folders] or [place]:
        for name in subfolders(root):
            if name not in names and ("train" not in splits or has_images(root / name)):
                names.add(name)
    return sorted(names)


def is_read_anew(spec: str, split: str) -> bool:
    """Return whether versions up to 0.2 read other images or labels for a split of a data set."""
    kind, _, place = expand_spec(spec).partition(":")
    return kind == "cifar10" or (kind == "folder" and is_read_differently(Path(place), split))


def is_read_differently(place: Path, split: str) -> bool:
    """Return whether a split's images or labels differ from those of versions up to 0.2.

    These knew splits by their exact names only, counted the classes of each split by itself, and
    took every folder for a class. Results of such versions do not hold where this is true.
    """
    try:
        splits = split_folders(place)
        names = class_names(place, splits)
        divided = takes_val_from_train(splits) and _folder_of(split, splits) == "train"
        before = place / split
        if not before.is_dir():
            before = place / "train" if split == "calib" else place
        [root] = splits[_folder_of(split, splits)] if splits else [place]
        return (
            divided
            or root != before
            or _are_relabelled(root, names)
            or any(_has_leftovers(root / name) for name in names)
        )
    except (OSError, LookupError, ValueError):  # no such split, which has no results
        return False


def _folder_of(split: str, splits: dict[str, list[Path]]) -> str:
    """Return the split whose folder contains a split's images."""
    inside = split == "calib" or (split == "val" and takes_val_from_train(splits))
    return "train" if split not in splits and inside else split


def takes_val_from_train(splits: dict[str, list[Path]]) -> bool:
    """Return whether the validation images are a part of ``train``: there is no folder for them."""
    return "train" in splits and "test" in splits and "val" not in splits


def _are_relabelled(root: Path, names: list[str]) -> bool:
    before = _names_before(root)
    # ImageNet's classes are numbered by their own list, whichever are there.
    return before != names and not all(map(WNID.fullmatch, (*before, *names)))


def _names_before(root: Path) -> list[str]:
    with os.scandir(root) as found:
        return sorted(e.name for e in found if not e.name.startswith(".") and e.is_dir())


def _has_leftovers(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("@eaDir", "__MACOSX"))  # lists no images
