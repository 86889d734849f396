"""Plain SVG: a drawing with text, lines and marks, scales and ticks. Needs no browser.

Colours are CSS classes with a light and a dark value, so that a drawing fits the page it is in, and
prints in the light ones. All text is escaped, since names come from files of others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from psvit_core.picture.colours import HEAT_DARK, HEAT_LIGHT, mix_colours

HEAT_STEPS = 24  # colours of the scale
#: Class -> (property, light value, dark value).
_COLOURS = {
    "ink": ("fill", "#1c252b", "#e3e9ec"),
    "faint": ("fill", "#5b6870", "#97a5ad"),
    "grid": ("stroke", "#e4e9ec", "#28333a"),
    "axis": ("stroke", "#8a979e", "#66737b"),
    "accent": ("stroke", "#0a6683", "#58bfda"),
    "band": ("fill", "#cfe3ea", "#1d4654"),
    "paper": ("fill", "#ffffff", "#12171b"),
    "outline": ("stroke", "#c3ccd1", "#3a464e"),
    "p0": ("fill", "#0a6683", "#58bfda"),
    "p1": ("fill", "#c05600", "#f29d4b"),
    "p2": ("fill", "#8a4f9e", "#cfa0e0"),
    "p3": ("fill", "#76828a", "#8b9aa3"),
    "p4": ("fill", "#1c252b", "#e3e9ec"),
}
#: Marks, as paths around (0, 0): circle, triangle, diamond, square, cross.
SHAPES = (
    "M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0-9.2 0z",
    "M0-5.6l5.2 9.4h-10.4z",
    "M0-5.6l5.6 5.6-5.6 5.6-5.6-5.6z",
    "M-4-4h8v8h-8z",
    "M-4.8-1h3.8v-3.8h2v3.8h3.8v2h-3.8v3.8h-2v-3.8h-3.8z",
)
_FONT = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif"


def number(value: float) -> str:
    """Return a coordinate with at most two decimals."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def style_sheet() -> str:
    """Return the CSS of all drawings: light, and dark on screens that ask for it."""
    light = [f".psv .{c}{{{prop}:{one}}}" for c, (prop, one, _) in _COLOURS.items()]
    dark = [f".psv .{c}{{{prop}:{two}}}" for c, (prop, _, two) in _COLOURS.items()]
    for colours, rules in ((HEAT_LIGHT, light), (HEAT_DARK, dark)):
        for step in range(HEAT_STEPS):
            colour = mix_colours(colours, step / (HEAT_STEPS - 1))
            rules.append(f".psv .h{step}{{fill:{colour}}}.psv .t{step}{{fill:{_on(colour)}}}")
    base = (
        f".psv text{{{_FONT};font-size:12px}}.psv .small{{font-size:10.5px}}"
        ".psv .title{font-weight:600;font-size:14px}.psv .none{fill:none}"
        ".psv .unsure{font-style:italic}"
    )
    return f"{base}{''.join(light)}@media screen and (prefers-color-scheme:dark){{{''.join(dark)}}}"


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _on(colour: str) -> str:
    """Return black or white, whichever is read better on a colour (relative luminance, WCAG)."""
    parts = [c / 255 for c in _rgb(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float  # pixel of ``low``
    end: float  # pixel of ``high``

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        span = self.high - self.low
        return self.start + (value - self.low) / span * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Return round values inside the scale, about so many."""
        step = _round_step((self.high - self.low) / max(about, 1))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(first, last + 1)]


def _round_step(rough: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least as large as a positive number."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def scale(values: Sequence[float], start: float, end: float, *, margin: float = 0.06) -> Scale:
    """Return a scale that shows all values, with a margin.

    Args:
        values: Finite numbers, at least one.
        start: Pixel of the low end.
        end: Pixel of the high end.
        margin: Fraction of the span that is added at both ends.
    """
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    return Scale(low - margin * span, high + margin * span, start, end)


@dataclass
class Drawing:
    """An SVG drawing.

    Args:
        width: Pixels.
        height: Pixels.
        title: Its name, also for screen readers.
        description: What it shows, for screen readers.
    """

    width: float
    height: float
    title: str
    description: str = ""
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, text: object, classes: str = "ink", *, anchor: str = "start"
    ) -> None:
        """Write one line; ``y`` is its base line."""
        place = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
        self.parts.append(f'<text {place} class="{classes}">{escape(str(text))}</text>')

    def turned_text(self, x: float, y: float, text: str, classes: str = "faint") -> None:
        """Write one line upwards, centred at a point."""
        place = f'transform="translate({number(x)} {number(y)}) rotate(-90)"'
        self.parts.append(
            f'<text {place} text-anchor="middle" class="{classes}">{escape(text)}</text>'
        )

    def line(self, points: Sequence[tuple[float, float]], classes: str, width: float = 1) -> None:
        """Draw straight lines through points."""
        path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" class="none {classes}" stroke-width="{number(width)}"/>'
        )

    def area(self, points: Sequence[tuple[float, float]], classes: str) -> None:
        """Fill the area inside points."""
        path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.parts.append(f'<polygon points="{path}" class="{classes}"/>')

    def box(self, x: float, y: float, w: float, h: float, classes: str, tip: str = "") -> None:
        """Draw a rectangle; ``tip`` is shown under the pointer."""
        place = f'x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}"'
        inside = f"<title>{escape(tip)}</title>" if tip else ""
        self.parts.append(f'<rect {place} class="{classes}">{inside}</rect>')

    def mark(self, x: float, y: float, shape: int, classes: str, tip: str = "") -> None:
        """Draw one of ``SHAPES`` around a point; ``tip`` is shown under the pointer."""
        inside = f"<title>{escape(tip)}</title>" if tip else ""
        place = f'transform="translate({number(x)} {number(y)})"'
        self.parts.append(f'<path d="{SHAPES[shape]}" {place} class="{classes}">{inside}</path>')

    def ring(self, x: float, y: float, radius: float, classes: str) -> None:
        """Draw an empty circle."""
        self.parts.append(
            f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" '
            f'class="none {classes}" stroke-width="2"/>'
        )

    def to_svg(self, *, alone: bool = False) -> str:
        """Return the drawing as SVG.

        Args:
            alone: For a file of its own: with namespace, background and style sheet. Otherwise the
                page has the style sheet.
        """
        size = f'viewBox="0 0 {number(self.width)} {number(self.height)}"'
        size += f' width="{number(self.width)}" height="{number(self.height)}"'
        names = f"<title>{escape(self.title)}</title>"
        names += f"<desc>{escape(self.description)}</desc>" if self.description else ""
        body = "".join(self.parts)
        if not alone:
            label = escape(self.title)
            return f'<svg class="psv" role="img" aria-label="{label}" {size}>{names}{body}</svg>'
        space = 'xmlns="http://www.w3.org/2000/svg"'
        paper = '<rect width="100%" height="100%" class="paper"/>'
        style = f"<style>{style_sheet()}</style>"
        return f'<svg {space} class="psv" {size}>{names}{style}<g>{paper}{body}</g></svg>\n'


def frame(
    drawing: Drawing,
    x: Scale,
    y: Scale,
    labels: tuple[str, str],
    *,
    about: tuple[int, int] = (7, 5),
) -> None:
    """Draw grid, ticks, axes and their titles.

    Args:
        drawing: Where to draw.
        x: Scale of the horizontal axis.
        y: Scale of the vertical axis, whose low end is at the bottom.
        labels: Titles of both axes, with their units.
        about: Number of ticks on both axes.
    """
    for value in y.ticks(about[1]):
        drawing.line([(x.start, y(value)), (x.end, y(value))], "grid")
        drawing.text(x.start - 8, y(value) + 4, f"{value:g}", "faint", anchor="end")
    for value in x.ticks(about[0]):
        drawing.line([(x(value), y.start), (x(value), y.start + 5)], "axis")
        drawing.text(x(value), y.start + 19, f"{value:g}", "faint", anchor="middle")
    drawing.line([(x.start, y.end), (x.start, y.start), (x.end, y.start)], "axis")
    drawing.text((x.start + x.end) / 2, y.start + 38, labels[0], "faint", anchor="middle")
    drawing.turned_text(x.start - 50, (y.start + y.end) / 2, labels[1])
