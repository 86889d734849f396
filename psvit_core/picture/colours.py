"""Colours of the picture, for a light and a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Heat from harmless to too much; the harmless end is the page's background.
HEAT_LIGHT = ("#ffffff", "#fef1df", "#fdd49e", "#fc8d59", "#d7301f", "#7f0000")
HEAT_DARK = ("#12171b", "#2c1542", "#63186c", "#b23459", "#f07c22", "#fcf3a1")
N_SHADES = 16


@dataclass(frozen=True)
class Theme:
    """The colours of one theme, by what they colour."""

    page: str
    block: str  # behind the groups of a block
    text: str
    faint: str  # secondary text
    line: str  # outlines, arrows and the hatch
    rail: str  # what passes through many blocks
    plain: str  # bars without values
    missing: str  # bars whose value is unknown
    heat: tuple[str, ...]

    def shades(self) -> list[str]:
        """Return the heat as ``N_SHADES`` colours."""
        return [mix_colours(self.heat, i / (N_SHADES - 1)) for i in range(N_SHADES)]


LIGHT = Theme(
    page="#ffffff",
    block="#f3f6f8",
    text="#1c252b",
    faint="#566269",
    line="#5b6870",
    rail="#8b9aa3",
    plain="#7fb2c4",
    missing="#dbe2e6",
    heat=HEAT_LIGHT,
)
DARK = Theme(
    page="#12171b",
    block="#1c242a",
    text="#e3e9ec",
    faint="#a3b0b7",
    line="#a3b0b7",
    rail="#6d7c85",
    plain="#2f7489",
    missing="#38454d",
    heat=HEAT_DARK,
)


def mix_colours(stops: Sequence[str], at: float) -> str:
    """Return the colour at a position, 0 to 1, of evenly spaced stops, as #rrggbb."""
    place = at * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    parts = [[int(text[k : k + 2], 16) for k in (1, 3, 5)] for text in stops[low : low + 2]]
    mixed = (a + (b - a) * (place - low) for a, b in zip(*parts, strict=True))
    return "#" + "".join(f"{round(value):02x}" for value in mixed)
