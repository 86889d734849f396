"""Draws a network as SVG text: no torch, no browser.

Names come from checkpoints that anybody may have written, so all text is escaped. Colours are rules
of a style sheet inside the picture, for a light page, a dark one, or what the reader prefers.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from psvit_core.errors import UnknownNameError
from psvit_core.picture.colours import DARK, LIGHT, N_SHADES, Theme
from psvit_core.picture.layout import BAR, BAR_MAX, BAR_MIN, EDGE, ROW, WIDTH, Layout, place
from psvit_core.picture.values import GroupValues
from psvit_core.records import ChannelGroup, ModelSummary, PrunePlan

THEMES = ("auto", "light", "dark")
_LETTER = 6.9  # average width of a letter of 13 pixel type
_LISTED = 6  # tensors of each side that a tooltip names
_SHADE = 8  # width of a colour of the legend
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def network_svg(
    summary: ModelSummary,
    plan: PrunePlan | None = None,
    values: GroupValues | Mapping[str, float] | None = None,
    title: str = "",
    *,
    theme: str = "auto",
) -> str:
    """Draw a network's channel groups, and what they are coupled with, as SVG.

    Each group is a bar, as long as it has channels; what a plan removes is hatched. Residual
    streams and other groups with far connections have a rail on the left; arrows lead from what is
    read to what is computed from it. Each group has a tooltip with its layers and their shapes.

    Args:
        summary: The model.
        plan: The plan whose removed part is hatched.
        values: What colours the bars: ``GroupValues``, or a number for each group id.
        title: Heading; none if empty.
        theme: ``light``, ``dark``, or ``auto``: the one that the reader prefers.

    Returns:
        An SVG document, which can also stand inside HTML.

    Raises:
        InvalidPlanError: If the plan is for another model.
        UnknownNameError: If there is no such theme.
    """
    if theme not in THEMES:
        raise UnknownNameError("theme", theme, THEMES)
    if plan is not None:
        plan.check(summary.groups, summary.weights_hash)
    if values is not None and not isinstance(values, GroupValues):
        values = GroupValues(by_group=values)
    return "\n".join(_Drawing(summary, plan, values, title, theme).lines()) + "\n"


class _Drawing:
    """One picture.

    Args:
        summary: The model.
        plan: The plan, or None.
        values: What colours the bars, or None.
        title: Heading; none if empty.
        theme: One of ``THEMES``.
    """

    def __init__(
        self,
        summary: ModelSummary,
        plan: PrunePlan | None,
        values: GroupValues | None,
        title: str,
        theme: str,
    ) -> None:
        self.summary = summary
        self.kept = {name: len(kept) for name, kept in plan.kept.items()} if plan else {}
        self.values = values
        self.title = title
        self.theme = theme
        self.shapes = {tensor.name: tensor.sizes for tensor in summary.shapes.tensors}
        self.numbers = {group.group_id: i for i, group in enumerate(summary.groups)}
        self.widest = max(group.n_units for group in summary.groups)
        what = repr((summary.weights_hash, summary.model, sorted(self.kept.items()), values, title))
        self.id = hashlib.sha256(what.encode("utf-8", "replace")).hexdigest()[:8]
        self.top = 12.0 + (22 if title else 0) + self._legend_height()
        self.layout: Layout = place(summary, self.top + 18)

    def lines(self) -> Iterator[str]:
        """Yield the document's lines."""
        height = self.layout.height + 22
        own, name = f"psvit-net psvit-net-{self.theme}", f"pn-{self.id}"
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="{own}" role="img" '
            f'aria-labelledby="{name}-title {name}-desc" viewBox="0 0 {WIDTH} {_n(height)}" '
            f'width="{WIDTH}" height="{_n(height)}" style="max-width:100%;height:auto">'
        )
        yield f'<title id="{name}-title">{_escape(self.title or self._name())}</title>'
        yield f'<desc id="{name}-desc">{_escape(self._description())}</desc>'
        yield f"<style>{_style(self.theme)}</style>"
        yield (
            f'<defs><pattern id="{name}-cut" width="5" height="5" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><rect class="pn-page" width="5" height="5"/>'
            '<path class="pn-hatch" d="M1 0V5"/></pattern></defs>'
        )
        yield f'<rect class="pn-page" width="{WIDTH}" height="{_n(height)}" rx="6"/>'
        if self.title:
            short = _fit(self.title, WIDTH - 2 * EDGE, 8.2)
            yield f'<text class="pn-text pn-head" x="{EDGE}" y="22">{_escape(short)}</text>'
        yield from self._legend(12.0 + (22 if self.title else 0))
        yield self._note(self.top + 8, self._input())
        for block in self.layout.blocks:
            yield (
                f'<rect class="pn-block" x="4" y="{_n(block.y)}" width="{WIDTH - 8}" '
                f'height="{_n(block.height)}" rx="5"/>'
            )
            label = _escape(_fit(block.name, WIDTH - self.layout.bars_left - EDGE))
            yield (
                f'<text class="pn-faint" x="{_n(self.layout.bars_left)}" '
                f'y="{_n(block.y + 15)}">{label}</text>'
            )
        yield from self._rails()
        for a, b in self.layout.edges:
            yield self._edge(a, b)
        for group in self.summary.groups:
            yield from self._group(group)
        yield self._note(self.layout.height + 8, f"{self.summary.num_classes} classes")
        yield "</svg>"

    # ---- text --------------------------------------------------------------------------------

    def _name(self) -> str:
        return f"Network {Path(self.summary.model).name or self.summary.model}"

    def _input(self) -> str:
        shape = " × ".join(map(str, self.summary.input_shape))
        steps = f"{self.summary.T} time step{'s' if self.summary.T != 1 else ''}"
        return f"Input {shape}, {steps}"

    def _description(self) -> str:
        groups, blocks = self.summary.groups, len(self.layout.blocks)
        total = sum(group.n_units for group in groups)
        removed = sum(g.n_units - self._kept(g) for g in groups)
        coloured = f" Colour shows: {self.values.name}." if self.values else ""
        return (
            f"{len(groups)} channel groups in {blocks} blocks from input to output. {removed:,} of "
            f"{total:,} channels are removed.{coloured} Bars are as long as groups have channels; "
            "arrows lead from what layers read to what they compute."
        )

    def _kept(self, group: ChannelGroup) -> int:
        return self.kept.get(group.group_id, group.n_units)

    def _tooltip(self, group: ChannelGroup) -> str:
        kept = self._kept(group)
        heads = f" in {group.heads} heads" if group.heads else ""
        lines = [_one_line(group.label), f"{group.n_units:,} channels{heads}"]
        if kept < group.n_units:
            removed = group.n_units - kept
            lines[1] += f", {removed:,} removed ({removed / group.n_units:.1%})"
        if self.values is not None:
            value = self.values.of(group.group_id)
            shown = "not known" if value is None else self.values.text(value)
            lines.append(f"{self.values.name}: {shown}")
        lines += self._tensors("Written by", group.writers)
        lines += self._tensors("Read by", group.readers)
        if not group.readers:
            lines.append("Read by no layer: its channels meet in an attention product")
        return "\n".join(lines)

    def _tensors(self, word: str, sides: tuple[tuple[str, int], ...]) -> Iterator[str]:
        """Yield the weights of one side with their shapes, at most ``_LISTED``."""
        names = dict.fromkeys(tensor for tensor, _ in sides)
        weights = [name for name in names if len(self.shapes.get(name, ())) > 1] or [*names]
        if not weights:
            return
        yield f"{word}:"
        for name in weights[:_LISTED]:
            sizes = " × ".join(map(str, self.shapes.get(name, ())))
            layer = _one_line(name.removesuffix(".weight"))
            yield f"  {layer} ({sizes})" if sizes else f"  {layer}"
        if len(weights) > _LISTED:
            yield f"  and {len(weights) - _LISTED} more"

    # ---- parts -------------------------------------------------------------------------------

    def _note(self, y: float, text: str) -> str:
        x = _n(self.layout.bars_left)
        return f'<text class="pn-faint" x="{x}" y="{_n(y)}">{_escape(text)}</text>'

    def _legend_height(self) -> float:
        return 48.0 if self.values else (22.0 if self.kept else 0.0)

    def _legend(self, top: float) -> Iterator[str]:
        at = float(EDGE)
        if self.values is not None:
            name = _escape(_fit(self.values.name, WIDTH - 2 * EDGE))
            yield f'<text class="pn-text" x="{EDGE}" y="{_n(top + 8)}">{name}</text>'
            for i in range(N_SHADES):
                yield (
                    f'<rect class="pn-h{i}" x="{EDGE + _SHADE * i}" y="{_n(top + 15)}" '
                    f'width="{_SHADE}" height="10"/>'
                )
            over = any(
                (self.values.of(name) or 0) > self.values.last for name in self.values.by_group
            )
            right = EDGE + _SHADE * N_SHADES
            yield (
                f'<rect class="pn-bar" x="{EDGE}" y="{_n(top + 15)}" '
                f'width="{_SHADE * N_SHADES}" height="10"/>'
            )
            last = ("≥ " if over else "") + self.values.text(self.values.last)
            yield f'<text class="pn-small" x="{EDGE}" y="{_n(top + 37)}">0</text>'
            yield (
                f'<text class="pn-small" text-anchor="end" x="{right}" '
                f'y="{_n(top + 37)}">{_escape(last)}</text>'
            )
            at, top = right + 24.0, top + 15
        entries = [(f' fill="url(#pn-{self.id}-cut)"', "removed")] if self.kept else []
        if self.values is not None and any(
            self.values.of(group.group_id) is None for group in self.summary.groups
        ):
            entries.append((' class="pn-missing"', "not known"))
        for paint, text in entries:
            box = f'x="{_n(at)}" y="{_n(top)}" width="22" height="10"'
            yield (
                f'<rect{paint} {box}/><rect class="pn-bar" {box}/>'
                f'<text class="pn-small" x="{_n(at + 28)}" y="{_n(top + 9)}">{text}</text>'
            )
            at += 100

    def _rails(self) -> Iterator[str]:
        for rail in self.layout.rails.values():
            own = _n(self.layout.y[rail.group_id])
            yield (
                f'<path class="pn-rail" data-of="{self.numbers[rail.group_id]}" '
                f'd="M{_n(rail.x)} {_n(rail.top)}V{_n(rail.bottom)}'
                f'M{_n(rail.x)} {own}H{_n(self.layout.bars_left)}"/>'
            )

    def _edge(self, a: str, b: str) -> str:
        """Draw the arrow from a group to one that is computed from it."""
        rails, y, bars = self.layout.rails, self.layout.y, self.layout.bars_left
        if a in rails:
            path = _arrow(rails[a].x, bars, y[b] - 4)
        elif b in rails:
            path = _arrow(bars, rails[b].x, y[a] + 4)
        else:
            x, start, end = bars - self.layout.elbows[b], y[a] + 4, y[b] - 4
            path = f"M{_n(bars)} {_n(start)}H{_n(x)}V{_n(end)}H{_n(bars)}" + _head(bars, end, 1)
        return f'<path class="pn-edge" data-of="{self.numbers[a]} {self.numbers[b]}" d="{path}"/>'

    def _group(self, group: ChannelGroup) -> Iterator[str]:
        y, left = self.layout.y[group.group_id], self.layout.bars_left
        kept = self._kept(group)
        width = max(BAR_MAX * group.n_units / self.widest, BAR_MIN)
        solid = width * kept / group.n_units
        top = _n(y - BAR / 2)
        right = left + BAR_MAX + 10
        counts = f"{kept:,} of {group.n_units:,}" if kept < group.n_units else f"{kept:,}"
        space = WIDTH - EDGE - right - _width(counts) - 6
        yield (
            f'<g class="pn-group" data-group="{_escape(group.group_id)}" '
            f'data-n="{self.numbers[group.group_id]}">'
            f"<title>{_escape(self._tooltip(group))}</title>"
        )
        yield (
            f'<rect class="pn-hit" x="{_n(left - 4)}" y="{_n(y - ROW / 2 + 1)}" '
            f'width="{_n(WIDTH - left - 4)}" height="{ROW - 2}" rx="3"/>'
        )
        yield (
            f'<rect class="{self._shade(group)}" x="{_n(left)}" y="{top}" width="{_n(solid)}" '
            f'height="{BAR}"/>'
        )
        if kept < group.n_units:
            yield (
                f'<rect fill="url(#pn-{self.id}-cut)" x="{_n(left + solid)}" y="{top}" '
                f'width="{_n(width - solid)}" height="{BAR}"/>'
            )
        yield (
            f'<rect class="pn-bar" x="{_n(left)}" y="{top}" width="{_n(width)}" height="{BAR}"/>'
            f'<text class="pn-text" x="{_n(right)}" y="{_n(y + 4)}">'
            f"{_escape(_fit(group.title, space))}</text>"
            f'<text class="pn-faint" text-anchor="end" x="{WIDTH - EDGE - 2}" y="{_n(y + 4)}">'
            f"{counts}</text></g>"
        )

    def _shade(self, group: ChannelGroup) -> str:
        if self.values is None:
            return "pn-plain"
        value = self.values.of(group.group_id)
        if value is None:
            return "pn-missing"
        return f"pn-h{round((N_SHADES - 1) * self.values.position(value))}"


# ---- pieces ----------------------------------------------------------------------------------


def _n(value: float) -> str:
    """Return a coordinate as short as it can be."""
    return f"{value:.1f}".removesuffix(".0")


def _arrow(start: float, end: float, y: float) -> str:
    return f"M{_n(start)} {_n(y)}H{_n(end)}" + _head(end, y, 1 if end > start else -1)


def _head(x: float, y: float, direction: int) -> str:
    """Return the head of an arrow that points to the right (1) or left (-1)."""
    back = _n(x - 4 * direction)
    return f"M{back} {_n(y - 2.5)}L{_n(x)} {_n(y)}L{back} {_n(y + 2.5)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _width(text: str, letter: float = _LETTER) -> float:
    """Return about how wide a text is, in pixels."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return letter * (len(text) + wide)


def _fit(text: str, space: float, letter: float = _LETTER) -> str:
    """Shorten a text to a width in pixels."""
    text = _one_line(text)
    if _width(text, letter) <= space:
        return text
    while text and _width(text + "…", letter) > space:
        text = text[: min(len(text) - 1, math.ceil(space / letter))]
    return text + "…"


def _escape(text: str) -> str:
    """Return a text for XML, which has no control characters and no halves of pairs."""
    safe = "".join(c if _is_safe(c) else "\N{REPLACEMENT CHARACTER}" for c in text)
    return escape(safe)


def _is_safe(letter: str) -> bool:
    return letter == "\n" or (letter.isprintable() and letter not in "\ufffe\uffff")


def _style(theme: str) -> str:
    """Return the style sheet of a theme."""
    scope = f".psvit-net-{theme}"
    first = DARK if theme == "dark" else LIGHT
    fixed = (
        f"{scope} text{{font:13px {_FONT}}}{scope} .pn-head{{font-size:14px;font-weight:600}}"
        f"{scope} .pn-small{{font-size:11px}}{scope} .pn-edge{{fill:none;stroke-width:1}}"
        f"{scope} .pn-rail{{fill:none;stroke-width:4;stroke-linecap:round}}"
        f"{scope} .pn-bar{{fill:none;stroke-width:1}}{scope} .pn-hit{{fill:transparent}}"
        f"{scope} .pn-hatch{{stroke-width:1.4}}"
    )
    rules = fixed + _colours(scope, first)
    if theme == "auto":
        rules += f"@media (prefers-color-scheme:dark){{{_colours(scope, DARK)}}}"
    return rules


def _colours(scope: str, theme: Theme) -> str:
    fills = {
        "pn-page": theme.page,
        "pn-block": theme.block,
        "pn-text": theme.text,
        "pn-faint": theme.faint,
        "pn-small": theme.faint,
        "pn-plain": theme.plain,
        "pn-missing": theme.missing,
        **{f"pn-h{i}": colour for i, colour in enumerate(theme.shades())},
    }
    strokes = {
        "pn-hatch": theme.line,
        "pn-bar": theme.line,
        "pn-edge": theme.line,
        "pn-rail": theme.rail,
    }
    return "".join(
        [f"{scope} .{name}{{fill:{colour}}}" for name, colour in fills.items()]
        + [f"{scope} .{name}{{stroke:{colour}}}" for name, colour in strokes.items()]
    )
