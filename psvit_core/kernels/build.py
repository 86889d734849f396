"""Compilation of ``csrc`` into a shared library in the user's cache folder.

The file name is a hash of the sources, the compiler, its flags, the processor and the layout of the
structs, so a library is compiled once and never used with anything else.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from psvit_core.kernels import structs

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_TIMEOUT = 120  # seconds


def compiled_library() -> Path:
    """Return the path of the library, compiled first if necessary.

    Raises:
        OSError: If no compiler is found, or other users can write to the cache folder.
        subprocess.SubprocessError: If the compiler fails or takes longer than two minutes.
    """
    compiler = find_compiler()
    if compiler is None:
        raise FileNotFoundError("no C compiler found (cc, gcc or $CC)")
    library = _private_folder() / f"{_hash(compiler)}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}.part")
        command = [*compiler.split(), *FLAGS, "-o", str(part), str(SOURCES / "psvit.c")]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT)
        part.replace(library)
    return library


def find_compiler() -> str | None:
    """Return the command of a C compiler: $CC, cc or gcc; None if there is none."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")


def _hash(compiler: str) -> str:
    machine = repr((compiler, FLAGS, platform.machine(), _processor(), structs.layout()))
    digest = hashlib.blake2b(machine.encode(), digest_size=12)
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def _private_folder() -> Path:
    """Return ``~/.cache/psvit``; code is loaded from it, so only the user may write to it."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(
            "this account has no home folder; set XDG_CACHE_HOME to a folder of your own"
        ) from error
    folder = base / "psvit"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if sys.platform != "win32" and (
        found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise PermissionError(
            f"other users can write to {folder}: remove their permission, then start again"
        )
    return folder


def _processor() -> str:
    """Return the features that -march=native depends on: machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
