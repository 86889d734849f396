"""Where the parts of the picture are: rows of groups, blocks around them, rails of streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psvit_core.records import ModelSummary

WIDTH = 400  # of the picture; narrow, so that its text is readable on a phone
ROW, BAR, HEAD, GAP, PAD = 24, 14, 20, 8, 4  # heights, and the inner margin of a block
BAR_MAX, BAR_MIN = 110, 4  # widths of bars
EDGE = 10  # from the picture's border to text and rails
_LANES_MAX, _LANE = 66, 12  # widths of all rails and of one
_ARROWS = 26  # width between rails and bars
_NEAR = 8  # rows; longer edges become a rail


@dataclass(frozen=True)
class Block:
    """Consecutive groups of one place in the network."""

    name: str
    y: float
    height: float


@dataclass(frozen=True)
class Rail:
    """A vertical line for a group that many others are connected with."""

    group_id: str
    x: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Layout:
    """Positions of all parts, in the picture's pixels."""

    blocks: tuple[Block, ...]
    y: dict[str, float]  # group -> centre of its row
    bars_left: float
    rails: dict[str, Rail]
    edges: tuple[tuple[str, str], ...]  # (group, group that is computed from it)
    elbows: dict[str, float]  # group -> distance of edges without rail from the bars they lead to
    height: float


def place(summary: ModelSummary, top: float) -> Layout:
    """Place a model's groups below each other, in network order.

    Args:
        summary: The model.
        top: Height of what is drawn above.
    """
    blocks: list[Block] = []
    y: dict[str, float] = {}
    at = top
    groups = summary.groups
    start = 0
    while start < len(groups):
        end = start + 1
        while end < len(groups) and groups[end].place == groups[start].place:
            end += 1
        height = HEAD + ROW * (end - start) + PAD
        for i in range(start, end):
            y[groups[i].group_id] = at + HEAD + ROW * (i - start + 0.5)
        blocks.append(Block(groups[start].place, at, height))
        at += height + GAP
        start = end
    edges = connections(summary)
    rails, left = _rails(summary, edges, y)
    ends = dict.fromkeys(b for a, b in edges if a not in rails and b not in rails)
    elbows = {b: 7.0 + 5 * (i % 3) for i, b in enumerate(ends)}
    return Layout(tuple(blocks), y, left, rails, edges, elbows, at)


def connections(summary: ModelSummary) -> tuple[tuple[str, str], ...]:
    """Return the pairs of groups where a layer reads the first and writes the second."""
    written: dict[str, list[tuple[str, int]]] = {}
    for group in summary.groups:
        for tensor, axis in group.writers:
            written.setdefault(tensor, []).append((group.group_id, axis))
    found: dict[tuple[str, str], None] = {}
    for group in summary.groups:
        for tensor, axis in group.readers:
            for other, written_axis in written.get(tensor, ()):
                if other != group.group_id and written_axis != axis:
                    found[group.group_id, other] = None
    return tuple(found)


def _rails(
    summary: ModelSummary, edges: Sequence[tuple[str, str]], y: dict[str, float]
) -> tuple[dict[str, Rail], float]:
    """Return the rails and the left end of all bars."""
    order = {group.group_id: i for i, group in enumerate(summary.groups)}
    with_rail = {group.group_id for group in summary.groups if group.is_stream}
    for a, b in edges:
        if not {a, b} & with_rail and abs(order[a] - order[b]) > _NEAR:
            with_rail.add(a)
    spans: dict[str, tuple[float, float]] = {name: (y[name], y[name]) for name in with_rail}
    for a, b in edges:
        # An edge belongs to the rail of its first group, or else of its second.
        owner, other = (a, b) if a in with_rail else (b, a)
        if owner in spans:
            low, high = spans[owner]
            spans[owner] = (min(low, y[other]), max(high, y[other]))
    ends: list[float] = []  # of each lane's last rail
    lanes: dict[str, int] = {}
    for name in sorted(spans, key=lambda name: (spans[name], order[name])):
        low, high = spans[name]
        lane = next((i for i, end in enumerate(ends) if end < low), len(ends))
        ends[lane : lane + 1] = [high]
        lanes[name] = lane
    pitch = min(_LANE, _LANES_MAX / max(len(ends), 1))
    rails = {name: Rail(name, EDGE + 4 + pitch * lanes[name], *spans[name]) for name in lanes}
    return rails, EDGE + pitch * len(ends) + _ARROWS
