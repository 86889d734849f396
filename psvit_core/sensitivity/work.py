"""Which cells of a sweep are due, and what becomes of finished ones, wherever they are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from filelock import FileLock
from torch import Tensor

from psvit_core.callbacks import Progress, Tick
from psvit_core.data import EvalSet
from psvit_core.evaluate import Prediction, check_labels, outcome_of
from psvit_core.incremental.cells import CellOutput, Task
from psvit_core.plan.size import plan_widths
from psvit_core.recover.cells import CellRefits, LayerWeights
from psvit_core.runtime import Run
from psvit_core.sensitivity.buffer import ResultBuffer, SweepBaseline, group_lock
from psvit_core.sensitivity.progress import FanOuts, ProgressMeter
from psvit_core.sensitivity.spec import Cell, SweepSpec, row_of
from psvit_core.storage.predictions import Array
from psvit_core.storage.store import Store
from psvit_core.zoo.base import SpikingModel


class Measurer(Protocol):
    """Measures the cells of a sweep."""

    def measure(self, images: Array) -> None:
        """Measure all open cells on some images, positions in the sweep."""

    def close(self) -> None:
        """Stop what still runs."""


class CellWork:
    """One process's part of a sweep: the open cells and their results.

    Args:
        spec: The sweep.
        model: The model, placed or not.
        data: Its images, in any order.
        run: Device, batch, precision.
        store: Where results are written.
        progress: Called with (images of cells done, total, description), weighted by cost.
        refits: What recovers the sweep's cells, if they are recovered.
    """

    def __init__(
        self,
        spec: SweepSpec,
        model: SpikingModel,
        data: EvalSet,
        run: Run,
        store: Store,
        progress: Progress,
        refits: CellRefits | None,
    ) -> None:
        self.spec, self.run, self._store, self._refits = spec, run, store, refits
        self._refitted: dict[str, dict[str, LayerWeights]] = {}  # by key of a recovered cell
        position = {name: i for i, name in enumerate(data.ids)}
        self.data = data.take([position[name] for name in spec.ids])
        check_labels(model, data)
        self._baseline = SweepBaseline(spec, store)
        self._buffer = ResultBuffer(spec, store)
        self._open = {cell.key: cell for cell in spec.cells()}
        self._fan_outs = FanOuts(model)
        self.meter = ProgressMeter(progress, len(self._open) * len(spec.ids))

    # ---- what is due ---------------------------------------------------------------------------

    def due(self, images: Array) -> dict[str, list[Cell]]:
        """Return the open cells by group, of the groups that lack results on some of the images."""
        groups: dict[str, list[Cell]] = {}
        for cell in self._open.values():
            groups.setdefault(cell.group.group_id, []).append(cell)
        return {
            group: cells
            for group, cells in groups.items()
            if any(len(self._buffer.missing(cell.key, images)) for cell in cells)
        }

    def lacks_baseline(self, images: Array) -> bool:
        """Return whether the full model has to run on some of the images."""
        return bool(len(self._baseline.missing(images)))

    def tasks(self, cells: Sequence[Cell], batch: Array) -> list[Task]:
        """Return tasks for cells that lack results; cells that remove nothing get them at once.

        Args:
            cells: Cells of one group.
            batch: Images that run together, positions in the sweep; their baseline is known.
        """
        tasks = []
        for cell in cells:
            missing = self._buffer.missing(cell.key, batch)
            if not len(missing):
                continue
            kept = cell.plan.kept.get(cell.group.group_id)
            if kept is None:
                self._add(cell, missing, batch, None)
                continue
            positions = np.searchsorted(batch, missing)
            if self.spec.cluster:
                positions = np.arange(len(batch))  # coupled images run in whole batches
            tasks.append(Task(kept, positions, self._on_done(cell, batch), self._edits(cell)))
        return tasks

    def lock(self, group: str) -> FileLock:
        """Return the lock that a process holds while it measures a group's cells."""
        return group_lock(self._store, self.spec, group)

    def refit_cells(self, tick: Tick) -> None:
        """Refit all recovered cells that lack results, before the first of them runs."""
        if self._refits is None or self._refitted:
            return
        images = np.arange(len(self.spec.ids))
        lacking = {
            key: cell.plan.kept
            for key, cell in self._open.items()
            if cell.plan.kept and len(self._buffer.missing(key, images))
        }
        self._refitted = self._refits.of(lacking, tick)

    def _edits(self, cell: Cell) -> Mapping[str, Tensor]:
        layers = self._refitted.get(cell.key)
        return self._refits.tensors(layers) if self._refits and layers else {}

    # ---- what is done --------------------------------------------------------------------------

    def add_baseline(self, batch: Array, logits: Array, reached: Mapping[str, Array]) -> None:
        """Add the full model's logits and spike counts on a batch."""
        counts = np.zeros((len(batch), len(reached)))  # no columns if no layer reads spikes
        for column, count in enumerate(reached.values()):
            counts[:, column] = count
        sops = counts @ self._fan_outs.at(reached, {})
        prediction = Prediction(logits=logits, sops=sops, firing={})
        part = self.data.take(batch.tolist())
        self._baseline.add(batch, logits, reached, outcome_of(part, prediction, logits, self.run))

    def set_costs(self, cost: Callable[[str, float], float]) -> None:
        """Set the relative costs of the open cells, by group and ratio, for the progress."""
        self.meter.costs |= {
            key: cost(cell.group.group_id, cell.prune_ratio) for key, cell in self._open.items()
        }

    def add_result(self, cell: Cell, batch: Array, output: CellOutput) -> None:
        """Add a cell's output on a batch; unaffected images have the baseline's values."""
        self._add(cell, batch[output.requested], batch, output)

    def _on_done(self, cell: Cell, batch: Array) -> Callable[[CellOutput], None]:
        return lambda output: self.add_result(cell, batch, output)

    def _add(self, cell: Cell, images: Array, batch: Array, output: CellOutput | None) -> None:
        logits = self._baseline.logits[images].copy()
        reached = self._baseline.reached[images].copy()
        if output is not None:
            column = self._baseline.column
            for name, count in output.recounted.items():
                reached[:, column[name]] = count
            if len(output.images):
                rows = np.searchsorted(images, batch[output.images])
                logits[rows] = output.logits
                for name, count in output.reached.items():
                    reached[rows, column[name]] = count
        widths = plan_widths(self.spec.summary, cell.plan)
        sops = reached @ self._fan_outs.at(self._baseline.readers, widths)
        prediction = Prediction(logits=logits, sops=sops, firing={})
        chosen = self.data.take(images.tolist())
        baseline_logits = self._baseline.logits[images]
        self._buffer.add(cell.key, outcome_of(chosen, prediction, baseline_logits, self.run))
        self.write_if_due()
        self.meter.advance(cell, len(images))

    def count(self) -> None:
        """Count the remaining images of all open cells, for the progress."""
        images = np.arange(len(self.spec.ids))
        missing = {key: len(self._buffer.missing(key, images)) for key in self._open}
        self.meter.set_remaining(missing, len(images))

    def close_settled(self) -> None:
        """Run no more images of the cells whose drop is known well enough."""
        baseline = self._baseline.outcome()
        for key, cell in list(self._open.items()):
            outcome = self._buffer.outcome(key)
            if outcome and row_of(self.spec, cell, outcome, baseline).settled:
                del self._open[key]

    def release_after_write(self, lock: FileLock) -> None:
        """Release a lock once all results so far are written."""
        self._buffer.release_after_write(lock)

    def write(self) -> None:
        """Write all results so far."""
        self._baseline.write()
        self._buffer.write()

    def write_if_due(self) -> None:
        """Write all results so far if that costs little compared with the work since."""
        if self._buffer.is_due():
            self.write()


#: Makes what measures the open cells; its tick is called often and may raise to stop.
MakeMeasurer = Callable[[CellWork, Tick], Measurer]
