"""How long a sweep takes on many workers: a formula, and a simulation of what the driver does."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from psvit_core.cluster.sweep import MOST_BLOCKS, groups_per_unit

WORKERS_PER_NODE = 8


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one sweep costs; seconds and bytes.

    Attributes:
        n_groups: Channel groups.
        n_ratios: Ratios of each.
        cell: Seconds of a worker for one cell and image, the mean of all cells.
        full: Seconds of a worker for the full model and one image.
        prefix: Share of the full model that runs again for a unit of one group, the mean.
        start: Seconds until a worker is ready.
        decode: Seconds of the driver for one image, with all its decoding processes.
        merge: Seconds of the driver for one cell's result on one image.
        image_bytes: Bytes of one image as it is sent.
        result_bytes: Bytes of one cell's result on one image.
        link: Bytes a second of the driver's link, each way.
        delay: Seconds from a worker's last result until it has its next unit, at the least.
    """

    n_groups: int
    n_ratios: int
    cell: float
    full: float
    prefix: float
    start: float
    decode: float
    merge: float
    image_bytes: float
    result_bytes: float
    link: float
    delay: float

    @property
    def n_cells(self) -> int:
        """Cells of the sweep."""
        return self.n_groups * self.n_ratios


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is run: images after each stage, the share of cells that each stage runs, a block."""

    ends: tuple[int, ...]
    open_shares: tuple[float, ...]
    block: int

    @property
    def n_cell_images(self) -> float:
        """Images of cells, for one cell."""
        begins = (0, *self.ends[:-1])
        parts = zip(begins, self.ends, self.open_shares, strict=True)
        return sum((end - begin) * share for begin, end, share in parts)


@dataclass(frozen=True)
class Bounds:
    """The least time that each resource needs, seconds."""

    workers: float
    driver: float
    link: float

    @property
    def longest(self) -> float:
        """The time of the resource that limits."""
        return max(self.workers, self.driver, self.link)


def bounds(costs: Costs, sweep: Sweep, n_workers: int, groups_per_unit: float = 1.0) -> Bounds:
    """Return the formula's three times; the sweep takes at least the longest of them.

    Args:
        costs: The costs.
        sweep: What is run.
        n_workers: Workers.
        groups_per_unit: Groups that a worker takes at a time, for which it runs the full model up
            to the last of them.
    """
    n_images = sweep.ends[-1]
    units = costs.n_groups / groups_per_unit
    work = sweep.n_cell_images * costs.n_cells * costs.cell
    work += n_images * costs.full * (1 + units * costs.prefix)
    driver = n_images * costs.decode + sweep.n_cell_images * costs.n_cells * costs.merge
    n_nodes = -(-n_workers // WORKERS_PER_NODE)
    sent = n_images * costs.image_bytes * n_nodes
    returned = sweep.n_cell_images * costs.n_cells * costs.result_bytes
    return Bounds(work / n_workers, driver, max(sent, returned) / costs.link)


@dataclass
class _Block:
    n_images: int
    loaded: bool = False
    n_units: int = 1  # that are not done
    on_nodes: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Unit:
    block: _Block
    n_groups: int  # 0: the full model


class Simulation:
    """The driver and its workers, event by event.

    The driver does one thing at a time: it decodes a block, adds a unit's results, hands out the
    next unit. Its link sends each block once to every node that needs it. A worker waits until its
    next unit is there. Stages follow one after the other, as the driver judges cells in between.

    Args:
        costs: The costs.
        n_workers: Workers.
    """

    def __init__(self, costs: Costs, n_workers: int) -> None:
        self._costs, self._n_workers = costs, n_workers
        self._driver = self._link = 0.0  # when each is free

    def run(self, sweep: Sweep) -> float:
        """Return the seconds of a sweep."""
        now, begin = self._costs.start, 0
        for end, share in zip(sweep.ends, sweep.open_shares, strict=True):
            now = self._stage(now, _blocks(begin, end, sweep.block), share)
            begin = end
        return now

    def _stage(self, now: float, blocks: deque[_Block], share: float) -> float:
        ready: deque[_Unit] = deque()
        running: list[tuple[float, int, int, _Unit]] = []  # end, number, worker, unit
        idle, n_blocks = list(range(self._n_workers)), 0
        number, self._driver = 0, max(self._driver, now)
        while True:
            while idle and (ready or (blocks and n_blocks < MOST_BLOCKS)):
                n_blocks += not ready
                unit = ready.popleft() if ready else _Unit(blocks.popleft(), 0)
                worker = idle.pop(0)
                end = self._hand_out(unit, worker, share)
                heapq.heappush(running, (end, number, worker, unit))
                number += 1
            if not running:
                return self._driver
            end, _, worker, unit = heapq.heappop(running)
            self._driver = max(self._driver, end)
            idle.append(worker)
            if unit.n_groups:
                cells = unit.n_groups * self._costs.n_ratios * share
                self._driver += unit.block.n_images * cells * self._costs.merge
                unit.block.n_units -= 1
                n_blocks -= not unit.block.n_units
            else:
                sizes = self._unit_sizes(len(blocks) + 1)
                unit.block.n_units = len(sizes)
                ready.extend(_Unit(unit.block, size) for size in sizes)

    def _unit_sizes(self, n_blocks: int) -> list[int]:
        n_groups = self._costs.n_groups
        size = groups_per_unit(n_groups, n_blocks, self._n_workers)
        return [min(size, n_groups - i) for i in range(0, n_groups, size)]

    def _hand_out(self, unit: _Unit, worker: int, share: float) -> float:
        """Return when a worker has done a unit that the driver hands out now."""
        costs, block, node = self._costs, unit.block, worker // WORKERS_PER_NODE
        if not block.loaded:
            self._driver += block.n_images * costs.decode
            block.loaded = True
        there = self._driver
        if node not in block.on_nodes:
            block.on_nodes.add(node)
            self._link = max(self._link, there) + block.n_images * costs.image_bytes / costs.link
            there = self._link
        seconds = costs.full
        if unit.n_groups:
            # Up to the last of its groups: one of them needs the mean, all of them everything.
            up_to = costs.prefix + (1 - costs.prefix) * (unit.n_groups - 1) / costs.n_groups
            seconds = costs.full * up_to
            seconds += unit.n_groups * costs.n_ratios * share * costs.cell
        return there + costs.delay + block.n_images * seconds


def _blocks(begin: int, end: int, size: int) -> deque[_Block]:
    return deque(_Block(min(size, end - low)) for low in range(begin, end, size))


def table(
    costs: Costs, sweeps: dict[str, Sweep], workers: Sequence[int]
) -> list[dict[str, float | int | str]]:
    """Return a row for each sweep and number of workers."""
    rows: list[dict[str, float | int | str]] = []
    for name, sweep in sweeps.items():
        alone = Simulation(costs, 1).run(sweep)
        for n in workers:
            seconds, least = (
                Simulation(costs, n).run(sweep),
                bounds(costs, sweep, n, costs.n_groups),
            )
            rows.append(
                {
                    "sweep": name,
                    "workers": n,
                    "hours": seconds / 3600,
                    "speed-up": alone / seconds,
                    "workers bound (h)": least.workers / 3600,
                    "driver bound (h)": least.driver / 3600,
                    "link bound (h)": least.link / 3600,
                }
            )
    return rows
