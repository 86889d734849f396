"""Figures of a report as SVG: the sweep's heatmap, the measured front, the training curve."""

from __future__ import annotations

import math

from psvit_core.pareto import ParetoArchive, ParetoPoint
from psvit_core.records import EpochRecord, PrunePlan, SensitivityRow, SensitivityTable
from psvit_core.records._base import all_finite
from psvit_core.report.svg import HEAT_STEPS, Drawing, Scale, frame, scale
from psvit_core.report.words import one_line
from psvit_core.sensitivity.spec import TOO_MUCH

_CELL_HEIGHT, _WIDEST_CELL, _NARROWEST_CELL = 22, 52, 12
_LABELS, _RIGHT = 210, 20  # pixels beside the cells
_NUMBERS_FROM = 30  # pixels of a cell that has room for a number
#: Policy -> its mark and its colour class; others share the last.
_MARKS = {"optimal": (0, "p0"), "psvit": (1, "p1"), "prime": (2, "p2"), "uniform": (3, "p3")}
_OTHER = (4, "p4")


def heatmap(table: SensitivityTable) -> Drawing:
    """Draw the accuracy drop of every channel group at every prune ratio.

    Colour and number are the paired drop of that group alone, on a square-root scale that ends at
    ``TOO_MUCH`` percentage points.

    Args:
        table: The sweep's table, finished or not.
    """
    groups, ratios, cells = table.summary.groups, table.ratios, table.cells
    wide = min(_WIDEST_CELL, max(_NARROWEST_CELL, 520 / len(ratios)))
    top = 62
    bottom = top + _CELL_HEIGHT * len(groups)
    width = max(_LABELS + wide * len(ratios) + _RIGHT, 560)
    recovery = table.conditions.recovery
    how = f", recovered by {recovery}" if recovery != "none" else ""
    drawing = Drawing(
        width,
        bottom + 92,
        f"Sensitivity: accuracy drop by channel group and prune ratio{how}",
        f"{len(groups)} groups at {len(ratios)} ratios; every number is in the CSV table.",
    )
    drawing.text(8, 20, drawing.title, "ink title")
    middle = _LABELS + wide * len(ratios) / 2
    drawing.text(middle, 40, "units removed from the group, %", "faint", anchor="middle")
    for i, ratio in enumerate(ratios):
        x = _LABELS + wide * (i + 0.5)
        drawing.text(x, top - 6, f"{100 * ratio:g}", "faint", anchor="middle")
    for j, group in enumerate(groups):
        y = top + _CELL_HEIGHT * j
        label = one_line(group.label, 34)
        drawing.text(_LABELS - 8, y + 15, label, "ink", anchor="end")
        for i, ratio in enumerate(ratios):
            row = cells.get((group.group_id, ratio))
            _cell(drawing, (_LABELS + wide * i, y, wide), row, one_line(group.label, 80), ratio)
    _heat_legend(drawing, bottom + 16)
    return drawing


def _cell(
    drawing: Drawing,
    place: tuple[float, float, float],
    row: SensitivityRow | None,
    label: str,
    ratio: float,
) -> None:
    """Draw one cell: (left, top, width), its table row, and the group's label."""
    x, y, wide = place
    height = _CELL_HEIGHT
    if row is None:
        tip = f"{label}, {100 * ratio:g} %: not measured"
        drawing.box(x, y, wide, height, "none outline", tip)
        drawing.line([(x + 3, y + height - 3), (x + wide - 3, y + 3)], "outline")
        return
    step, d = heat_step(row.drop.value), row.drop
    drop = f"{d.value:+.2f} pp, 95 % from {d.low:+.2f} to {d.high:+.2f}"
    tip = f"{label}, {100 * ratio:g} %: {drop}, {row.n_pruned} units removed"
    drawing.box(x, y, wide, height, f"h{step} outline", tip)
    if wide >= _NUMBERS_FROM:
        unsure = " unsure" if d.low <= 0 <= d.high else ""
        text = f"{d.value:.1f}" if row.n_pruned else "–"
        text = "0.0" if text == "-0.0" else text.replace("-", "−")
        drawing.text(x + wide / 2, y + 15, text, f"small t{step}{unsure}", anchor="middle")


def heat_step(drop: float) -> int:
    """Return the colour of a drop, percentage points: 0 (harmless) to ``HEAT_STEPS`` - 1."""
    return round(math.sqrt(min(max(drop, 0.0) / TOO_MUCH, 1.0)) * (HEAT_STEPS - 1))


def _heat_legend(drawing: Drawing, y: float) -> None:
    wide = 8
    for step in range(HEAT_STEPS):
        drawing.box(_LABELS + wide * step, y, wide, 12, f"h{step}")
    length = wide * HEAT_STEPS
    drawing.box(_LABELS, y, length, 12, "none outline")
    for drop in (0, 0.5, 3, TOO_MUCH):
        x = _LABELS + length * math.sqrt(drop / TOO_MUCH)
        text = f"≥ {drop:g}" if drop == TOO_MUCH else f"{drop:g}"
        drawing.text(x, y + 27, text, "faint", anchor="middle")
    drawing.text(_LABELS + length + 16, y + 11, "percentage points lost, paired", "faint")
    notes = "italic: the 95 % interval contains 0;  –: no unit removed;  struck out: not measured"
    drawing.text(_LABELS, y + 50, notes, "faint small")


# ---- the front -----------------------------------------------------------------------------------


def front(
    archive: ParetoArchive, unpruned: tuple[int, float] | None, plan: PrunePlan | None
) -> Drawing:
    """Draw all measured plans: accuracy against the bytes of the weights.

    Args:
        archive: The plans; at least one.
        unpruned: Bytes and accuracy of the unpruned network, if they are known.
        plan: The plan to mark, if it is among them.
    """
    drawing = Drawing(
        760,
        396,
        "Measured plans: accuracy against memory",
        f"{len(archive.points)} plans; every number is in the CSV table.",
    )
    points = archive.points
    sizes = [p.measurement.size.bytes / 1e6 for p in points]
    accuracies = [100 * v for p in points for v in _ends(p)]
    if unpruned is not None:
        sizes.append(unpruned[0] / 1e6)
        accuracies.append(100 * unpruned[1])
    x, y = scale(sizes, 72, 740), scale(accuracies, 340, 66)
    drawing.text(8, 20, drawing.title, "ink title")
    frame(drawing, x, y, ("weights, MB (float32)", "accuracy, %"))
    best = [p.point for p in archive.front()]
    line = [(x(p.measurement.size.bytes / 1e6), y(100 * p.accuracy)) for p in best]
    drawing.line(line, "accent", 1.6)
    for point in points:
        _point(drawing, point, (x, y), chosen=plan is not None and point.plan.kept == plan.kept)
    if unpruned is not None:
        at = x(unpruned[0] / 1e6), y(100 * unpruned[1])
        drawing.ring(*at, 5, "axis")
        drawing.text(at[0] - 9, at[1] - 9, "unpruned", "faint", anchor="end")
    _front_legend(drawing, points)
    return drawing


def _ends(point: ParetoPoint) -> tuple[float, float]:
    return point.accuracy_interval.low, point.accuracy_interval.high


def _point(
    drawing: Drawing, point: ParetoPoint, scales: tuple[Scale, Scale], *, chosen: bool
) -> None:
    x, y = scales
    m, policy = point.measurement, point.made[0].policy
    at = x(m.size.bytes / 1e6), y(100 * point.accuracy)
    low, high = _ends(point)
    drawing.line([(at[0], y(100 * low)), (at[0], y(100 * high))], "outline")
    shape, colour = _MARKS.get(policy, _OTHER)
    tip = (
        f"{one_line(policy, 40)}: {m.size.bytes:,} bytes, {100 * point.accuracy:.2f} % "
        f"(95 % from {100 * low:.2f} to {100 * high:.2f})"
    )
    drawing.mark(*at, shape, colour, tip)
    if chosen:
        drawing.ring(*at, 10, "accent")


def _front_legend(drawing: Drawing, points: tuple[ParetoPoint, ...]) -> None:
    policies = {p.made[0].policy for p in points}
    x = 72.0
    for name in [*(n for n in _MARKS if n in policies), *sorted(policies - set(_MARKS))[:3]]:
        shape, colour = _MARKS.get(name, _OTHER)
        drawing.mark(x + 6, 44, shape, colour)
        shown = one_line(name, 16)
        drawing.text(x + 16, 48, shown, "faint")
        x += 34 + 7 * len(shown)
    drawing.line([(x, 44), (x + 20, 44)], "accent", 1.6)
    drawing.text(x + 26, 48, "front", "faint")
    drawing.ring(x + 82, 44, 7, "accent")
    drawing.text(x + 94, 48, "this report's plan", "faint")
    drawing.line([(x + 214, 36), (x + 214, 52)], "axis")
    drawing.text(x + 221, 48, "95 % interval", "faint")


# ---- the curve -----------------------------------------------------------------------------------


def curve(epochs: tuple[EpochRecord, ...], best_epoch: float) -> Drawing | None:
    """Draw validation accuracy and training loss by epoch.

    Args:
        epochs: Before training, then every epoch's end.
        best_epoch: The epoch whose weights were kept.

    Returns:
        None if fewer than two points have a validation accuracy.
    """
    epochs = tuple(e for e in epochs if all_finite(e.to_dict()))  # of a file, maybe
    known = [(e.epoch, e.val_accuracy) for e in epochs if e.val_accuracy is not None]
    if len(known) < 2:
        return None
    drawing = Drawing(760, 470, "Fine-tuning", "Validation accuracy and training loss by epoch.")
    drawing.text(8, 20, drawing.title, "ink title")
    x = scale([epoch for epoch, _ in known], 72, 740, margin=0.02)
    y = scale([100 * v for _, a in known for v in (a.low, a.high)], 220, 40)
    band = [(x(epoch), y(100 * a.high)) for epoch, a in known]
    band += [(x(epoch), y(100 * a.low)) for epoch, a in reversed(known)]
    drawing.area(band, "band")
    frame(drawing, x, y, ("epoch", "validation accuracy, %"))
    drawing.line([(x(epoch), y(100 * a.value)) for epoch, a in known], "accent", 1.8)
    for epoch, a in known:
        tip = f"epoch {epoch:g}: {100 * a.value:.2f} % ({100 * a.low:.2f} to {100 * a.high:.2f})"
        drawing.mark(x(epoch), y(100 * a.value), 0, "p0", tip)
        if epoch == best_epoch:
            drawing.ring(x(epoch), y(100 * a.value), 9, "accent")
    drawing.text(
        740, 30, "band: 95 % interval; ring: the epoch that was kept", "faint", anchor="end"
    )
    losses = [(e.epoch, e.train_loss) for e in epochs if e.train_loss is not None]
    if len(losses) > 1:
        z = scale([loss for _, loss in losses], 410, 300)
        frame(drawing, x, z, ("epoch", "training loss"), about=(7, 5))
        drawing.line([(x(epoch), z(loss)) for epoch, loss in losses], "accent", 1.8)
    else:
        drawing.height = 290
    return drawing
