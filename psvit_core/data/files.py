"""Image files: finding, identifying and decoding them.

Folders and files are untrusted input. Link loops, special files, other formats and images too large
for memory raise ``DataError``, and only common image formats are decoded (PIL would run another
program for PostScript).
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
from psvit_core.image_folders import IMAGE_SUFFIXES, is_ignored_folder

MAX_OTHERS = 100_000  # other entries, after which the folder is considered the wrong one
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_CHECK_SIZE = (64, 64)  # pixels; checks decode JPEGs at reduced resolution


class UnreadableImageError(DataError):
    """An image that cannot be decoded."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.name} is not a readable image ({self.reason}). Repair or remove it, or skip "
            "unreadable images with --bad-images skip."
        )


def escape(name: str | Path) -> str:
    """Return a file name that is safe to print on one line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def reason_of(error: Exception) -> str:
    """Return the message of an error on one line, at most 300 characters."""
    return escape(" ".join(str(error).split()))[:300] or type(error).__name__


def content_hash(content: bytes) -> str:
    """Return a hash of ``content``, 24 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


# ---- finding ---------------------------------------------------------------------------------


class FolderScan:
    """Lists folders and images under a folder in sorted order.

    Hidden entries and folders that systems leave behind (``__MACOSX``, ``@eaDir``) are left out.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._images = self._others = 0

    def entries(self, *parts: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the images in a folder below the root.

        Args:
            *parts: Path of the folder relative to the root.

        Raises:
            DataError: If it cannot be read, or contains almost no images among many files.
        """
        folder = self.root.joinpath(*parts)
        folders: list[str] = []
        images: list[str] = []
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    hidden = entry.name.startswith(".")
                    if not hidden and entry.is_dir():
                        if not is_ignored_folder(entry.name):
                            folders.append(entry.name)
                    elif not hidden and _is_image(entry):
                        images.append(entry.name)
                        self._images += 1
                        continue
                    self._others += 1
                    self._check_share_of_images(entry.name)
        except OSError as error:
            raise DataError(
                f"Cannot read folder {escape(folder)}: {reason_of(error)}. Check the links and "
                "permissions."
            ) from error
        return sorted(folders), sorted(images)

    def images_in(self, name: str) -> list[str]:
        """Return all images below a folder of the root, as paths relative to the root.

        Links to folders are followed.

        Raises:
            DataError: As for ``entries``, or if links lead to a folder that was already read.
        """
        seen = {self._identity(()): self.root}
        todo: list[tuple[str, ...]] = [(name,)]
        files: list[tuple[str, ...]] = []
        while todo:
            parts = todo.pop()
            identity = self._identity(parts)
            if identity in seen:
                raise DataError(
                    f"{escape(self.root.joinpath(*parts))} leads to {escape(seen[identity])}, "
                    "which was already read: a link loop, or a folder linked twice. Remove a link."
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
            raise DataError(f"Cannot read folder {escape(path)}: {reason_of(error)}.") from error
        return found.st_dev, found.st_ino

    def _check_share_of_images(self, example: str) -> None:
        if self._others > MAX_OTHERS and self._others > self._images:
            raise DataError(
                f"{escape(self.root)} contains {self._images:,} images, but more than "
                f"{MAX_OTHERS:,} other files and folders, such as {escape(example)}. Give the "
                "folder that contains the class folders."
            )


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Return True for files with an image suffix, and for broken links with one (unreadable)."""
    if PurePosixPath(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
        return False
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


# ---- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileImages:
    """Image files below one folder; a call loads one.

    Attributes:
        root: The folder.
        names: Paths relative to it.
        labels: Labels.
        prepare: Makes the network's input.
        data_set: Name of the data set that every copy of these files is, wherever it lies: images
            are then known by their content. Otherwise they are known by path, size and time.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...]
    prepare: Prepare
    data_set: str = ""

    def __call__(self, position: int) -> Tensor:
        """Return the network input of the image at a position."""
        return self.prepare(self._decode(position))

    @cached_property
    def _home(self) -> Path:
        return self.root.resolve()

    def identify(self, position: int) -> str:
        """Return the image's id.

        In a known data set it is made from the file's content, its label and the data set's name.
        Otherwise the file is not read: the id is made from path, label, size and modification time,
        so that changed files, copies and files with another label get other ids.
        """
        path = self._path(position)
        try:
            if self.data_set:
                beginning = f"{self.data_set}/{self.labels[position]}/".encode()
                return content_hash(beginning + path.read_bytes())
            found = path.stat()
        except OSError as error:
            raise self._error(position, error.strerror or str(error)) from error
        place = os.fsencode(self._home / self.names[position])
        facts = f"{self.labels[position]}/{found.st_size}/{found.st_mtime_ns}"
        return content_hash(place + b"\0" + facts.encode())

    def check(self, position: int) -> None:
        """Raise ``UnreadableImageError`` unless the image can be decoded."""
        self._decode(position, check_only=True)

    def _decode(self, position: int, *, check_only: bool = False) -> Image.Image:
        path = self._path(position)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise self._error(position, "not a regular file")
            with Image.open(path, formats=_FORMATS) as file:
                if file.mode.startswith(("I", "F")):  # conversion would clip the values
                    raise self._error(
                        position, f"{file.mode} pixels; convert to 8 bits per channel"
                    )
                if check_only:
                    file.draft(self.prepare.mode, _CHECK_SIZE)
                    file.load()
                return file.convert(self.prepare.mode)
        except UnreadableImageError:
            raise
        except Exception as error:  # PIL raises many types for damaged and oversized files
            raise self._error(position, reason_of(error)) from error

    def _path(self, position: int) -> Path:
        return self.root / self.names[position]

    def _error(self, position: int, reason: str) -> UnreadableImageError:
        return UnreadableImageError(escape(self._path(position)), reason)
