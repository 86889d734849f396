"""Measures a latency table: each layer at a grid of widths. Torch is imported inside functions.

The networks of ``mixed_levels`` run one after the other, each by turns with the unpruned network.
A layer's time is the median of its runs, scaled as if the unpruned network's layers had taken
equally long beside each network. Load that comes and goes, or interrupts a run here and there, so
changes little, and work that was interrupted goes on after its last network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from psvit_core.callbacks import Progress, Tick, ignore_progress, keep_going
from psvit_core.plan.build import plan_from_counts
from psvit_core.plan.latency import predictor
from psvit_core.plan.size import plan_widths
from psvit_core.records import (
    LatencyTable,
    LayerLatency,
    ModelSummary,
    PrunePlan,
    n_pruned,
)
from psvit_core.storage.store import ENGINE_VERSION, digest
from psvit_core.tasks.session import Session, summarize_model

if TYPE_CHECKING:
    from torch import Tensor

    from psvit_core.runtime import Run
    from psvit_core.zoo.base import SpikingModel

#: Prune ratios of the grid, one for each of ``layer_times.LEVELS``; 0 is first.
RATIOS = (0.0, 0.25, 0.5, 0.75, 0.9)
MIN_RUNS, MAX_RUNS = 6, 24  # timed runs of a network, after one that is not
MIN_SECONDS = 0.4  # keep timing, up to MAX_RUNS, until so much time is measured
_VERSION = 2  # of the tables; part of their key
_CRITERION = "l2"  # ranks the units of the timed networks
_TABLE, _PART = "latency/", "latency-part/"

#: What is stored of a network: its widths, and times of it, of the unpruned one and of all layers.
Part = dict[str, Any]


def find_latency(session: Session, batch: int = 1) -> LatencyTable | None:
    """Return the latency table of the session's model on this machine; None unless it is stored.

    Args:
        session: The model.
        batch: Images that run at once.
    """
    known = session.store.get(_TABLE + _Survey(session, batch).key)
    return LatencyTable.from_dict(known) if known else None


def measure_latency(
    session: Session,
    batch: int = 1,
    progress: Progress = ignore_progress,
    tick: Tick = keep_going,
) -> LatencyTable:
    """Return the latency table of the session's model on this machine, measured unless stored.

    Times depend on shapes alone, so random images run. Each network that has been timed is stored
    at once.

    Args:
        session: The model.
        batch: Images that run at once.
        progress: Called after each network.
        tick: Called before each run; may raise to stop.

    Raises:
        DataError: If the batch is below 1, or too large for the device.
    """
    known = find_latency(session, batch)
    if known is not None:
        return known
    survey = _Survey(session, batch, tick)
    parts = survey.parts(progress)
    table = _table(survey, parts)
    with session.store.optional():
        session.store.put(_TABLE + survey.key, table.to_dict())
        for number in range(len(parts)):
            session.store.delete(survey.part_key(number))
    return table


@dataclass
class _Survey:
    """What is timed of a session's model, and under which key it is stored."""

    session: Session
    batch: int
    tick: Tick = keep_going
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        self.run = replace(self.session.run, batch=self.batch)
        if self.session.subject.data is not None:
            _ = self.session.data  # event frames set the model's time steps

    @property
    def model(self) -> SpikingModel:
        """The unpruned model."""
        return self.session.model

    @cached_property
    def summary(self) -> ModelSummary:
        """Its summary with rankings."""
        return summarize_model(self.session)

    @cached_property
    def full_widths(self) -> dict[str, int]:
        """Its units by group."""
        return plan_widths(self.summary, None)

    @cached_property
    def key(self) -> str:
        """Everything that decides the times."""
        from psvit_core.metrics.profile import machine

        run, model = self.run, self.model
        return digest(
            [
                ENGINE_VERSION,
                _VERSION,
                self.summary.weights_hash,
                self.full_widths,
                model.T,
                list(model.input_shape),
                self.batch,
                run.precision,
                machine(run.device).to_dict(),
            ]
        )

    def part_key(self, number: int) -> str:
        """Return the store key of a network."""
        return f"{_PART}{self.key}/{number}"

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The groups of each layer."""
        from psvit_core.metrics.layer_times import groups_of_layers

        halves = {
            g.group_id: g.n_units - n_pruned(0.5, g.n_units, g.heads) for g in self.summary.groups
        }
        full = self.full_widths
        smaller = {group: width for group, width in halves.items() if width < full[group]}
        return groups_of_layers(self.model, smaller, tick=self.tick)

    def parts(self, progress: Progress) -> list[Part]:
        """Time all networks that are not stored."""
        from psvit_core.evaluate import place
        from psvit_core.metrics.layer_times import mixed_levels

        names = [g.group_id for g in self.summary.groups]
        networks = mixed_levels(names, self.groups.values())
        whole, x = place(self.model, self.run), self._images()
        found: list[Part] = []
        for number, levels in enumerate(networks):
            part = self.session.store.get(self.part_key(number))
            if part is None:
                plan = self._plan({g: RATIOS[level] for g, level in levels.items()})
                part = self._timed(whole, plan, x)
                with self.session.store.optional():
                    self.session.store.put(self.part_key(number), part)
            found.append(part)
            progress(number + 1, len(networks), "networks timed")
        return found

    def _images(self) -> Tensor:
        import torch

        run = self.run
        random = torch.Generator().manual_seed(0)
        x = torch.randn((self.batch, *self.model.input_shape), generator=random)
        return x.to(device=run.device, dtype=run.dtype)

    def _plan(self, ratios: Mapping[str, float]) -> PrunePlan:
        counts = {
            g.group_id: n_pruned(ratios[g.group_id], g.n_units, g.heads)
            for g in self.summary.groups
        }
        return plan_from_counts(self.summary, counts, criterion=_CRITERION, policy="by hand")

    def _timed(self, whole: SpikingModel, plan: PrunePlan, x: Tensor) -> Part:
        """Time a pruned network and its layers, by turns with the unpruned one."""
        import torch

        from psvit_core.evaluate import place
        from psvit_core.metrics.layer_times import LayerTimer, timed_run
        from psvit_core.runtime import out_of_memory_explained
        from psvit_core.surgery import apply_plan

        network = place(apply_plan(self.model, plan), self.run)
        layers: list[dict[str, float]] = []
        whole_layers: list[dict[str, float]] = []
        totals: list[tuple[float, float]] = []
        spent, runs = 0.0, -1
        with torch.no_grad(), self.run.autocast, out_of_memory_explained(self.run):
            while runs < MIN_RUNS or (runs < MAX_RUNS and spent < MIN_SECONDS):
                self.tick()
                with LayerTimer(network, self.groups) as timer:
                    timed_run(network, x)
                with LayerTimer(whole, self.groups) as beside:
                    timed_run(whole, x)
                total = (timed_run(network, x), timed_run(whole, x))
                runs += 1
                if runs > 0:  # the first one also loads and allocates
                    spent += 2 * sum(total) / 1000
                    layers.append(timer.ms)
                    whole_layers.append(beside.ms)
                    totals.append(total)
        return {
            "widths": dict(network.widths),
            "ms": median(total[0] for total in totals),
            "whole": median(total[1] for total in totals),
            "layers": {name: median(ms[name] for ms in layers) for name in self.groups},
            "whole_layers": {name: median(ms[name] for ms in whole_layers) for name in self.groups},
        }


def _table(survey: _Survey, parts: list[Part]) -> LatencyTable:
    """Return the table of all networks' times."""
    from psvit_core.metrics.profile import machine

    model, run, full = survey.model, survey.run, survey.full_widths
    total = median(part["whole"] for part in parts)
    sums = [sum(part["whole_layers"].values()) for part in parts]
    scales = [median(sums) / found for found in sums]
    modules = dict(model.named_modules())
    layers = tuple(
        LayerLatency(
            name=name,
            kind=type(modules[name]).__name__,
            groups=groups,
            widths=(
                *(tuple(part["widths"][group] for group in groups) for part in parts),
                *(tuple(full[group] for group in groups) for _ in parts),
            ),
            ms=tuple(
                scale * part[of][name]
                for of in ("layers", "whole_layers")
                for scale, part in zip(scales, parts, strict=True)
            ),
        )
        for name, groups in survey.groups.items()
    )
    rest = total - sum(predictor(layer, full)(full) for layer in layers)
    return LatencyTable(
        model=model.name,
        weights_hash=survey.summary.weights_hash,
        machine=machine(run.device),
        precision=run.precision,
        T=model.T,
        batch=survey.batch,
        input_shape=model.input_shape,
        full_widths=full,
        total_ms=total,
        rest_ms=rest,
        rest_slope_ms=_rest_slope(parts, full, rest),
        layers=layers,
    )


def _rest_slope(parts: list[Part], full: Mapping[str, int], rest: float) -> float:
    """Return by how much the rest falls for each unit of the mean share of channels removed.

    Least squares of how far each network's rest is below the unpruned one's beside it; the rest
    neither grows with pruning nor falls below 0.
    """
    lost = [
        1 - mean(part["widths"][g] / n for g, n in full.items()) if full else 0.0 for part in parts
    ]
    fallen = [
        (part["whole"] - sum(part["whole_layers"].values()))
        - (part["ms"] - sum(part["layers"].values()))
        for part in parts
    ]
    squares = sum(share * share for share in lost)
    if not squares:
        return 0.0
    slope = sum(share * ms for share, ms in zip(lost, fallen, strict=True)) / squares
    return min(max(slope, 0.0), max(rest, 0.0))
