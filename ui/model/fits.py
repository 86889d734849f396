"""What a network needs to run, against the memories of a device."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from psvit_core.metrics.devices import DEVICES, fit
from psvit_core.plan.size import bytes_by_layer, plan_widths
from psvit_core.records import Fit, FitReport, ModelSummary, PrunePlan, Schedule, TargetDevice
from ui.model import formats

OWN = "own"  # in the list of devices
PRECISIONS = {"float32": "fp32", "float16": "fp16", "int8": "int8"}
BETWEEN = "(between modules)"
_MEMORIES = {"flash": "Flash", "RAM": "RAM"}


@dataclass(frozen=True)
class Needs:
    """Bytes that one network needs for one image."""

    layers: dict[str, int]  # module -> bytes of its weights, in the chosen precision
    schedule: Schedule  # the way to run the time steps that needs the fewest bytes
    report: FitReport

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(self.layers.values())

    @property
    def positions(self) -> dict[str, int]:
        """Activations at their peak and state, by the module that runs."""
        state = self.schedule.state_bytes
        return {p.position or BETWEEN: p.bytes + state for p in self.schedule.positions}

    def on(self, device: TargetDevice) -> Fit:
        """Compare them with a device."""
        return fit(device, self.weight_bytes, self.schedule.bytes)


@dataclass(frozen=True)
class Need:
    """Bytes of one layer or position, of the unpruned network and of the plan."""

    name: str
    unpruned: int
    plan: int | None  # None: there is no plan
    state: int = 0  # membrane potentials among the bytes of the network that is drawn


def needs(
    summary: ModelSummary, plan: PrunePlan | None, report: FitReport, precision: str
) -> Needs:
    """Return what a network needs with weights of a precision.

    Args:
        summary: The unpruned model.
        plan: The plan that the report is of; None: the unpruned model.
        report: What a background job counted.
        precision: Of the weights. Other than float32 it is arithmetic: nothing is quantized.
    """
    return Needs(
        layers=bytes_by_layer(summary.shapes, plan_widths(summary, plan), precision),
        schedule=next(s for s in report.schedules if s.name == report.schedule),
        report=report,
    )


def layer_needs(unpruned: Needs, pruned: Needs | None) -> list[Need]:
    """Return the bytes of the weights by layer, in the order of the network."""
    plan = pruned.layers if pruned else {}
    return [Need(name, n_bytes, plan.get(name)) for name, n_bytes in unpruned.layers.items()]


def position_needs(unpruned: Needs, pruned: Needs | None) -> list[Need]:
    """Return the activations and state by position, in the order in which modules run."""
    plan = pruned.positions if pruned else {}
    state = (pruned or unpruned).schedule.state_bytes
    return [
        Need(name, n_bytes, plan.get(name), state) for name, n_bytes in unpruned.positions.items()
    ]


def largest(found: list[Need], count: int) -> list[Need]:
    """Return the largest of them, in their order."""
    kept = sorted(found, key=lambda need: need.unpruned, reverse=True)[:count]
    return [need for need in found if need in kept]


def need_rows(found: list[Need]) -> pd.DataFrame:
    """Return one row per layer or position: name, bytes unpruned, bytes of the plan if any."""
    columns: dict[str, list[object]] = {
        "name": [need.name for need in found],
        "unpruned": [need.unpruned for need in found],
    }
    if any(need.plan is not None for need in found):
        columns["plan"] = [need.plan for need in found]
    return pd.DataFrame(columns)


def device_title(name: str) -> str:
    """Return a device's title with its memories."""
    if name == OWN:
        return "Own numbers"
    device = DEVICES[name]
    ram = size(device.ram_bytes)
    if device.flash_bytes is None:
        return f"{device.title}: {ram} for everything"
    return f"{device.title}: {size(device.flash_bytes)} flash, {ram} RAM"


def size(n_bytes: int) -> str:
    """Format a memory as its maker does: in KiB and MiB where that gives a whole number."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if n_bytes % unit == 0:
            return f"{n_bytes // unit:,}{formats.NBSP}{name}"
    return formats.kilobytes(n_bytes)


def limit_facts(found: Fit) -> list[tuple[str, str]]:
    """Return (memory, what is spare or missing) of each memory; the one that binds is named."""
    several = len(found.limits) > 1
    facts = []
    for limit in found.limits:
        word = "spare" if limit.spare_bytes >= 0 else "missing"
        binds = ", **binds**" if several and limit.memory == found.binds else ""
        left = f"**{formats.kilobytes(abs(limit.spare_bytes))} {word}**"
        need = formats.kilobytes(limit.need_bytes)
        text = f"needs {need}, {left} ({formats.percent(limit.use)} of it{binds})"
        facts.append((_MEMORIES[limit.memory], text))
    return facts


def schedule_line(found: Needs) -> str:
    """Describe what the activations are made of."""
    schedule = found.schedule
    peak = f"{formats.kilobytes(schedule.peak_activation_bytes)} of activations at their peak"
    if schedule.state_bytes:
        state = formats.kilobytes(schedule.state_bytes)
        return f"{peak}, one time step after the other, and {state} of neuron state between them"
    steps = f", all {schedule.steps} time steps at once" if schedule.steps > 1 else ""
    return f"{peak}{steps}; neuron state is in it"


def expansion_line(report: FitReport) -> str:
    """Describe what a network's integers become as binary spikes; empty without integers."""
    e = report.expansion
    if e is None:
        return ""
    return (
        f"Integer neurons: where spikes are binary, T × D = {e.T} × {e.levels} = {e.steps} steps "
        f"run for one image. All {sum(e.values.values()):,} integers take "
        f"{formats.kilobytes(e.level_bits // 8)} as integers and "
        f"{formats.kilobytes(e.spike_bits // 8)} as binary spikes, if all are kept; neither is "
        "part of the RAM above."
    )
