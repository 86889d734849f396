"""``imagenet:DIR``: ILSVRC 2012 as it is published, or parts of it.

The validation set (wnid folders, or flat files with labels from the devkit or from a text file) is
split into ``val`` for planning and ``test``; ``train`` and ``calib`` come from DIR/train.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from psvit_core.data.evalset import Source, calib_positions, half
from psvit_core.data.files import FolderScan, reason_of, shown
from psvit_core.data.folder import Found, class_folders
from psvit_core.data.wnids import WNID, imagenet_classes, imagenet_labels
from psvit_core.errors import DataError
from psvit_core.records import Transform

MAX_TEXT_BYTES = 64_000_000  # of a label file
MAX_META_BYTES = 8_000_000
_DEVKITS = ("ILSVRC2012_devkit_t12", "devkit")
_MAPS = ("val.txt", "val_map.txt")
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_EXAMPLE = "ILSVRC2012_val_00000001.JPEG"


def imagenet_source(place: Path, split: str, transform: Transform) -> Source:
    """A split of ImageNet."""
    if not place.is_dir():
        raise DataError(
            f"There is no folder {shown(place)}. Give --data imagenet:DIR with val/ in it."
        )
    if split in ("train", "calib"):
        if not (place / "train").is_dir():
            raise DataError(
                f"{shown(place)} has no folder 'train', which the split {split!r} is taken from. "
                f"Put wnid folders in {shown(place / 'train')}."
            )
        train = class_folders(place / "train", imagenet=True).source(transform)
        return train if split == "train" else train.take(calib_positions(train.labels))
    found = _validation(place)
    labels = [label for _, label in found.files]
    names = [PurePosixPath(name).name for name, _ in found.files]  # the same in both layouts
    chosen = half(labels, names, split)
    if not chosen:
        raise DataError(
            f"{shown(place)} has one validation image a class: all are in val, none in {split}."
        )
    return found.source(transform).take(chosen)


def _validation(place: Path) -> Found:
    """The whole validation set, class by class."""
    root = place / "val" if (place / "val").is_dir() else place
    folders, flat = FolderScan(root).entries()
    if any(WNID.fullmatch(name) for name in folders):
        if flat:
            raise DataError(
                f"{shown(root)} holds wnid folders and also images outside, such as "
                f"{shown(flat[0])}. Keep one of the two."
            )
        return class_folders(root, imagenet=True)
    if not flat:
        raise DataError(
            f"{shown(root)} holds neither wnid folders nor images. Expected "
            f"{shown(place)}/val/n01440764/IMAGE or {shown(place)}/val/{_EXAMPLE}."
        )
    label_of = _flat_labels(place, root, flat)
    files = sorted(((name, label_of[name]) for name in flat), key=lambda f: (f[1], f[0]))
    return Found(root, files, imagenet_classes())


# ---- labels of flat files --------------------------------------------------------------------


def _flat_labels(place: Path, root: Path, names: list[str]) -> dict[str, int]:
    """The head's index of each file, from a text file or from the devkit."""
    places = (place, root) if root != place else (place,)
    for path in (folder / name for folder in places for name in _MAPS):
        if path.is_file():
            return _from_map(path, names)
    for path in (folder / name / "data" for folder in places for name in _DEVKITS):
        if path.is_dir():
            return _from_devkit(path, root, names)
    raise DataError(
        f"{shown(root)} holds flat images without labels. Put the devkit beside them "
        f"({shown(place / _DEVKITS[0])}), or {shown(place / _MAPS[0])} with a line 'FILE WNID' or "
        "'FILE INDEX' (0 to 999) for each image."
    )


def _from_map(path: Path, names: list[str]) -> dict[str, int]:
    """Labels from lines ``FILE WNID`` or ``FILE INDEX``."""
    known = imagenet_labels()
    label_of: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        file, word = (line.rsplit(maxsplit=1) + [""])[:2]
        label = known.get(word, int(word) if word.isdecimal() and len(word) < 5 else -1)
        if not 0 <= label < len(known):
            raise DataError(
                f"{shown(path)}, line {number}: expected 'FILE WNID' or 'FILE INDEX' with an index "
                f"from 0 to {len(known) - 1}; got {shown(line[:60])!r}."
            )
        name = PurePosixPath(file.strip()).name
        if label_of.setdefault(name, label) != label:
            raise DataError(f"{shown(path)}, line {number}: {shown(name)} has two labels.")
    if lacking := [name for name in names if name not in label_of]:
        raise DataError(
            f"{shown(path)} has no label for {len(lacking)} of {len(names)} images, first "
            f"{shown(lacking[0])}. Add its line, or remove the image."
        )
    return label_of


def _from_devkit(devkit: Path, root: Path, names: list[str]) -> dict[str, int]:
    """Labels from the devkit: line N is the ILSVRC id of image N, meta.mat has its wnid."""
    truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
    ids = _lines(truth)
    wnid_of = _wnids_by_id(devkit / "meta.mat")
    known = imagenet_labels()
    label_of: dict[str, int] = {}
    for name in names:
        match = _VAL_NAME.fullmatch(name)
        if match is None:
            raise DataError(
                f"{shown(root / name)} is not named as the devkit's labels need, such as "
                f"{_EXAMPLE}. Rename or remove it, or give labels in {_MAPS[0]}."
            )
        number = int(match[1])
        if not 1 <= number <= len(ids):
            raise DataError(f"{shown(truth)} has {len(ids)} lines, none for {shown(name)}.")
        wnid = wnid_of.get(ids[number - 1].strip(), "")
        if wnid not in known:
            raise DataError(
                f"{shown(truth)}, line {number}: meta.mat gives {shown(ids[number - 1][:20])!r} "
                "none of ImageNet's 1,000 wnids. Use the devkit of ILSVRC 2012, task 1 and 2."
            )
        label_of[name] = known[wnid]
    return label_of


def _wnids_by_id(path: Path) -> dict[str, str]:
    """The devkit's ILSVRC ids, as text, with their wnids."""
    from scipy.io import loadmat

    try:
        if path.stat().st_size > MAX_META_BYTES:
            raise DataError(f"{shown(path)} is larger than any meta.mat of ImageNet.")
        synsets = loadmat(path, variable_names=("synsets",), squeeze_me=True)["synsets"].ravel()
        pairs = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        return {str(int(number)): str(wnid) for number, wnid in pairs}
    except DataError:
        raise
    except Exception as error:  # scipy raises many kinds for damaged files
        raise DataError(
            f"{shown(path)} is not the devkit's table of classes ({reason_of(error)})."
        ) from error


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty at its end."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise DataError(f"{shown(path)} is larger than any file of ImageNet labels.")
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read labels in {shown(path)}: {reason_of(error)}.") from error
