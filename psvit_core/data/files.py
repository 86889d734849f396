"""Image files: finding them in folders, naming them without reading them, decoding them.

Folders and files are taken as strangers' work: what loops, never ends, is no image or would not fit
into memory ends in a ``DataError``, and only plain image formats are decoded (PIL would hand
PostScript to another program).
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image
from torch import Tensor

from psvit_core.data.pixels import Prepare
from psvit_core.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_OTHERS = 100_000  # entries that are no images, before a folder is taken for the wrong one
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GLANCE = (64, 64)  # pixels; a check decodes JPEGs at the next larger eighth


class UnreadableImageError(DataError):
    """An image that cannot be decoded."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.name} is not a readable image ({self.reason}). Remove or mend it, or leave "
            "such images out with --bad-images skip."
        )


def shown(name: str | Path) -> str:
    """A file name that is safe to print on one line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def reason_of(error: Exception) -> str:
    """What went wrong, on one line."""
    return shown(" ".join(str(error).split()))[:300] or type(error).__name__


def digest(content: bytes) -> str:
    """Short name of ``content``, different for different content."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


# ---- finding ---------------------------------------------------------------------------------


class FolderScan:
    """Lists what is under a folder, in sorted order; hidden files and folders are no data.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._images = self._others = 0

    def entries(self, *parts: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the images in a folder under the root.

        Raises:
            DataError: If it cannot be read, or nearly all it holds are no images.
        """
        folder = self.root.joinpath(*parts)
        folders: list[str] = []
        images: list[str] = []
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    hidden = entry.name.startswith(".")
                    if not hidden and entry.is_dir():
                        folders.append(entry.name)
                    elif not hidden and _is_image(entry):
                        images.append(entry.name)
                        self._images += 1
                        continue
                    self._others += 1
                    self._check_sense(entry.name)
        except OSError as error:
            raise DataError(
                f"Cannot read folder {shown(folder)}: {reason_of(error)}. Mend the link or the "
                "permissions."
            ) from error
        return sorted(folders), sorted(images)

    def images_in(self, name: str) -> list[str]:
        """All images under a folder of the root, by their path from the root.

        Links to folders are followed.

        Raises:
            DataError: As ``entries``, or if links lead to a folder that was already read.
        """
        seen = {self._identity(()): self.root}
        todo: list[tuple[str, ...]] = [(name,)]
        files: list[tuple[str, ...]] = []
        while todo:
            parts = todo.pop()
            identity = self._identity(parts)
            if identity in seen:
                raise DataError(
                    f"{shown(self.root.joinpath(*parts))} leads to {shown(seen[identity])}, which "
                    "was already read: links that loop, or one folder linked twice. Remove a link."
                )
            seen[identity] = self.root.joinpath(*parts)
            folders, images = self.entries(*parts)
            todo += [(*parts, folder) for folder in folders]
            files += [(*parts, image) for image in images]
        return ["/".join(parts) for parts in sorted(files)]

    def _identity(self, parts: tuple[str, ...]) -> tuple[int, int]:
        path = self.root.joinpath(*parts)
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"Cannot read folder {shown(path)}: {reason_of(error)}.") from error
        return found.st_dev, found.st_ino

    def _check_sense(self, example: str) -> None:
        if self._others > MAX_OTHERS and self._others > self._images:
            raise DataError(
                f"{shown(self.root)} holds more than {MAX_OTHERS:,} files and folders that are no "
                f"images, such as {shown(example)}, and {self._images:,} images. Name the folder "
                "that holds the class folders."
            )


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file named like an image; a dangling link is, and turns out unreadable."""
    if PurePosixPath(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
        return False
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


# ---- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileImages:
    """Image files under one folder; ``load`` of them when called."""

    root: Path
    names: tuple[str, ...]  # from the root
    labels: tuple[int, ...]
    prepare: Prepare

    def __call__(self, position: int) -> Tensor:
        """Network input of the image at a position."""
        return self.prepare(self._decode(position))

    @cached_property
    def _home(self) -> Path:
        return self.root.resolve()

    def identify(self, position: int) -> str:
        """The image's id: its place, label, size and time of change, without reading it.

        A changed file is another image, and so is a copy, or a file that gets another label.
        """
        try:
            found = self._path(position).stat()
        except OSError as error:
            raise self._fault(position, error.strerror or str(error)) from error
        place = os.fsencode(self._home / self.names[position])
        facts = f"{self.labels[position]}/{found.st_size}/{found.st_mtime_ns}"
        return digest(place + b"\0" + facts.encode())

    def check(self, position: int) -> None:
        """Raise ``UnreadableImageError`` unless the image can be decoded."""
        self._decode(position, glance=True)

    def _decode(self, position: int, *, glance: bool = False) -> Image.Image:
        path = self._path(position)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise self._fault(position, "no regular file")
            with Image.open(path, formats=_FORMATS) as file:
                if file.mode.startswith(("I", "F")):  # conversion would clip, not scale
                    raise self._fault(position, f"{file.mode} pixels; convert to 8 bits a channel")
                if glance:
                    file.draft(self.prepare.mode, _GLANCE)
                    file.load()
                return file.convert(self.prepare.mode)
        except UnreadableImageError:
            raise
        except Exception as error:  # PIL raises many kinds for damaged and oversized files
            raise self._fault(position, reason_of(error)) from error

    def _path(self, position: int) -> Path:
        return self.root / self.names[position]

    def _fault(self, position: int, reason: str) -> UnreadableImageError:
        return UnreadableImageError(shown(self._path(position)), reason)
