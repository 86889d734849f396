"""What a file is, by its first bytes and never by its suffix. Imports no torch, runs no code.

Users often pass files that are not checkpoints: the page of a failed download, the pointer that
git stores in place of a large file, an archive around the checkpoint. Each is named, with the way
out.
"""

from __future__ import annotations

import itertools
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from psvit_core.errors import CheckpointError

SAFETENSORS = "safetensors"
TORCH = "torch"

_HEAD = 4096  # bytes that are looked at
_MAX_HEADER = 100_000_000  # bytes of a safetensors header, the limit of the format
_TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # number in the first pickle of a file by torch < 1.6
_NAMED = 3  # members that a message names
_MOST_RATIO = 16  # of what a file unpacks to; torch.save does not compress, weights compress little
_SLACK = 1 << 20  # bytes that a file may unpack to, however small it is

_AGAIN = "Copy or download it again."
_UNPACK = "Unpack it and give the checkpoint inside."
_SAVE = (
    "Save the state dict of the model alone, with torch.save(model.state_dict(), ...) or as "
    ".safetensors, on a machine where you trust the file."
)
_EXPORT = "Save the state dict of the PyTorch model that it was made from."

#: First bytes, what such a file is, and the way out.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "an lz4 archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", _EXPORT),
    (b"\x93NUMPY", "a NumPy array", _EXPORT),
    (b"GGUF", "a GGUF file", _EXPORT),
    (b"%PDF", "a PDF document", "Give the checkpoint file."),
    (b"\x89PNG\r\n", "a PNG image", "Give the checkpoint file."),
    (b"\xff\xd8\xff", "a JPEG image", "Give the checkpoint file."),
    (b"SQLite format 3\x00", "an SQLite database", "Give the checkpoint file."),
    (b"\x7fELF", "a program", "Give the checkpoint file."),
)


def checkpoint_kind(path: Path) -> str:
    """Return the format of a checkpoint file by its content: ``SAFETENSORS`` or ``TORCH``.

    Raises:
        CheckpointError: If the file is missing, unreadable, or of another kind. The message says
            what it is and what to do.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder. Give the checkpoint file inside.")
        if not path.is_file():
            raise CheckpointError(f"There is no model or file {path}. Check the name.")
        n_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Cannot read {path!s:.80}: {getattr(error, 'strerror', error)}. Check the path and "
            "the file's permissions."
        ) from error
    if _is_safetensors(head, n_bytes):
        return SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if _TORCH_MAGIC in head[:64]:
        return TORCH
    raise foreign(path, *_describe(path, head))


def foreign(path: Path, what: str, way_out: str = _AGAIN) -> CheckpointError:
    """Return the error for a file that is not a checkpoint.

    Args:
        path: The file.
        what: What it is, with an article.
        way_out: What to do, as a sentence.
    """
    wanted = ".safetensors file" if path.suffix.lower() == ".safetensors" else "PyTorch checkpoint"
    return CheckpointError(f"{path} is {what}, not a complete {wanted}. {way_out}")


def _is_safetensors(head: bytes, n_bytes: int) -> bool:
    """Return True for the start of the format: the length of a JSON object, then the object."""
    length = int.from_bytes(head[:8], "little")
    return n_bytes > 8 and head[8:9] == b"{" and 2 <= length <= _MAX_HEADER


def _zip_kind(path: Path) -> str:
    """Return ``TORCH`` for a zip archive that ``torch.save`` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise foreign(path, "a truncated or damaged zip archive") from error
    inner = {name.partition("/")[2] for name in names}  # the outer folder is named like the file
    if any(name.startswith("code/") for name in inner) or "constants.pkl" in inner:
        raise foreign(
            path,
            "a TorchScript archive, which contains code",
            "Save its state dict alone, with torch.save(torch.jit.load(FILE).state_dict(), ...), "
            "on a machine where you trust the file.",
        )
    if "archive_format" in inner:
        raise foreign(path, "an archive of torch.export", _EXPORT)
    if ".data/extern_modules" in inner:
        raise foreign(path, "an archive of torch.package, which contains code", _SAVE)
    if "data.pkl" in inner:
        check_declared(path, unpacked, "its members")
        return TORCH
    if names and all(name.endswith(".npy") for name in names):
        raise foreign(path, "a NumPy archive", _EXPORT)
    raise foreign(path, f"a zip archive{_contents(names)}", _UNPACK)


def check_declared(path: Path, n_bytes: int, what: str) -> None:
    """Refuse a file that declares far more than it holds, before that much memory is asked for.

    Args:
        path: The file.
        n_bytes: What it declares, bytes.
        what: What declares it, for the message.

    Raises:
        CheckpointError: If so few bytes cannot be a checkpoint of that size.
    """
    held = path.stat().st_size
    if n_bytes > _MOST_RATIO * held + _SLACK:
        raise foreign(
            path,
            f"damaged or made to fill the memory ({what} declare {n_bytes:,} bytes, the file has "
            f"{held:,})",
        )


def _contents(names: Sequence[str]) -> str:
    files = [name for name in names if not name.endswith("/")]
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f" of {', '.join(files[:_NAMED])}{more}" if files else " without files"


def _describe(path: Path, head: bytes) -> tuple[str, str]:
    """Return what a file that is not a checkpoint is, and the way out."""
    if not head:
        return "empty (0 bytes)", _AGAIN
    if not head.strip(b"\x00"):
        return "filled with zeros", _AGAIN
    for magic, what, way_out in _MAGIC:
        if head.startswith(magic):
            return what, way_out
    if members := _tar_members(path):
        return _describe_tar(members)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a Python pickle not written by torch.save, which could run code", _SAVE
    text = _as_text(head)
    if text is not None:
        return _describe_text(text, path)
    if path.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head[:64]):
        return "an ONNX file", _EXPORT
    return f"of no known format (it starts with the bytes {head[:8].hex(' ')})", _AGAIN


def _tar_members(path: Path) -> list[str]:
    """Return the first names in an uncompressed tar archive; empty for other files."""
    try:
        with tarfile.open(path, "r:") as archive:
            return [member.name for member in itertools.islice(archive, _NAMED + 1)]
    except (tarfile.TarError, OSError, ValueError):
        return []


def _describe_tar(members: Sequence[str]) -> tuple[str, str]:
    if {"pickle", "storages", "tensors"} & set(members):
        return "a checkpoint in the tar format of PyTorch before version 0.1.10", _SAVE
    more = ", ..." if len(members) > _NAMED else ""
    return f"a tar archive of {', '.join(members[:_NAMED])}{more}", _UNPACK


def _as_text(head: bytes) -> str | None:
    """Return the start of a text file; None for binary content."""
    for encoding in ("utf-16",) if head[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        for cut in range(4):  # the last character may be cut
            try:
                text = head[: len(head) - cut].decode(encoding)
            except UnicodeDecodeError:
                continue
            return text if all(c.isprintable() or c in "\t\r\n\f" for c in text) else None
    return None


def _describe_text(text: str, path: Path) -> tuple[str, str]:
    start = text.lstrip().lower()
    if start.startswith("version https://git-lfs.github.com/spec/"):
        return (
            "a Git LFS pointer to a file that was not fetched",
            "Run `git lfs pull` in its repository, or download the file itself.",
        )
    if start.startswith(("/annex/objects/", "../.git/annex/", ".git/annex/")):
        return (
            "a git-annex pointer to a file that was not fetched",
            "Run `git annex get` in its repository.",
        )
    if start.startswith("<"):
        kind = "an HTML page" if "<html" in start or "<!doctype html" in start else "an XML file"
        return (
            f"{kind}, often the notice of a failed download",
            "Open the link in a browser and download the checkpoint itself.",
        )
    if start.startswith(("{", "[")) and _looks_like_json(text, path):
        return "a JSON file", "Give the file that contains the tensors."
    line = next(filter(None, text.split("\n")), "").strip()
    return f'a text file (it starts with "{line[:40]}")', _AGAIN


def _looks_like_json(text: str, path: Path) -> bool:
    if len(text) >= _HEAD // 2:
        return True  # too long to parse from its start; it is text that starts like JSON
    try:
        json.loads(path.read_bytes()[:_HEAD])
    except (ValueError, RecursionError):
        return False
    return True
