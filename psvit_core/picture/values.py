"""What the picture's groups are coloured by: one number for each group, and what it means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psvit_core.errors import RecordError
from psvit_core.records import ChannelGroup, ModelSummary, SensitivityRow

_FLOAT_BYTES = 4
_TOO_MUCH = 10.0  # pp; drops from here on have the last colour, as in the app's heatmap


@dataclass(frozen=True, kw_only=True)
class GroupValues:
    """A number for each channel group, and how it is shown."""

    by_group: Mapping[str, float]  # group id -> value; groups may be absent
    name: str = "Value"  # for the legend
    unit: str = ""  # bytes, pp, nats, rate (a fraction, shown in percent) or empty
    end: float | None = None  # value of the last colour; None: the largest value
    root: bool = False  # colours follow the square root, so that small values are visible

    def of(self, group_id: str) -> float | None:
        """Return the value of a group; None if it has none, or none that is finite."""
        value = self.by_group.get(group_id)
        return None if value is None or not math.isfinite(value) else float(value)

    @property
    def last(self) -> float:
        """The value of the last colour, above 0."""
        known = [v for name in self.by_group if (v := self.of(name)) is not None]
        end = self.end if self.end is not None else max(known, default=0.0)
        return end if math.isfinite(end) and end > 0 else 1.0

    def position(self, value: float) -> float:
        """Return a value's place on the colour scale, in [0, 1]."""
        part = min(max(value / self.last, 0.0), 1.0)
        return math.sqrt(part) if self.root else part

    def text(self, value: float) -> str:
        """Return a value with its unit."""
        if self.unit == "bytes":
            return _bytes_text(value)
        if self.unit == "rate":
            return f"{100 * value:.3g} %"
        if self.unit == "pp":
            return f"{value:.2f}".replace("-", "\N{MINUS SIGN}").removesuffix(".00") + " pp"
        return f"{value:.3g} {self.unit}".rstrip()


def _bytes_text(value: float) -> str:
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f} bytes"


def bytes_values(summary: ModelSummary) -> GroupValues:
    """Return the float32 bytes of the tensors that have an axis of each group, before pruning.

    Most tensors have two axes, and count for the groups of both: the values do not add up to the
    model's size.
    """
    widths = {group.group_id: group.n_units for group in summary.groups}
    found = dict.fromkeys(widths, 0.0)
    for tensor in summary.shapes.tensors:
        if tensor.role in ("counter", "unused"):
            continue
        for factor, names in tensor.monomials():
            part = _FLOAT_BYTES * factor * math.prod(widths[name] for name in names)
            for name in set(names):
                found[name] += part
    name = "Bytes of the tensors with its channels"
    return GroupValues(by_group=found, name=name, unit="bytes", root=True)


def sensitivity_values(
    rows: Sequence[SensitivityRow], ratio: float | None = None, metric: str = "drop"
) -> GroupValues:
    """Return the cost of pruning each group alone at one of a sweep's ratios.

    Args:
        rows: The sweep's cells; groups whose cell is absent, or removes nothing, have no value.
        ratio: One of the sweep's prune ratios; None for the one that is closest to a half.
        metric: ``drop``: accuracy drop in percentage points; ``kl``: KL divergence in nats.

    Raises:
        RecordError: If the sweep has no cell of that ratio.
    """
    ratios = sorted({row.prune_ratio for row in rows})
    chosen = min(ratios, key=lambda r: abs(r - 0.5), default=None) if ratio is None else ratio
    if chosen is None or chosen not in ratios:
        has = ", ".join(f"{r:g}" for r in ratios) or "none"
        asked = "any prune ratio" if chosen is None else f"the prune ratio {chosen:g}"
        raise RecordError(f"The sweep has no cell of {asked}. Choose one that it has: {has}.")
    cells = [row for row in rows if row.prune_ratio == chosen and row.n_pruned]
    alone = f"{100 * chosen:g} % removed alone"
    if metric == "kl":
        found = {row.group_id: row.kl for row in cells}
        return GroupValues(by_group=found, name=f"KL, {alone}", unit="nats", end=1.0, root=True)
    found = {row.group_id: row.drop.value for row in cells}
    name = f"Accuracy drop, {alone}"
    return GroupValues(by_group=found, name=name, unit="pp", end=_TOO_MUCH, root=True)


def firing_values(summary: ModelSummary, firing: Mapping[str, float]) -> GroupValues:
    """Return the mean firing rate of the neurons beside each group's layers.

    Args:
        summary: The model.
        firing: Neuron layer -> firing rate, as ``Measurement.firing``. Residual streams pass
            through nearly all modules, so they get no value.
    """
    found = {}
    for group in summary.groups:
        if rates := firing_rates(group, firing):
            found[group.group_id] = sum(rates.values()) / len(rates)
    return GroupValues(by_group=found, name="Mean firing rate beside its layers", unit="rate")


def coupled_layers(group: ChannelGroup) -> tuple[list[str], list[str]]:
    """Return the layers that write a group's units, and those that read them."""
    writers = dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in group.writers)
    readers = dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in group.readers)
    return list(writers), list(readers)


def firing_rates(group: ChannelGroup, firing: Mapping[str, float]) -> dict[str, float]:
    """Return the firing rates of the neurons next to a group's layers, by their short names.

    A residual stream passes through nearly all modules, so it gets no rates.
    """
    if group.is_stream:
        return {}
    layers = [layer for side in coupled_layers(group) for layer in side]
    parents = {layer.rpartition(".")[0] for layer in layers}
    return {
        name.rpartition(".")[2]: rate
        for name, rate in firing.items()
        if name.rpartition(".")[0] in parents
    }
