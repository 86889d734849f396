"""A sweep over a cluster: hands out cells by group and image block, and stores what comes back.

This process reads the images, sends each block once, and adds every cell's output to the store as
the local engine does. The full model runs first on a block; then its groups are free for all
workers. What a lost worker had finished is there already; the rest is handed out again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock, Timeout

from psvit_core.callbacks import Tick
from psvit_core.cluster.actors import (
    CellRequest,
    CellResult,
    CellWorker,
    FullResult,
    Requests,
    Share,
)
from psvit_core.cluster.images import in_memory
from psvit_core.cluster.pool import Event, Pool, check_losses, streaming
from psvit_core.cluster.runtime import Connection
from psvit_core.cluster.settings import EngineSettings
from psvit_core.sensitivity.spec import Cell
from psvit_core.sensitivity.work import CellWork, MakeMeasurer
from psvit_core.storage.predictions import Array
from psvit_core.zoo.base import SpikingModel

_POLL_SECONDS = 0.2  # while another process runs the remaining cells
_BATCHES = 8  # of the run, in a block
_BLOCK_BYTES = 1 << 28
#: Blocks at a time: what they take in the object store is bounded.
MOST_BLOCKS = 4
_UNITS_PER_WORKER = 4  # at least, towards the end of the images: they end at about the same time
_UNITS_IN_BLOCKS = 2  # for each worker, in the blocks of a time


@dataclass(eq=False)
class _Block:
    """Images that are sent together."""

    images: Array  # positions in the sweep
    reference: Any = None  # of their values in the object store
    n_units: int = 0  # that are not done


@dataclass(eq=False)
class _Unit:
    """What one worker does at a time: some groups' cells, or the full model, on a block."""

    block: _Block
    groups: Sequence[str] = ()
    losses: int = 0
    keys: dict[str, Cell] = field(default_factory=dict)  # of the cells that it measures now


def groups_per_unit(n_groups: int, n_blocks: int, n_workers: int) -> int:
    """Return how many groups a worker takes at a time.

    Few, so that all workers have work until the end; many, since the full model runs up to each
    unit's last group.

    Args:
        n_groups: Groups of a block.
        n_blocks: Blocks that are not handed out, with this one.
        n_workers: Workers.
    """
    at_the_end = n_blocks * n_groups // (_UNITS_PER_WORKER * n_workers)
    meanwhile = MOST_BLOCKS * n_groups // (_UNITS_IN_BLOCKS * n_workers)
    return max(1, min(n_groups, at_the_end, meanwhile))


class ClusterCells:
    """Measures cells of a sweep on a cluster.

    Args:
        work: The open cells.
        model: The model, on the processor.
        tick: Called several times a second; may raise to stop.
        settings: The engine.
        memory_budget: Bytes for the values of a batch in a worker; None: by its free memory.

    Raises:
        MissingPackageError: If ray is not installed.
        ClusterError: If the cluster cannot be used.
    """

    def __init__(
        self,
        work: CellWork,
        model: SpikingModel,
        tick: Tick,
        settings: EngineSettings,
        memory_budget: int | None = None,
    ) -> None:
        self._work, self._tick = work, tick
        self._locks: list[FileLock] = []
        self._ready: deque[_Unit] = deque()
        self._blocks: deque[_Block] = deque()
        image = in_memory(work.data.take([0]))
        batch_bytes = work.run.batch * image.load(0).nbytes
        n_batches = max(1, min(_BATCHES, _BLOCK_BYTES // max(batch_bytes, 1)))
        if work.spec.cluster:
            n_batches = 1  # a part of a coupled batch cannot run again
        self._block_size = work.run.batch * n_batches
        share = Share(
            spec=work.spec, model=model, data=image, run=work.run, memory_budget=memory_budget
        )
        with ExitStack() as opened:
            self._connection = opened.enter_context(closing(Connection(settings)))
            self._pool: Pool[_Unit] = opened.enter_context(
                closing(Pool(self._connection, CellWorker, work.run.device, share))
            )
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End the workers; what they were measuring is lost."""
        self._opened.close()

    def measure(self, images: Array) -> None:
        """Run all open cells on some images; wait for cells of other processes."""
        while True:
            busy: set[str] = set()
            try:
                groups = self._lock_groups(images, busy)
                self._measure(images, groups)
            finally:
                for lock in self._locks:
                    self._work.release_after_write(lock)
                self._locks.clear()
                self._work.write()
            if not busy:
                return
            self._tick()
            time.sleep(_POLL_SECONDS)

    def _lock_groups(self, images: Array, busy: set[str]) -> set[str]:
        """Lock the groups with open cells; those that other processes have are ``busy``."""
        locked = set()
        for group in self._work.due(images):
            lock = self._work.lock(group)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                busy.add(group)
            else:
                self._locks.append(lock)
                locked.add(group)
        return locked

    def _measure(self, images: Array, groups: set[str]) -> None:
        size, work = self._block_size, self._work
        blocks = [images[i : i + size] for i in range(0, len(images), size)]
        self._groups = groups
        self._blocks = deque(
            _Block(block)
            for block in blocks
            if work.lacks_baseline(block) or groups & work.due(block).keys()
        )
        self._ready.clear()
        self._n_blocks = 0
        while self._blocks or self._ready or self._pool.is_busy:
            self._tick()
            while self._pool.n_idle and (unit := self._next_unit()) is not None:
                self._hand_out(unit)
            for event in self._pool.events():
                self._take(event)
            work.write_if_due()

    # ---- handing out ---------------------------------------------------------------------------

    def _next_unit(self) -> _Unit | None:
        """Return what an idle worker should do; None if nothing is free now."""
        while not self._ready and self._blocks and self._n_blocks < MOST_BLOCKS:
            block = self._blocks.popleft()
            self._n_blocks += 1
            if self._work.lacks_baseline(block.images) or not self._work.meter.costs:
                block.n_units = 1
                return _Unit(block)
            self._open(block)
        return self._ready.popleft() if self._ready else None

    def _open(self, block: _Block) -> None:
        """Make the groups of a block free for the workers; its baseline is known."""
        self._work.count()
        self._work.refit_cells(self._tick)
        groups = [g for g in self._work.due(block.images) if g in self._groups]
        size = groups_per_unit(len(groups), 1 + len(self._blocks), self._pool.size)
        units = [_Unit(block, groups[i : i + size]) for i in range(0, len(groups), size)]
        block.n_units = len(units)
        self._n_blocks -= not units
        self._ready.extend(units)

    def _end(self, unit: _Unit) -> None:
        """Note the end of a unit; the last one of a block makes room for another block."""
        unit.block.n_units -= 1
        self._n_blocks -= not unit.block.n_units

    def _hand_out(self, unit: _Unit) -> None:
        """Give a unit to an idle worker, unless nothing is missing."""
        block = unit.block
        if not unit.groups:
            values = self._values(block)
            self._pool.run(unit, lambda worker: streaming(worker.run_full)(values))
            return
        requests = self._requests(unit)
        if requests:
            values = self._values(block)
            self._pool.run(unit, lambda worker: streaming(worker.measure)(values, requests))
        else:
            self._end(unit)

    def _requests(self, unit: _Unit) -> Requests:
        """Return what a unit's cells lack, by group."""
        due = self._work.due(unit.block.images)
        requests: dict[str, list[CellRequest]] = {}
        for group in unit.groups:
            for cell in due.get(group, ()):
                for task in self._work.tasks([cell], unit.block.images):
                    unit.keys[cell.key] = cell
                    edits = {name: value.cpu() for name, value in task.edits.items()}
                    request = CellRequest(cell.key, task.kept, task.images, edits)
                    requests.setdefault(group, []).append(request)
        return requests

    def _values(self, block: _Block) -> Any:
        """Return the reference of a block's images in the object store; put them there once."""
        if block.reference is None:
            part = self._work.data.take(block.images.tolist())
            (x,) = part.batches(len(part), self._work.run.dtype, self._work.run.workers)
            block.reference = self._connection.ray.put(x.numpy())
        return block.reference

    # ---- taking back ---------------------------------------------------------------------------

    def _take(self, event: Event[_Unit]) -> None:
        unit = event.job
        if event.is_lost:
            unit.losses += event.node_lived
            check_losses(unit.losses, ", ".join(unit.groups) or "the unpruned model")
            self._ready.appendleft(unit)
        elif event.is_result:
            self._add(unit, event.result)
        elif unit.groups:
            self._end(unit)
        else:
            self._open(unit.block)

    def _add(self, unit: _Unit, result: CellResult | FullResult) -> None:
        batch = unit.block.images[result.low : result.high]
        if isinstance(result, FullResult):
            self._work.add_baseline(batch, result.logits, result.reached)
            costs = result.costs
            self._work.set_costs(lambda group, ratio: costs[group, ratio])
        else:
            self._work.add_result(unit.keys[result.key], batch, result.output)


def on_cluster(
    settings: EngineSettings, model: SpikingModel, memory_budget: int | None = None
) -> MakeMeasurer:
    """Return what makes the measurer of a sweep on a cluster (``SweepOptions.measurer``).

    Arguments as for ``ClusterCells``.
    """

    def make(work: CellWork, tick: Tick) -> ClusterCells:
        return ClusterCells(work, model, tick, settings, memory_budget)

    return make
