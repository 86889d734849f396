"""Which process is which: a process's number and start tell it from all others; no torch.

The start is no time of day. Whoever sets the clock would otherwise make every running process look
like another one, and its job interrupted.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS = 1_000_000_000  # one for each start of the machine
#: Larger values are seconds since the epoch: of versions up to 0.2, and of systems without /proc.
_EPOCH = 1_500_000_000.0


def process_started(pid: int) -> float | None:
    """Return when a live process started; None if there is none.

    Returns:
        On Linux, seconds since the machine started plus a number of that start, which both no clock
        changes; elsewhere, seconds since the epoch.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        steady = _steady_start(pid)
        return process.create_time() if steady is None else steady
    except psutil.Error:
        return None


def is_same_process(pid: int, started: float | None) -> bool:
    """Return whether a process still lives; another one may have got its number.

    Args:
        pid: Its number.
        started: When it started, as ``process_started`` of this or an older version said.
    """
    now = process_started(pid)
    if now is None or started is None:
        return False
    try:
        now = psutil.Process(pid).create_time() if started > _EPOCH else now
    except psutil.Error:
        return False
    return abs(now - started) < 1.0


def _steady_start(pid: int) -> float | None:
    """Return the start of a process on a clock that nobody sets; None where there is none."""
    offset = _boot_offset()
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        ticks = int(facts.rpartition(")")[2].split()[19])  # the name before may contain anything
    except (OSError, IndexError, ValueError):
        return None
    return None if offset is None else offset + ticks / os.sysconf("SC_CLK_TCK")


@cache
def boot() -> str:
    """Return a name of the present start of the machine; empty where the system has none."""
    try:
        return _BOOT_ID.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _boot_offset() -> float | None:
    try:
        return float(int(boot().replace("-", ""), 16) % _OFFSETS)
    except ValueError:
        return None
