"""Programs whose changes of files are watched, killed or refused from below (``shim.c``)."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from psvit_core.kernels.build import find_compiler
from tests.patience import JOB

ROOT = Path(__file__).resolve().parents[2]
_SOURCE = Path(__file__).with_name("shim.c")
CAN_WATCH = sys.platform == "linux" and find_compiler() is not None


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="psvit-shim-")


@functools.cache
def library() -> Path:
    """Compile the library that programs are started with; return its path."""
    compiler = find_compiler()
    assert compiler is not None
    path = Path(_folder().name) / "shim.so"
    command = [*compiler.split(), "-O1", "-shared", "-fPIC", "-o", str(path), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return path


def run_watched(
    program: str, folder: Path, *arguments: str, log: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a Python program that sees ``folder`` through the library.

    Args:
        program: Its text.
        folder: The folder whose changes are watched.
        arguments: Its arguments.
        log: Where changes are recorded.
        check: Whether it must end without an error.
    """
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library()),
        "SHIM_ROOT": str(folder),
        "SHIM_LOG": str(log or ""),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=JOB,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def loaded() -> ctypes.CDLL:
    """Return the library in a program that was started with it."""
    found = ctypes.CDLL(None)
    found.shim_count.restype = ctypes.c_long
    for call in (found.shim_kill_at, found.shim_full_from):
        call.argtypes = [ctypes.c_long] * (1 if call is found.shim_kill_at else 2)
    return found
