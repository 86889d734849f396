"""The looks that all figures share: two themes, the heat scale, the layout; no streamlit.

The harmless end of the heat scale is the page's background, so that what costs nothing looks like
nothing. Its range is fixed, so that two figures can be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

REFERENCE_DROP = 3.0  # percentage points; the line that pages mention
TOO_MUCH = {"drop": 10.0, "kl": 1.0}  # end of the heat scale: percentage points, nats
FONT = '"Source Sans", sans-serif'
#: Ticks that only keep labels away from the axis.
GAP_TICKS = {"ticks": "outside", "ticklen": 6, "tickcolor": "rgba(0,0,0,0)"}


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
    policies: dict[str, str]  # beside their symbols; also told apart with colour-blind eyes


LIGHT = Palette(
    text="#1c252b", faint="#5b6870", grid="#e4e9ec", mark="rgba(28,37,43,0.55)",
    accent="#0a6683", band="rgba(11,107,136,0.16)",
    heat=("#ffffff", "#fef1df", "#fdd49e", "#fc8d59", "#d7301f", "#7f0000"),
    policies={"optimal": "#0a6683", "psvit": "#c05600", "prime": "#8a4f9e", "uniform": "#76828a"},
)  # fmt: skip
DARK = Palette(
    text="#e3e9ec", faint="#97a5ad", grid="#28333a", mark="rgba(227,233,236,0.65)",
    accent="#58bfda", band="rgba(88,191,218,0.20)",
    heat=("#12171b", "#2c1542", "#63186c", "#b23459", "#f07c22", "#fcf3a1"),
    policies={"optimal": "#58bfda", "psvit": "#f29d4b", "prime": "#cfa0e0", "uniform": "#8b9aa3"},
)  # fmt: skip


def palette(dark: bool) -> Palette:
    """The colours for a theme."""
    return DARK if dark else LIGHT


def heat_position(value: float, metric: str = "drop") -> float:
    """Where a value stands on the heat scale, 0 to 1: square root, so that small costs show."""
    return math.sqrt(min(max(value, 0.0) / TOO_MUCH[metric], 1.0))


def heat_scale(colours: Palette) -> list[list[object]]:
    """The heat scale as plotly wants it."""
    steps = len(colours.heat) - 1
    return [[i / steps, colour] for i, colour in enumerate(colours.heat)]


def layout(colours: Palette) -> dict[str, Any]:
    """What every figure's layout has."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": colours.text},
        "showlegend": False,
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
    }
