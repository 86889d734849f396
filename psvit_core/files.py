"""Atomic file writes and checks of output paths."""

from __future__ import annotations

import functools
import hashlib
import keyword
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from psvit_core.durable import remove_leftovers, sync_files, sync_folders, temporary_folder
from psvit_core.errors import DataError, OutputError, PsvitError

DATA_ENV = "PSVIT_DATA"
PLACELESS = ("cifar10", "cifar10-jpeg")  # data whose images are known by their content
MODEL_SUFFIX = ".safetensors"  # files with any other suffix are read as pickles
_NEEDED_BY_EXPORTS = {"torch", "safetensors", "spikingjelly", "numpy", "psvit_core"}
_TAIL_BYTES = 32_000  # read from the end of a file
_PART_BYTES = 256_000  # read from a part of a file


# ---- paths ---------------------------------------------------------------------------------------


def expand(path: str | Path) -> Path:
    """Return a path with ``~`` replaced by the home folder.

    Raises:
        PsvitError: If there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PsvitError(
            f"Cannot expand the ~ in {path!s:.80}: the home folder does not exist. Give the full "
            "path."
        ) from error


def is_file(path: str | Path) -> bool:
    """Return True for a regular file that can be looked up.

    ``Path.is_file`` raises where a name is too long, or a folder on the way may not be searched.
    """
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def expand_spec(spec: str) -> str:
    """Return a data specification with ``~`` in its path replaced by the home folder."""
    kind, colon, place = spec.partition(":")
    return f"{kind}:{expand(place)}" if place.startswith("~") else f"{kind}{colon}{place}"


def data_set_name(spec: str) -> str:
    """Return a data specification as results name it: without the place where that says nothing.

    Every picture of CIFAR-10 is known by its content, so that results hold for every copy.
    """
    kind = spec.partition(":")[0]
    return kind if kind in PLACELESS else spec


def is_module(name: str) -> bool:
    """Return whether a Python file of this name would hide another module, or is a keyword."""
    return keyword.iskeyword(name) or name in sys.stdlib_module_names | _NEEDED_BY_EXPORTS


def module_name(file_name: str) -> str:
    """Return a name for the Python file of a checkpoint, which can be imported."""
    name = re.sub(r"\W", "_", Path(file_name).stem, flags=re.ASCII)
    name = name if name.isidentifier() else f"net_{name}"
    return f"{name}_net" if is_module(name) else name


def check_writable(path: str | Path) -> Path:
    """Check that ``path`` can be written, without creating it.

    Returns:
        The path.

    Raises:
        OutputError: If it is a folder or special file, or its folder is missing or read-only.
    """
    path = expand(path)
    parent = path.parent
    try:
        if path.is_dir():
            raise OutputError(f"Cannot write {path}: it is a folder. Give a file name inside it.")
        if path.exists() and not path.is_file():
            raise OutputError(
                f"Cannot write {path}: it is not a regular file. Choose another name."
            )
        if not parent.is_dir():
            raise OutputError(
                f"Cannot write {path}: folder {parent} does not exist. Create it first."
            )
        with tempfile.TemporaryFile(dir=parent):
            pass
    except (OSError, ValueError) as error:
        raise OutputError(
            f"Cannot write {path!s:.80}: {_reason(error)}. Choose another place or name."
        ) from error
    return path


def check_model_file(path: str | Path) -> Path:
    """Check that a model can be written to ``path``: writable, with the suffix .safetensors.

    Returns:
        The path.

    Raises:
        OutputError: If the suffix is another or the path cannot be written.
    """
    path = expand(path)
    if path.suffix != MODEL_SUFFIX:
        raise OutputError(
            f"Models are saved with the suffix {MODEL_SUFFIX}; got {str(path)!r:.80}. "
            f"Use for example {path.stem or 'model'}{MODEL_SUFFIX}."
        )
    return check_writable(path)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write a file in one step: readers see the old content or the new, never a part.

    Once this returns, a power cut leaves the new content, too.

    Args:
        path: Destination; an existing file is replaced.
        write: Fills the temporary file whose path it receives; that file then replaces ``path``.

    Returns:
        The path.

    Raises:
        OutputError: If the path cannot be written. No temporary file is left behind.
    """
    path = check_writable(path)
    remove_leftovers(path.parent, deep=False)  # of a killed process; of stores, ``tidy`` does
    write_all_atomic({path: write}, path.parent)
    return path


def write_all_atomic(files: Mapping[Path, Callable[[Path], object]], folder: Path) -> None:
    """Write files like ``write_atomic``; together they take little longer than one.

    Each file is whole, but after a kill or power cut some may be new and others old.

    Args:
        files: By destination, what fills the temporary file.
        folder: Where the temporary files are; on the disk of all destinations.

    Raises:
        OutputError: If a file cannot be written.
    """
    if not files:
        return
    path = next(iter(files))  # what an error is about
    parts = {}
    try:
        with temporary_folder(folder) as temporary:
            for number, (path, write) in enumerate(files.items()):
                place = temporary / str(number)
                place.mkdir()
                parts[path] = place / path.name
                write(parts[path])
                # A new folder tells the umask; asking for it would change it for other threads.
                parts[path].chmod(place.stat().st_mode & 0o666)
            sync_files([*parts.values()])
            for path, part in parts.items():
                part.replace(path)
            sync_folders(path.parent for path in parts)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {_reason(error)}.") from error


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8 in one step, like ``write_atomic``."""
    return write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def last_lines(path: Path, n_lines: int) -> list[str]:
    """Return up to ``n_lines`` lines from the end of a text file, reading at most 32 kB."""
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - _TAIL_BYTES)
        file.seek(start)
        text = file.read(_TAIL_BYTES).decode("utf-8", errors="replace")
    lines = text.splitlines()
    return lines[1 if start else 0 :][-n_lines:] if n_lines > 0 else []


def lines_between(path: Path, start: int, end: int | None, n_lines: int) -> list[str]:
    """Return up to ``n_lines`` lines from the end of a part of a text file.

    Reads at most 256 kB.

    Args:
        path: The file.
        start: First byte of the part.
        end: Byte after the part; None: the end of the file.
        n_lines: Number of lines.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = size if end is None else min(end, size)
        first = max(start, end - _PART_BYTES)
        file.seek(first)
        text = file.read(max(end - first, 0)).decode("utf-8", errors="replace")
    lines = text.splitlines()
    return lines[1 if first > start else 0 :][-n_lines:] if n_lines > 0 else []


@functools.cache
def program_version() -> str:
    """Return the version of the installed package, or of the checkout that runs."""
    try:
        return version("psvit-explorer")
    except PackageNotFoundError:
        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        stated = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
        return f"{stated}, from a checkout"


def made_by(program: str) -> str:
    """Say which version of the program made something.

    Args:
        program: Its version; empty for versions that did not note it.
    """
    return f"version {program} of this program" if program else "an older version of this program"


def data_folder() -> Path:
    """Return the folder of downloaded data: ``$PSVIT_DATA``, or one in the user's data directory.

    Raises:
        DataError: If the account has no home folder.
    """
    if chosen := os.environ.get(DATA_ENV):
        return expand(chosen)
    from platformdirs import user_data_path

    try:
        folder = user_data_path("psvit", appauthor=False)
    except RuntimeError:
        folder = Path("~")
    if not folder.is_absolute():
        raise DataError(
            "This account has no home folder to keep images in. "
            f"Set {DATA_ENV} to a folder that you can write to."
        )
    return folder
