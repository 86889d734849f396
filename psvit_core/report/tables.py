"""Tables of a report: rows of text from records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from psvit_core.pareto import ParetoArchive
from psvit_core.plan.size import plan_size
from psvit_core.records import Measurement, ModelSummary, PrunePlan
from psvit_core.report.sources import Stage, Unpruned
from psvit_core.report.words import NOT_MEASURED, one_line, percent, points, share

_NOTHING = "–"  # where a quantity makes no sense

Read = Callable[[Measurement], str]


@dataclass(frozen=True)
class Row:
    """A row: its name and the text of every column."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class GroupRow:
    """A channel group under the plan."""

    title: str
    units: int
    kept: int

    @property
    def removed(self) -> str:
        """Return the fraction of units that is removed."""
        return f"{100 * (1 - self.kept / self.units):.1f} %"

    @property
    def width(self) -> str:
        """Return the fraction of units that stay, as a width in CSS."""
        return f"{100 * self.kept / self.units:.2f}%"


@dataclass(frozen=True)
class BlockRows:
    """The channel groups of one place of the network."""

    place: str
    groups: tuple[GroupRow, ...]


def plan_rows(summary: ModelSummary, plan: PrunePlan) -> tuple[BlockRows, ...]:
    """Return every channel group with the units that stay, by place, in network order."""
    return tuple(
        BlockRows(
            one_line(place, 60),
            tuple(
                GroupRow(
                    one_line(g.title, 60),
                    g.n_units,
                    len(plan.kept.get(g.group_id, range(g.n_units))),
                )
                for g in groups
            ),
        )
        for place, groups in groupby(summary.groups, key=lambda g: g.place)
    )


# ---- before and after ----------------------------------------------------------------------------

_READERS: tuple[tuple[str, Read], ...] = (
    ("Parameters", lambda m: f"{m.size.params:,}"),
    ("Weights, bytes (float32)", lambda m: f"{m.size.bytes:,}"),
    ("Memory saved", lambda m: share(m.memory_saving)),
    ("MACs, one image and time step", lambda m: f"{m.size.macs:,}"),
    ("SOPs, one image", lambda m: f"{m.sops:,.0f}"),
    (
        "Theoretical energy, one image",
        lambda m: f"{m.energy_pj / 1e6:.3f} µJ ({one_line(m.energy_model.name, 30)})",
    ),
    ("Accuracy [95 %]", lambda m: percent(m.accuracy)),
    ("Top-5 accuracy [95 %]", lambda m: percent(m.top5)),
    ("Accuracy lost, paired [95 %]", lambda m: points(m.drop)),
    (
        "Predicted loss, frozen before the measurement",
        lambda m: points(m.predicted, "no prediction"),
    ),
    (
        "KL divergence from the unpruned network",
        lambda m: NOT_MEASURED if m.kl is None else f"{m.kl:.4f} nats",
    ),
    (
        "Images with the same prediction",
        lambda m: NOT_MEASURED if m.agreement is None else share(m.agreement),
    ),
    ("Membrane potentials, bytes, one image", lambda m: _profile(m, "state")),
    ("Peak of activations, bytes, one image", lambda m: _profile(m, "peak")),
    ("Latency, one image (median)", lambda m: _profile(m, "latency")),
)
#: Rows that compare with the unpruned network, and those that a plan's size decides.
_COMPARED = ("Memory saved", "Accuracy lost", "Predicted loss", "KL divergence", "Images with")


def before_after(
    unpruned: Unpruned, stages: Sequence[Stage], summary: ModelSummary, plan: PrunePlan | None
) -> tuple[Row, ...]:
    """Return a row per quantity: the unpruned network, then every measured stage of the plan.

    Without a measurement of the plan there is one column of its exact size.
    """
    rows = []
    for name, read in _READERS:
        cells = [_before(unpruned, name, read), *(read(s.measurement) for s in stages)]
        if plan is not None and not stages:
            cells.append(_size_only(summary, plan, name))
        if name.startswith("Top-5") and set(cells) == {NOT_MEASURED}:
            continue  # fewer than 20 classes
        rows.append(Row(name, tuple(cells)))
    return tuple(rows)


def _before(unpruned: Unpruned, name: str, read: Read) -> str:
    if name.startswith(_COMPARED):
        return _NOTHING
    if unpruned.measurement is not None:
        return read(unpruned.measurement)
    known = {
        "Parameters": f"{unpruned.size.params:,}",
        "Weights, bytes (float32)": f"{unpruned.size.bytes:,}",
        "MACs, one image and time step": f"{unpruned.size.macs:,}",
        "SOPs, one image": f"{unpruned.sops:,.0f}" if unpruned.sops is not None else NOT_MEASURED,
        "Accuracy [95 %]": percent(unpruned.accuracy),
    }
    return known.get(name, NOT_MEASURED)


def _size_only(summary: ModelSummary, plan: PrunePlan, name: str) -> str:
    """Return what is exact about a plan that was not measured."""
    size, whole = plan_size(summary, plan), plan_size(summary, None)
    known = {
        "Parameters": f"{size.params:,}",
        "Weights, bytes (float32)": f"{size.bytes:,}",
        "Memory saved": share(1 - size.bytes / whole.bytes),
        "MACs, one image and time step": f"{size.macs:,}",
    }
    return known.get(name, NOT_MEASURED)


def _profile(m: Measurement, what: str) -> str:
    profile = m.profile
    if profile is None:
        return NOT_MEASURED
    if what == "state":
        return f"{profile.state_bytes:,}"
    if what == "peak":
        peak = profile.peak_activation_bytes.get("1")
        return NOT_MEASURED if peak is None else f"{peak:,}"
    times = profile.latency_ms.get("1")
    if times is None:
        return NOT_MEASURED
    machine = profile.machine
    on = f"{one_line(machine.processor, 40)}, {machine.threads} threads"
    return f"{times.median:.2f} ms [{times.low:.2f}, {times.high:.2f}] ({on})"


# ---- the front -----------------------------------------------------------------------------------


def front_rows(archive: ParetoArchive, plan: PrunePlan | None) -> Iterator[tuple[bool, Row]]:
    """Yield the plans on the front of bytes, smallest first, and whether each is the report's."""
    for found in archive.front():
        point = found.point
        m, made = point.measurement, point.made[0]
        cells = (
            f"{m.size.bytes:,}",
            share(m.memory_saving),
            percent(m.accuracy),
            points(m.drop),
            points(m.predicted, "no prediction"),
            one_line(made.target or "by hand", 60),
        )
        is_own = plan is not None and point.plan.kept == plan.kept
        yield is_own, Row(one_line(made.policy, 30), cells)
