"""Processes that run jobs: their lock, bell and log, and how they are started; no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from psvit_core.errors import JobError
from psvit_core.jobs.devices import worker_environment
from psvit_core.records import Subject
from psvit_core.storage import processes
from psvit_core.storage.faults import StoreLock
from psvit_core.storage.processes import is_same_process
from psvit_core.storage.store import Store

process_started = processes.process_started  # the start of a live process
_PREFIX = "worker/"  # of the keys, one per device: its process
_POLL_SECONDS = 0.01
_CHECKS = 0.2  # seconds; longer than others that check hold the lock
_Processes = dict[tuple[Path, str], "subprocess.Popen[bytes]"]
_STARTED: _Processes = {}  # the last worker that this process has started, by store and device
_CHILDREN: list[subprocess.Popen[bytes]] = []  # all of them that this process has not waited for


def log_path(store: Store, device: str) -> Path:
    """Return the path of a device's worker log."""
    return store.place("logs", f"worker-{_file_name(device)}.log")


def log_size(store: Store, device: str) -> int:
    """Return the bytes of a device's worker log so far; 0 without one."""
    try:
        return log_path(store, device).stat().st_size
    except OSError:
        return 0


def bell_path(store: Store, device: str) -> Path:
    """Return the file whose time of change tells a device's worker to look for jobs."""
    return store.place("locks", f"bell-{_file_name(device)}")


def ring(store: Store, device: str) -> None:
    """Make a device's worker look for jobs at once."""
    path = bell_path(store, device)
    with store.faults("write to"):
        path.touch()


def _file_name(device: str) -> str:
    return device.replace(":", "-").replace("/", "-")


@contextmanager
def worker_lock(store: Store, device: str, timeout: float = 0) -> Iterator[bool]:
    """Hold a device's worker lock during the block, if it is free.

    The operating system releases the lock when its process ends, even if it is killed.

    Yields:
        True if the lock was free.
    """
    lock = StoreLock(store.place("locks", f"worker-{_file_name(device)}.lock"))
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def taking_jobs(store: Store) -> Iterator[None]:
    """Let no other worker take a job during the block: workers of several devices share some."""
    lock = StoreLock(store.place("locks", "taking-jobs.lock"))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def note_worker(store: Store, device: str) -> None:
    """Note that this process is a device's worker, which holds the lock."""
    store.put(_PREFIX + device, [os.getpid(), process_started(os.getpid())], durable=False)


def _noted(store: Store, device: str) -> int | None:
    """Return the process that last noted to be a device's worker, if it lives."""
    pid, started = store.get(_PREFIX + device) or (None, None)
    return pid if isinstance(pid, int) and is_same_process(pid, started) else None


def _is_needed(store: Store, device: str, patience: float) -> bool:
    """Return whether a device has no worker, and none is starting.

    The lock alone does not tell: the system releases that of a killed process after a while, and
    others hold it for a moment to look.
    """
    deadline = time.monotonic() + patience
    while True:
        with worker_lock(store, device) as free:
            if free:
                last = _STARTED.get((store.folder, device))
                starting = last is not None and last.poll() is None
                return not starting or _noted(store, device) == (last and last.pid)
        if _noted(store, device) is not None or time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)


def ensure_worker(
    store: Store, device: str = "cpu", warm: Subject | None = None, patience: float = _CHECKS
) -> None:
    """Start a device's worker unless it runs already. A surplus worker ends by itself.

    Args:
        store: The store of its jobs.
        device: The device that it runs them on.
        warm: Subject to load and compile for while no job waits.
        patience: Seconds to wait for the lock of a process that has been killed.

    Raises:
        JobError: If the system cannot start a process.
        StoreError: If the worker's log cannot be written.
    """
    if not _is_needed(store, device, patience):
        return
    command = [sys.executable, "-m", "psvit_core.jobs.worker", str(store.folder), device]
    command += [json.dumps(warm.to_dict())] if warm is not None else []
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    path_of_log = log_path(store, device)
    with store.faults("write to"):
        output = path_of_log.open("ab")
    try:
        with output:
            process = subprocess.Popen(
                command,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**worker_environment(device, os.environ), "PYTHONPATH": path},
            )
    except OSError as error:  # no memory, or too many processes
        raise JobError(
            f"The worker of {device} cannot start: {error.strerror}. Free some memory, or end "
            "other programs. Jobs wait until it can."
        ) from error
    _STARTED[store.folder, device] = process
    _CHILDREN.append(process)


def reap() -> None:
    """Let the system forget the workers of this process that have ended.

    Until then they stay in its list of processes, whoever killed them.
    """
    _CHILDREN[:] = [process for process in _CHILDREN if process.poll() is None]
