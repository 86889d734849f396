"""Programs on a disk that is really full, or that may not write: nothing here needs root.

``tmpfs`` mounts a small disk in namespaces of its own, copies a store to it and fills it, inodes
too; ``bytes`` leaves inodes, so that a removed file makes space for several. Both are skipped where
the system gives no namespaces to this account. ``limit`` forbids the program to write more than a
block to any file (``RLIMIT_FSIZE``), which works everywhere.
"""

from __future__ import annotations

import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import JOB

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("tmpfs", "limit")
_SIZE = "size=16m,nr_inodes=600"
_BLOCK = 4096


@functools.cache
def _namespaces() -> tuple[str, ...] | None:
    """Return the command that gives a program its own mounts; None if none works here."""
    for options in (("--user", "--map-root-user", "--mount"), ("--mount",)):
        command = ("unshare", *options)
        try:
            trial = subprocess.run(
                [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
            )
        except FileNotFoundError:
            return None
        if trial.returncode == 0:
            return command
    return None


def command_on_full(way: str, store: Path, arguments: list[str]) -> tuple[list[str], Path]:
    """Return a command that runs a program on a full copy of a store, and the copy's folder.

    Args:
        way: One of ``WAYS``, or ``bytes``.
        store: A store that is closed.
        arguments: The program and its arguments.
    """
    if way == "limit":
        head = [sys.executable, "-m", "tests.full_disk", way]
        return [*head, *arguments], store
    namespaces = _namespaces()
    if namespaces is None:
        pytest.skip("this account may not mount a tmpfs, not even in a namespace of its own")
    disk = store.parent / "disk"
    disk.mkdir(exist_ok=True)
    head = [*namespaces, sys.executable, "-m", "tests.full_disk", way, str(store), str(disk)]
    return [*head, *arguments], disk / store.name


def run_on_full(way: str, store: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program on a full copy of a store, which ``PSVIT_CACHE`` names."""
    command, folder = command_on_full(way, store, arguments)
    environment = {**os.environ, "PSVIT_CACHE": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=JOB
    )


def fill(disk: Path, *, inodes: bool) -> None:
    """Write to a disk until nothing more fits; with ``inodes``, not even an empty file."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(_BLOCK))
        except OSError:
            pass
    number = 0
    try:
        while inodes:
            (disk / f"empty-{number}").touch()
            number += 1
    except OSError:
        pass


def main(way: str, *arguments: str) -> None:
    """Make the disk full, and become the program."""
    if way == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing raises instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (_BLOCK, _BLOCK))
    else:
        store, disk, *arguments = arguments  # type: ignore[assignment]  # the rest is a list
        subprocess.run(["mount", "-t", "tmpfs", "-o", _SIZE, "tmpfs", disk], check=True)
        shutil.copytree(store, Path(disk, Path(store).name))
        fill(Path(disk), inodes=way == "tmpfs")
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
