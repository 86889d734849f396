"""Measures the cells of a sweep in this process.

As many images as memory allows run together: the full model once, and each cell only from where it
differs (``incremental.executor``).
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial

from filelock import Timeout
from torch import Tensor

from psvit_core.callbacks import Tick
from psvit_core.data.ahead import Upcoming, placed
from psvit_core.incremental.cells import Task
from psvit_core.runtime import Portions
from psvit_core.sensitivity.prepare import prepare
from psvit_core.sensitivity.work import CellWork
from psvit_core.storage.predictions import Array
from psvit_core.zoo.base import SpikingModel

_POLL_SECONDS = 0.2  # while another process runs the remaining cells


class LocalCells:
    """Measures cells in this process.

    Args:
        work: The open cells.
        model: The model, placed.
        tick: Called before each batch and each cell; may raise to stop.
        memory_budget: Bytes for the values of a batch; a quarter of the free memory if None.
    """

    def __init__(
        self, work: CellWork, model: SpikingModel, tick: Tick, memory_budget: int | None = None
    ) -> None:
        self._work, self._tick = work, tick
        self._executor, batch = prepare(work.spec, model, work.data, work.run, memory_budget)
        self._portions = Portions(batch, least=batch if work.spec.cluster else 1)
        self._upcoming = Upcoming(work.data, work.run)

    def close(self) -> None:
        """Drop the images that nobody asked for."""
        self._upcoming.close()

    def measure(self, images: Array) -> None:
        """Run all open cells on some images, in batches; wait for cells of other processes."""
        size = self._portions.size
        batches = [images[i : i + size] for i in range(0, len(images), size)]
        while batches:
            following = [*batches[1:], images[:0]]
            waiting = [
                batch
                for batch, after in zip(batches, following, strict=True)
                if self._run_in_portions(batch, after)
            ]
            if len(waiting) == len(batches):
                self._tick()
                self._work.write()
                time.sleep(_POLL_SECONDS)
            batches = waiting

    def _run_in_portions(self, batch: Array, following: Array) -> bool:
        """Run a batch, in portions once the device was out of memory; returns as ``_run_batch``."""

        def run(low: int, high: int) -> bool:
            return self._run_batch(batch[low:high], following)

        return any(list(self._portions.over(len(batch), run)))

    def _run_batch(self, batch: Array, following: Array) -> bool:
        """Run all open cells on a batch; return whether another process runs some of them."""
        work = self._work
        wanted, lacks_baseline = work.due(batch), work.lacks_baseline(batch)
        if not wanted and not lacks_baseline:
            return False
        self._tick()
        x = placed(self._upcoming.images(batch.tolist(), following.tolist()), work.run)
        if lacks_baseline or not work.meter.costs:
            self._run_baseline(batch, x)
        work.count()
        work.refit_cells(self._tick)
        busy: list[str] = []
        with ExitStack() as running:

            def start(group: str) -> list[Task]:
                """Lock a group and return its tasks; none if another process has the lock."""
                running.close()  # the previous group is done
                work.write_if_due()
                lock = work.lock(group)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    busy.append(group)
                    return []
                running.callback(work.release_after_write, lock)
                return work.tasks(wanted[group], batch)

            groups = {group: partial(start, group) for group in wanted}
            self._executor.run_cells(x, groups, self._tick)
        work.write_if_due()
        return bool(busy)

    def _run_baseline(self, batch: Array, x: Tensor) -> None:
        logits, reached = self._executor.run_full_model(x)
        self._work.add_baseline(batch, logits, reached)
        self._work.set_costs(self._executor.cost)
