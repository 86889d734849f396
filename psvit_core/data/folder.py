"""``folder:DIR``: one folder a class, in DIR or in DIR/SPLIT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from psvit_core.data.evalset import SPLITS, Source, calib_positions
from psvit_core.data.files import IMAGE_SUFFIXES, FileImages, FolderScan, shown
from psvit_core.data.pixels import Prepare
from psvit_core.data.wnids import WNID, imagenet_classes, imagenet_labels
from psvit_core.errors import DataError
from psvit_core.records import Transform


def folder_source(place: Path, split: str, transform: Transform) -> Source:
    """Class folders as they are; ``calib`` is chosen from ``train`` where it has no folder.

    Classes are numbered in the order of their names, or as ImageNet's heads number them where all
    folders are named by ImageNet's wnids.
    """
    if not place.is_dir():
        raise DataError(
            f"There is no folder {shown(place)}. Give --data folder:DIR with class folders."
        )
    root = place / split
    if root.is_dir():
        return class_folders(root).source(transform)
    if split == "calib" and (place / "train").is_dir():
        train = class_folders(place / "train").source(transform)
        return train.take(calib_positions(train.labels))
    if split != "val" or any((place / name).is_dir() for name in SPLITS):
        wanted = "train" if split == "calib" else split
        raise DataError(
            f"{shown(place)} has no folder {wanted!r} for the split {split!r}. Put class folders "
            f"in {shown(place / wanted)}."
        )
    return class_folders(place).source(transform)


@dataclass(frozen=True)
class Found:
    """Labelled image files under one folder."""

    root: Path
    files: list[tuple[str, int]]  # name from the root, label
    classes: tuple[str, ...]

    def source(self, transform: Transform) -> Source:
        """What ``load_data`` chooses from."""
        labels = tuple(label for _, label in self.files)
        names = tuple(name for name, _ in self.files)
        images = FileImages(self.root, names, labels, Prepare(transform))
        return Source(
            transform=transform.name,
            labels=labels,
            classes=self.classes,
            identify=images.identify,
            load=images,
            check=images.check,
        )


def class_folders(root: Path, *, imagenet: bool = False) -> Found:
    """All images in the class folders of ``root``.

    Args:
        root: Holds one folder a class.
        imagenet: Insist on ImageNet's wnids.

    Raises:
        DataError: If there are none, or a folder is no ImageNet class though it must.
    """
    scan = FolderScan(root)
    names, _ = scan.entries()
    label_of, classes = _classes(root, names, imagenet)
    files = [(file, label_of[name]) for name in names for file in scan.images_in(name)]
    if not files:
        raise DataError(
            f"{shown(root)} holds no images in class folders. Expected {shown(root)}/CLASS/IMAGE "
            f"with one of {', '.join(IMAGE_SUFFIXES)}."
        )
    return Found(root, files, classes)


def _classes(
    root: Path, names: list[str], imagenet: bool
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Label of each class folder, and the classes by label."""
    if names and (imagenet or all(WNID.fullmatch(name) for name in names)):
        known = imagenet_labels()
        foreign = [name for name in names if name not in known]
        if not foreign:
            return known, imagenet_classes()
        if imagenet:
            raise DataError(
                f"{shown(root / foreign[0])} is none of ImageNet's 1,000 classes. Class folders "
                "are named by wnid, such as n01440764; use folder:DIR for other classes."
            )
    return {name: label for label, name in enumerate(names)}, tuple(names)
