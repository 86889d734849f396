"""``imagenet:DIR``: ILSVRC 2012 as published, or parts of it.

The validation set (wnid folders, or flat files with labels from the devkit or a text file) is
divided into ``val`` for planning and ``test``; ``train`` and ``calib`` are taken from DIR/train.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from psvit_core.data.evalset import Source, calib_positions, split_half
from psvit_core.data.files import FolderScan, escape, reason_of
from psvit_core.data.folder import LabelledFiles, class_folders, find_splits
from psvit_core.data.wnids import imagenet_classes, imagenet_labels
from psvit_core.errors import DataError
from psvit_core.image_folders import WNID
from psvit_core.records import Transform

MAX_TEXT_BYTES = 64_000_000  # of a label file
MAX_META_BYTES = 8_000_000  # of meta.mat
_DEVKITS = ("ILSVRC2012_devkit_t12", "devkit")
_MAPS = ("val.txt", "val_map.txt")
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_EXAMPLE = "ILSVRC2012_val_00000001.JPEG"


def imagenet_source(place: Path, split: str, transform: Transform) -> Source:
    """Return a split of ImageNet."""
    if not place.is_dir():
        raise DataError(
            f"Folder {escape(place)} does not exist. Give --data imagenet:DIR with val/ inside."
        )
    splits = find_splits(place, "imagenet", look_below=_has_no_images(place))
    if split in ("train", "calib"):
        if "train" not in splits:
            raise DataError(
                f"{escape(place)} has no folder 'train', required for the split {split!r}. "
                f"Put wnid folders in {escape(place / 'train')}."
            )
        train = class_folders(splits["train"], imagenet=True).source(transform)
        return train if split == "train" else train.take(calib_positions(train.labels))
    found = _validation(place, splits.get("val", place))
    labels = [label for _, label in found.files]
    names = [PurePosixPath(name).name for name, _ in found.files]  # equal in both layouts
    chosen = split_half(labels, names, split)
    if not chosen:
        raise DataError(
            f"{escape(place)} has one validation image per class; all are in val, none in {split}."
        )
    return found.source(transform).take(chosen)


def _has_no_images(place: Path) -> bool:
    """Return whether a folder contains neither images nor wnid folders: then it has splits."""
    folders, flat = FolderScan(place).entries()
    return not flat and not any(WNID.fullmatch(name) for name in folders)


def _validation(place: Path, root: Path) -> LabelledFiles:
    """Return the whole validation set in ``root``, class by class."""
    folders, flat = FolderScan(root).entries()
    if any(WNID.fullmatch(name) for name in folders):
        if flat:
            raise DataError(
                f"{escape(root)} contains wnid folders and also images outside them, such as "
                f"{escape(flat[0])}. Keep only one of the two."
            )
        return class_folders(root, imagenet=True)
    if not flat:
        raise DataError(
            f"{escape(root)} contains neither wnid folders nor images. Expected "
            f"{escape(place)}/val/n01440764/IMAGE or {escape(place)}/val/{_EXAMPLE}."
        )
    label_of = _flat_labels(place, root, flat)
    files = sorted(((name, label_of[name]) for name in flat), key=lambda f: (f[1], f[0]))
    return LabelledFiles(root, files, imagenet_classes())


# ---- labels of flat files --------------------------------------------------------------------


def _flat_labels(place: Path, root: Path, names: list[str]) -> dict[str, int]:
    """Return the class index of each file, from a text file or from the devkit."""
    places = (place, root) if root != place else (place,)
    for path in (folder / name for folder in places for name in _MAPS):
        if path.is_file():
            return _from_map(path, names)
    for path in (folder / name / "data" for folder in places for name in _DEVKITS):
        if path.is_dir():
            return _from_devkit(path, root, names)
    raise DataError(
        f"{escape(root)} contains flat images without labels. Add the devkit "
        f"({escape(place / _DEVKITS[0])}), or {escape(place / _MAPS[0])} with a line "
        "'FILE WNID' or 'FILE INDEX' (0 to 999) for each image."
    )


def _from_map(path: Path, names: list[str]) -> dict[str, int]:
    """Read labels from lines ``FILE WNID`` or ``FILE INDEX``."""
    known = imagenet_labels()
    label_of: dict[str, int] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        file, word = [*line.rsplit(maxsplit=1), ""][:2]
        label = known.get(word, int(word) if word.isdecimal() and len(word) < 5 else -1)
        if not 0 <= label < len(known):
            raise DataError(
                f"{escape(path)}, line {number}: expected 'FILE WNID' or 'FILE INDEX' with an "
                f"index from 0 to {len(known) - 1}; got {escape(line[:60])!r}."
            )
        name = PurePosixPath(file.strip()).name
        if label_of.setdefault(name, label) != label:
            raise DataError(f"{escape(path)}, line {number}: {escape(name)} has two labels.")
    if missing := [name for name in names if name not in label_of]:
        raise DataError(
            f"{escape(path)} has no label for {len(missing)} of {len(names)} images, first "
            f"{escape(missing[0])}. Add its line or remove the image."
        )
    return label_of


def _from_devkit(devkit: Path, root: Path, names: list[str]) -> dict[str, int]:
    """Read labels from the devkit: line N has the ILSVRC id of image N, meta.mat its wnid."""
    truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
    ids = _read_lines(truth)
    wnid_of = _wnids_by_id(devkit / "meta.mat")
    known = imagenet_labels()
    label_of: dict[str, int] = {}
    for name in names:
        match = _VAL_NAME.fullmatch(name)
        if match is None:
            raise DataError(
                f"{escape(root / name)} does not have a name that the devkit labels, such as "
                f"{_EXAMPLE}. Rename or remove it, or give labels in {_MAPS[0]}."
            )
        number = int(match[1])
        if not 1 <= number <= len(ids):
            raise DataError(
                f"{escape(truth)} has only {len(ids)} lines and none for {escape(name)}."
            )
        wnid = wnid_of.get(ids[number - 1].strip(), "")
        if wnid not in known:
            raise DataError(
                f"{escape(truth)}, line {number}: meta.mat has none of ImageNet's 1,000 wnids for "
                f"{escape(ids[number - 1][:20])!r}. Use the devkit of ILSVRC 2012, task 1 and 2."
            )
        label_of[name] = known[wnid]
    return label_of


def _wnids_by_id(path: Path) -> dict[str, str]:
    """Return the wnid of each ILSVRC id (as text) from the devkit."""
    from scipy.io import loadmat

    try:
        if path.stat().st_size > MAX_META_BYTES:
            raise DataError(f"{escape(path)} is too large to be ImageNet's meta.mat.")
        synsets = loadmat(path, variable_names=("synsets",), squeeze_me=True)["synsets"].ravel()
        pairs = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        return {str(int(number)): str(wnid) for number, wnid in pairs}
    except DataError:
        raise
    except Exception as error:  # scipy raises many types for damaged files
        raise DataError(
            f"{escape(path)} is not the devkit's class table ({reason_of(error)}). Unpack the "
            "devkit again."
        ) from error


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without empty ones at the end."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise DataError(f"{escape(path)} is too large to be a file of ImageNet labels.")
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read labels in {escape(path)}: {reason_of(error)}.") from error
