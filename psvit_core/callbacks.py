"""Callback types of long-running functions, and defaults that do nothing."""

from __future__ import annotations

from collections.abc import Callable

#: Called after each step with (steps done, total steps, description); a total of 0 is unknown.
Progress = Callable[[int, int, str], None]
#: Called before each batch. Raises to stop the work.
Tick = Callable[[], None]
#: Called before each step. Returns True to end early with the result so far.
Stop = Callable[[], bool]


def ignore_progress(done: int, total: int, what: str) -> None:
    """Ignore progress."""


def keep_going() -> None:
    """Never stop the work."""


def never_stop() -> bool:
    """Return False: run to the end."""
    return False
