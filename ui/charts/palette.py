"""Colours, the heat scale and the layout that all figures share.

The harmless end of the heat scale is the page's background, so that a group that costs nothing
does not stand out. The scale's range is fixed, so that figures can be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from psvit_core.picture.colours import HEAT_DARK, HEAT_LIGHT
from psvit_core.sensitivity.spec import TOO_MUCH

#: End of the heat scale. Drop: percentage points, above which a sweep stops measuring a cell more
#: exactly. KL: nats.
HEAT_END = {"drop": TOO_MUCH, "kl": 1.0}
FONT = '"Source Sans", sans-serif'
#: Invisible ticks that keep labels away from the axis.
SPACER_TICKS = {"ticks": "outside", "ticklen": 6, "tickcolor": "rgba(0,0,0,0)"}


@dataclass(frozen=True)
class Palette:
    """The colours of one theme."""

    text: str
    faint: str  # secondary text
    grid: str
    mark: str  # marks on cells
    accent: str
    band: str  # interval around a line
    heat: tuple[str, ...]  # harmless to too much
    policies: dict[str, str]  # distinguishable with colour-blind eyes; markers differ as well


LIGHT = Palette(
    text="#1c252b",
    faint="#5b6870",
    grid="#e4e9ec",
    mark="rgba(28,37,43,0.55)",
    accent="#0a6683",
    band="rgba(11,107,136,0.16)",
    heat=HEAT_LIGHT,
    policies={"optimal": "#0a6683", "psvit": "#c05600", "prime": "#8a4f9e", "uniform": "#76828a"},
)
DARK = Palette(
    text="#e3e9ec",
    faint="#97a5ad",
    grid="#28333a",
    mark="rgba(227,233,236,0.65)",
    accent="#58bfda",
    band="rgba(88,191,218,0.20)",
    heat=HEAT_DARK,
    policies={"optimal": "#58bfda", "psvit": "#f29d4b", "prime": "#cfa0e0", "uniform": "#8b9aa3"},
)


def palette(dark: bool) -> Palette:
    """Return the colours of a theme."""
    return DARK if dark else LIGHT


def heat_position(value: float, metric: str = "drop") -> float:
    """Return a value's place on the heat scale, in [0, 1].

    The scale is a square root, so that small costs are visible.
    """
    return math.sqrt(min(max(value, 0.0) / HEAT_END[metric], 1.0))


def heat_scale(colours: Palette) -> list[list[object]]:
    """Return the heat scale in plotly's form."""
    return colour_scale(colours.heat)


def colour_scale(stops: tuple[str, ...]) -> list[list[object]]:
    """Return evenly spaced colours as a plotly colour scale."""
    return [[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)]


def layout(colours: Palette) -> dict[str, Any]:
    """Return the layout settings that every figure shares."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": colours.text},
        "showlegend": False,
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
    }


def value_axis(colours: Palette) -> dict[str, Any]:
    """Return the settings of an axis with a grid, for curves."""
    return {
        "gridcolor": colours.grid,
        "fixedrange": True,
        "automargin": True,
        "title": {"font": {"size": 12, "color": colours.faint}},
    }
