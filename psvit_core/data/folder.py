"""``folder:DIR``: one subfolder per class, in DIR or in a folder per split in DIR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from psvit_core.data.evalset import Source, calib_positions, split_tenth
from psvit_core.data.files import FileImages, FolderScan, escape, reason_of
from psvit_core.data.pixels import Prepare
from psvit_core.data.wnids import imagenet_classes, imagenet_labels
from psvit_core.errors import DataError
from psvit_core.image_folders import (
    IMAGE_SUFFIXES,
    READING,
    WNID,
    class_names,
    has_images,
    is_read_differently,
    split_folders,
    subfolders,
    takes_val_from_train,
)
from psvit_core.records import Transform

_LEVELS = 3  # folders below the given one in which splits are looked for
_MAX_LOOKED = 200  # folders that are looked at
_NAMED = 3  # folders that a message names

T = TypeVar("T")


def folder_source(place: Path, split: str, transform: Transform) -> Source:
    """Return a split of class folders.

    Classes are those of all splits, numbered in alphabetical order, or with ImageNet's class
    indices if all folder names are ImageNet's wnids. ``calib`` is taken from ``train`` if it has no
    folder. If there are ``train`` and ``test`` and no validation images, ``val`` is a tenth of
    ``train``, which ``train`` and ``calib`` then lack.
    """
    if not place.is_dir():
        raise DataError(
            f"Folder {escape(place)} does not exist. Give --data folder:DIR with class folders."
        )
    splits = find_splits(place)
    if not splits and split != "val":
        raise _no_split(place, split)
    for root in splits.values() or (place,):
        _check_level(root, place)
    names = _read(class_names, place, {name: [root] for name, root in splits.items()})
    source = _split_source(place, splits, split, names, transform)
    return replace(source, reading=READING if is_read_differently(place, split) else "")


def _split_source(
    place: Path, splits: dict[str, Path], split: str, names: Sequence[str], transform: Transform
) -> Source:
    """Return a split; ``calib``, and ``val`` where it has no folder, are parts of ``train``."""
    own = splits.get(split) if splits else place
    divided = takes_val_from_train({name: [root] for name, root in splits.items()})
    if own is not None and not (divided and split == "train"):
        return class_folders(own, names=names).source(transform)
    train = splits.get("train")
    if train is None or not (divided or split == "calib"):
        raise _no_split(place, split)
    files = class_folders(train, names=names)
    source = files.source(transform)
    if divided:
        labels, paths = zip(*((label, name) for name, label in files.files), strict=True)
        chosen = split_tenth(labels, paths, "val" if split == "val" else "train")
        if not chosen:
            raise DataError(
                f"{escape(place)} has no validation images, and {escape(train)} has one image per "
                f"class: all are in val, none in {split}. Put images in {escape(place / 'val')}."
            )
        source = source.take(chosen)
    return source.take(calib_positions(source.labels)) if split == "calib" else source


def _no_split(place: Path, split: str) -> DataError:
    wanted = "train" if split == "calib" else split
    return DataError(
        f"{escape(place)} has no folder {wanted!r} for the split {split!r}. Put class folders "
        f"in {escape(place / wanted)}."
    )


# ---- finding the folders -----------------------------------------------------------------------


def _read(function: Callable[..., T], *arguments: object) -> T:
    """Call a function that lists folders; raise ``DataError`` if one cannot be read."""
    try:
        return function(*arguments)
    except OSError as error:
        raise DataError(
            f"Cannot read folder {escape(error.filename or '')}: {reason_of(error)}. Check the "
            "links and permissions."
        ) from error


def find_splits(place: Path, kind: str = "folder", *, look_below: bool = True) -> dict[str, Path]:
    """Return the folder of each split that a data set has.

    Args:
        place: The data set's folder.
        kind: Kind of the data, for messages.
        look_below: Look for splits in the folders below, if there are none here.

    Raises:
        DataError: If a folder cannot be read, two folders are of the same split, or the splits are
            not in this folder but in one below it.
    """
    found = _read(split_folders, place)
    for split, folders in found.items():
        if len(folders) > 1:
            names = " and ".join(repr(escape(folder.name)) for folder in folders)
            raise DataError(
                f"{escape(place)} has several folders for the split {split!r}: {names}. Keep one, "
                f"or name the right one {split!r}."
            )
    if not found and look_below and (below := splits_below(place)):
        raise _too_high(place, below, "the splits are", kind)
    return {split: folders[0] for split, folders in found.items()}


def splits_below(place: Path) -> list[Path]:
    """Return folders below ``place`` that contain splits of class folders, the nearest first."""
    level, n_looked = [place], 0
    for _ in range(_LEVELS):
        below = []
        for folder in level:
            try:
                below += [folder / name for name in subfolders(folder)]
            except OSError:  # not where the splits are; reading it names the fault
                continue
        below = below[: max(_MAX_LOOKED - n_looked, 0)]
        n_looked += len(below)
        if found := [folder for folder in below if _contains_splits(folder)]:
            return found
        level = below
    return []


def _contains_splits(folder: Path) -> bool:
    try:
        found = split_folders(folder)
        roots = [root for split in ("train", "val") for root in found.get(split, ())]
        return any(subfolders(root) for root in roots)
    except OSError:  # as in ``splits_below``
        return False


def _check_level(root: Path, given: Path) -> None:
    """Raise ``DataError`` if the only "class" is a folder that contains the class folders.

    Args:
        root: Folder of the class folders.
        given: The data set's folder: ``root``, or the one that contains this split.
    """
    names = _read(subfolders, root)
    place = root
    while len(names) == 1:
        place = place / names[0]
        if _read(_is_filled, place):
            return
        names = _read(subfolders, place)
        if len([name for name in names if _read(_is_filled, place / name)]) > 1:
            if root == given:
                raise _too_high(root, [place], "the class folders are")
            raise DataError(
                f"{escape(root)} has its class folders one level too low, in {escape(place)}. "
                f"Move them up into {escape(root)}."
            )


def _is_filled(folder: Path) -> bool:
    return has_images(folder, deep=False)


def _too_high(place: Path, found: list[Path], what: str, kind: str = "folder") -> DataError:
    more = f", or one of {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    names = " or ".join(f"{kind}:{escape(folder)}" for folder in found[:_NAMED])
    return DataError(
        f"{escape(place)} is too high: {what} in {escape(found[0])}. Give --data {names}{more}."
    )


# ---- class folders -----------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledFiles:
    """Labelled image files below one folder."""

    root: Path
    files: list[tuple[str, int]]  # path relative to the root, label
    classes: tuple[str, ...]

    def source(self, transform: Transform, data_set: str = "") -> Source:
        """Return the files as a source of images.

        Args:
            transform: The model's evaluation transform.
            data_set: As for ``FileImages``.
        """
        labels = tuple(label for _, label in self.files)
        names = tuple(name for name, _ in self.files)
        images = FileImages(self.root, names, labels, Prepare(transform), data_set)
        return Source(
            transform=transform.name,
            labels=labels,
            classes=self.classes,
            identify=images.identify,
            load=images,
            check=images.check,
        )


def class_folders(
    root: Path, *, names: Sequence[str] | None = None, imagenet: bool = False
) -> LabelledFiles:
    """Return all images in the class folders of ``root``.

    Args:
        root: Folder with one subfolder per class.
        names: Names of all classes, in order; those of ``root`` when None.
        imagenet: Require ImageNet's wnids as folder names.

    Raises:
        DataError: If there are no images, or a folder is not an ImageNet class although required.
    """
    scan = FolderScan(root)
    own, _ = scan.entries()
    found = {name: scan.images_in(name) for name in own}
    names = own if names is None else names
    label_of, classes = _classes(root, names, imagenet)
    files = [(file, label_of[name]) for name in own if name in names for file in found[name]]
    if not files:
        raise DataError(
            f"{escape(root)} contains no images in class folders. Expected "
            f"{escape(root)}/CLASS/IMAGE with one of the suffixes {', '.join(IMAGE_SUFFIXES)}."
        )
    return LabelledFiles(root, files, classes)


def _classes(
    root: Path, names: Sequence[str], imagenet: bool
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the label of each class folder, and the class names by label."""
    if names and (imagenet or all(WNID.fullmatch(name) for name in names)):
        known = imagenet_labels()
        unknown = [name for name in names if name not in known]
        if not unknown:
            return known, imagenet_classes()
        if imagenet:
            raise DataError(
                f"{escape(root / unknown[0])} is not one of ImageNet's 1,000 classes. Name class "
                "folders by wnid, such as n01440764, or use folder:DIR for other classes."
            )
    return {name: label for label, name in enumerate(names)}, tuple(names)
