"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from psvit_core.errors import OutputError

MODEL_SUFFIX = ".safetensors"  # readers take a file of any other name for a pickle
_TAIL_BYTES = 32_000  # that are read from a file's end


def check_writable(path: str | Path) -> Path:
    """Raise ``OutputError`` now if ``path`` could not be written later."""
    path = Path(path)
    parent = path.parent
    try:
        if path.is_dir():
            raise OutputError(f"Cannot write {path}: it is a folder. Name a file in it.")
        if path.exists() and not path.is_file():
            raise OutputError(f"Cannot write {path}: it is no regular file. Name another.")
        if not parent.is_dir():
            raise OutputError(f"Cannot write {path}: there is no folder {parent}. Create it first.")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except (OSError, ValueError) as error:
        raise OutputError(
            f"Cannot write {path!s:.80}: {_reason(error)}. Choose another place or name."
        ) from error
    return path


def check_model_file(path: str | Path) -> Path:
    """``check_writable`` for a model that is to be read again: its name ends in .safetensors."""
    path = Path(path)
    if path.suffix != MODEL_SUFFIX:
        raise OutputError(
            f"A model is written as a {MODEL_SUFFIX} file, by which it is known when it is opened; "
            f"got {str(path)!r:.80}. Name it {path.stem or 'model'}{MODEL_SUFFIX}, for example."
        )
    return check_writable(path)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    Raises:
        OutputError: If the place cannot be written to; nothing is left behind.
    """
    path = check_writable(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".psvit-", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {_reason(error)}.") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8, whole or not at all."""
    return write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask


def last_lines(path: Path, n_lines: int) -> list[str]:
    """The last lines of a text file, however large it is; of very long ones fewer."""
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - _TAIL_BYTES)
        file.seek(start)
        text = file.read(_TAIL_BYTES).decode("utf-8", errors="replace")
    lines = text.splitlines()
    return lines[1 if start else 0 :][-n_lines:] if n_lines > 0 else []
