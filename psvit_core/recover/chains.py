"""Run independent parts of a recovery at the same time, each in a thread of its own.

Torch releases Python's lock in its kernels, and one recovery uses little more than one core. Ticks
stay with the caller's thread: a tick may run other jobs, and parts wait while it does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import torch

from psvit_core.callbacks import Tick

_LOOK_SECONDS = 0.03  # between two ticks

#: Takes the tick that it must call before each step. May return a part that continues it, which is
#: started after those that wait already. (Types cannot refer to themselves, so it is not checked.)
Part = Callable[[Tick], Any]


class _Stopped(BaseException):
    """Ends a part after another one, or the caller's tick, has raised."""


class _Turns:
    """Lets parts and the caller's tick take turns.

    Args:
        tick: The caller's.
    """

    def __init__(self, tick: Tick) -> None:
        self._tick, self._turn, self._stopped = tick, threading.Lock(), threading.Event()

    def of_part(self) -> None:
        """Wait while the caller's tick runs; raise once the parts are to stop."""
        with self._turn:
            pass
        if self._stopped.is_set():
            raise _Stopped

    def of_caller(self) -> None:
        """Run the caller's tick, while the parts wait."""
        with self._turn:
            self._tick()

    def stop(self) -> None:
        """Make the parts stop at their next tick."""
        self._stopped.set()


def run_parts(parts: Sequence[Part], tick: Tick) -> None:
    """Run functions in threads, at most two at a time and no more than there are processors.

    Args:
        parts: In the order in which they start.
        tick: Called in this thread while the parts run; may raise to stop them.

    Raises:
        BaseException: What ``tick`` or the first part that failed has raised, once all have ended.
    """
    turns, threads = _Turns(tick), torch.get_num_threads()

    def run(part: Part) -> Part | None:
        torch.set_num_threads(threads)  # new threads do not inherit it
        turns.of_part()
        following: Part | None = part(turns.of_part)
        return following

    workers = max(1, min(2, os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(run, part) for part in parts}
        try:
            while running:
                turns.of_caller()
                done, running = wait(running, _LOOK_SECONDS, FIRST_COMPLETED)
                following = [future.result() for future in done]
                running |= {pool.submit(run, part) for part in following if part is not None}
        finally:
            turns.stop()
