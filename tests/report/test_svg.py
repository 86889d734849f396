"""Scales, ticks and colours of the report's figures, against values computed by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from psvit_core.report.figures import heat_step
from psvit_core.report.svg import HEAT_STEPS, Drawing, Scale, number, scale, style_sheet


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (93.1, 99.4, 5, [94, 96, 98]),
        (0.13, 0.31, 4, [0.15, 0.2, 0.25, 0.3]),
        (-1, 1, 4, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, about: int, expected: list[float]) -> None:
    assert Scale(low, high, 0, 1).ticks(about) == expected


def test_a_scale_maps_its_ends() -> None:
    ours = Scale(2, 4, 100, 300)
    assert (ours(2), ours(3), ours(4)) == (100, 200, 300)
    same = scale([5.0, 5.0], 0, 100)  # one value: still a span
    assert same.low < 5 < same.high
    assert scale([0.0], 0, 100).high > 0


def test_numbers_are_short() -> None:
    assert [number(v) for v in (1.0, 0.126, -0.001, 100)] == ["1", "0.13", "0", "100"]


def test_the_heat_scale_is_a_square_root_that_ends_at_ten() -> None:
    # sqrt(2.5 / 10) = 0.5 of the way
    assert heat_step(-1) == heat_step(0) == 0
    assert heat_step(2.5) == round(0.5 * (HEAT_STEPS - 1))
    assert heat_step(10) == heat_step(88) == HEAT_STEPS - 1


def test_text_is_escaped_in_a_drawing() -> None:
    drawing = Drawing(10, 10, "<b>", "&")
    drawing.text(1, 2, "</text><script>")
    drawing.box(0, 0, 1, 1, "h0", tip='"<')
    drawing.turned_text(1, 1, "<i>")
    for alone in (True, False):
        root = ET.fromstring(drawing.to_svg(alone=alone))
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert tags <= {"svg", "title", "desc", "style", "g", "rect", "text"}


def test_numbers_in_cells_can_be_read() -> None:
    """Every text colour has a contrast of at least 4.5 to its cell (WCAG 2, relative luminance)."""
    import re

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    css = style_sheet()
    for part in css.split("@media"):
        cells = dict(re.findall(r"\.h(\d+)\{fill:(#\w+)\}", part))
        texts = dict(re.findall(r"\.t(\d+)\{fill:(#\w+)\}", part))
        assert set(cells) == set(texts) == {str(i) for i in range(HEAT_STEPS)}
        for step, cell in cells.items():
            high, low = sorted((luminance(cell), luminance(texts[step])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5
