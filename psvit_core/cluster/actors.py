"""What runs on the nodes: a worker with one model, which measures cells by the local engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psvit_core.callbacks import keep_going
from psvit_core.cluster.runtime import current_node, load_ray
from psvit_core.cluster.streaming import Found, streamed
from psvit_core.data import EvalSet
from psvit_core.data.ahead import placed, prepared
from psvit_core.errors import ClusterError
from psvit_core.evaluate import place_once
from psvit_core.incremental.cells import CellOutput, Task, TaskSource
from psvit_core.runtime import Portions, Run, out_of_memory_explained
from psvit_core.sensitivity.prepare import prepare
from psvit_core.sensitivity.spec import SweepSpec
from psvit_core.storage.predictions import Array
from psvit_core.storage.store import ENGINE_VERSION
from psvit_core.zoo.base import SpikingModel


@dataclass(frozen=True, kw_only=True)
class Share:
    """What every worker gets, once a node, through the object store.

    Attributes:
        spec: The sweep.
        model: The model, on the processor.
        data: One image of the sweep, for its shape.
        run: Device, batch, precision.
        memory_budget: As for a sweep.
    """

    spec: SweepSpec
    model: SpikingModel
    data: EvalSet
    run: Run
    memory_budget: int | None = None


@dataclass(frozen=True)
class CellRequest:
    """One cell to measure on a block of images.

    Attributes:
        key: Of the cell's results.
        kept: Units that stay.
        images: Positions in the block.
        edits: As in ``Task``.
    """

    key: str
    kept: tuple[int, ...]
    images: Array
    edits: Mapping[str, Tensor]


@dataclass(frozen=True)
class CellResult:
    """The output of one cell on a portion of a block: its images ``low`` to ``high``."""

    key: str
    low: int
    high: int
    output: CellOutput


@dataclass(frozen=True)
class FullResult:
    """The full model's output on a portion of a block, and what cells cost relative to it."""

    low: int
    high: int
    logits: Array
    reached: dict[str, Array]
    costs: dict[tuple[str, float], float]  # by group and ratio


Requests = Mapping[str, Sequence[CellRequest]]  # by group


def taken(engine_version: int, shared: Sequence[Any]) -> Any:
    """Return what a new worker takes from the object store; it then computes in one thread.

    Args:
        engine_version: That of the driver.
        shared: Contains the reference, which is followed here: only then can versions be compared
            before anything is read.

    Raises:
        ClusterError: If this node has another version.
    """
    if engine_version != ENGINE_VERSION:
        raise ClusterError(
            f"A node of the cluster has engine version {ENGINE_VERSION}, this machine "
            f"{engine_version}. Install the same version of psvit-explorer everywhere."
        )
    torch.set_num_threads(1)
    return load_ray().get(shared[0])


class CellWorker:
    """Measures cells of one sweep; runs as a Ray actor."""

    def load(self, engine_version: int, shared: Sequence[Any]) -> str:
        """Take the model from the object store and prepare it, as ``taken``; return the node."""
        share: Share = taken(engine_version, shared)
        self._spec, self._run = share.spec, share.run
        with torch.no_grad(), share.run.autocast:
            model = place_once(share.model, share.run, share.spec.summary.weights_hash)
            self._executor, batch = prepare(
                share.spec, model, share.data, share.run, share.memory_budget
            )
        self._portions = Portions(batch, least=batch if share.spec.cluster else 1)
        return current_node()

    def run_full(self, images: Array) -> Iterator[FullResult]:
        """Run the full model on a block; yield the output of each portion."""
        cells = [(cell.group.group_id, cell.prune_ratio) for cell in self._spec.cells()]

        def run(low: int, high: int) -> FullResult:
            logits, reached = self._executor.run_full_model(self._placed(images[low:high]))
            costs = {cell: self._executor.cost(*cell) for cell in cells}
            return FullResult(low, high, logits, reached, costs)

        def run_all(found: Found) -> None:
            for result in self._portions.over(len(images), run):
                found(result)

        yield from self._streamed(run_all)

    def measure(self, images: Array, requests: Requests) -> Iterator[CellResult]:
        """Measure cells on a block; yield the output of each as soon as it is there."""

        def run_all(found: Found) -> None:
            block = _Block(requests, found)

            def run(low: int, high: int) -> None:
                due = {group: block.source(group, low, high) for group in block.due(low, high)}
                if due:
                    x = self._placed(images[low:high])
                    self._executor.run_cells(x, due, keep_going)

            for _ in self._portions.over(len(images), run):
                pass

        yield from self._streamed(run_all)

    def _placed(self, images: Array) -> Tensor:
        return placed(prepared(torch.tensor(images), self._run), self._run)

    def _streamed(self, run: Callable[[Found], None]) -> Iterator[Any]:
        def guarded(found: Found) -> None:
            with torch.no_grad(), self._run.autocast, out_of_memory_explained(self._run):
                run(found)

        return streamed(guarded)


class _Block:
    """Cells on a block of images, and which of these still have to run.

    A portion runs again, in halves, after the device was out of memory: without its finished cells.
    """

    def __init__(self, requests: Requests, found: Callable[[CellResult], None]) -> None:
        self._requests, self._found = requests, found
        self._left = {r.key: r.images for of_group in requests.values() for r in of_group}

    def due(self, low: int, high: int) -> list[str]:
        """Return the groups with cells to run on a portion."""
        return [
            group
            for group, requests in self._requests.items()
            if any(len(self._chosen(request, low, high)) for request in requests)
        ]

    def source(self, group: str, low: int, high: int) -> TaskSource:
        """Return what makes the tasks of a group on a portion."""

        def tasks() -> list[Task]:
            return [
                Task(request.kept, chosen, self._on_done(request, low, high), request.edits)
                for request in self._requests[group]
                if len(chosen := self._chosen(request, low, high))
            ]

        return tasks

    def _chosen(self, request: CellRequest, low: int, high: int) -> Array:
        images = self._left[request.key]
        return images[(low <= images) & (images < high)] - low

    def _on_done(self, request: CellRequest, low: int, high: int) -> Callable[[CellOutput], None]:
        def add(output: CellOutput) -> None:
            left = self._left[request.key]
            self._left[request.key] = left[(left < low) | (left >= high)]
            self._found(CellResult(request.key, low, high, output))

        return add
