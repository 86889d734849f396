"""The picture of a network: what is drawn where, for all shipped models and for hostile names."""

from __future__ import annotations

import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

import pytest

from psvit_core.errors import InvalidPlanError, RecordError, UnknownNameError
from psvit_core.picture import (
    THEMES,
    GroupValues,
    bytes_values,
    coupled_layers,
    firing_values,
    network_svg,
    sensitivity_values,
)
from psvit_core.picture.layout import BAR_MAX, BAR_MIN, WIDTH, connections
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import size_at
from psvit_core.records import ModelSummary, axis_owners
from psvit_core.zoo.cards import list_models, shipped_summary
from tests.ui.example import rows

SVG = "{http://www.w3.org/2000/svg}"
SHIPPED = [name for name in list_models() if shipped_summary(name) is not None]
NASTY = (
    "<script>alert(1)</script>",
    '"/><image href="https://example.org/x.png"/>',
    "]]> &amp; \x00\x1b[31m\x0b",
    "\u202eevil\ud800\ufffe",
    "層" * 300,
    "line\none\ttab",
    "-->",
)


def summary(name: str = "sdt_v1_digits") -> ModelSummary:
    found = shipped_summary(name)
    assert found is not None
    return found


def drawn_groups(svg: str) -> dict[str, ET.Element]:
    root = ET.fromstring(svg)
    return {g.attrib["data-group"]: g for g in root.iter(f"{SVG}g")}


def widths(group: ET.Element) -> tuple[float, float, float]:
    """Return the widths of a group's remaining part, of its hatched part and of its outline."""
    boxes = [box for box in group.iter(f"{SVG}rect") if box.get("class") != "pn-hit"]
    hatched = sum(float(b.attrib["width"]) for b in boxes if "url(" in b.get("fill", ""))
    (outline,) = [float(b.attrib["width"]) for b in boxes if b.get("class") == "pn-bar"]
    return float(boxes[0].attrib["width"]), hatched, outline


def shade(group: ET.Element) -> str:
    boxes = [box for box in group.iter(f"{SVG}rect") if box.get("class") != "pn-hit"]
    return boxes[0].attrib["class"]


@pytest.mark.parametrize("name", SHIPPED)
def test_bars_are_as_long_as_groups_have_channels(name: str) -> None:
    model = summary(name)
    plan = plan_from_ratios(model, {g.group_id: 0.4 for g in model.groups[::2]}, criterion="l2")
    groups = drawn_groups(network_svg(model, plan, bytes_values(model), "A title"))
    assert list(groups) == [g.group_id for g in model.groups]
    widest = max(g.n_units for g in model.groups)
    for group in model.groups:
        kept, hatched, outline = widths(groups[group.group_id])
        assert outline == pytest.approx(max(BAR_MAX * group.n_units / widest, BAR_MIN), abs=0.06)
        removed = 1 - len(plan.kept.get(group.group_id, range(group.n_units))) / group.n_units
        assert hatched == pytest.approx(removed * outline, abs=0.1)
        assert kept + hatched == pytest.approx(outline, abs=0.15)
        assert (hatched > 0) == (removed > 0)


@pytest.mark.parametrize("name", SHIPPED)
def test_everything_lies_inside_the_picture(name: str) -> None:
    empty: dict[str, float] = {}
    for values in (None, empty):
        root = ET.fromstring(network_svg(summary(name), None, values))
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        assert width == WIDTH
        for box in root.iter(f"{SVG}rect"):
            assert 0 <= float(box.get("x", 0)) <= width - float(box.attrib["width"])
            assert 0 <= float(box.get("y", 0)) <= height - float(box.attrib["height"])
        rows_y = [float(t.attrib["y"]) for t in root.iter(f"{SVG}text")]
        assert 0 < min(rows_y) <= max(rows_y) < height


@pytest.mark.parametrize("name", SHIPPED)
def test_connections_are_those_of_the_weights(name: str) -> None:
    """The shape table has the groups of both axes of each weight, without writers and readers."""
    model = summary(name)
    expected = set()
    for tensor in model.shapes.tensors:
        if tensor.role != "weight" or len(tensor.groups) < 2:
            continue
        written, read = tensor.groups[:2]
        if written is not None and read is not None:
            pairs = {(a, b) for a in axis_owners(read)[0] for b in axis_owners(written)[0]}
            expected |= {(a, b) for a, b in pairs if a != b}
    assert expected
    assert set(connections(model)) == expected


def test_arrows_of_a_known_network() -> None:
    found = set(connections(summary()))
    assert {("stem0", "stem1"), ("stem1", "stem2"), ("stem2", "stream")} <= found
    assert {("stream", "block.5.mlp.hidden"), ("block.5.mlp.hidden", "stream")} <= found
    assert ("stem0", "stem2") not in found


def test_tooltips_name_layers_and_shapes() -> None:
    plan = plan_from_ratios(summary(), {"block.0.mlp.hidden": 0.5}, criterion="l2")
    svg = network_svg(summary(), plan, {"block.0.mlp.hidden": 2.5})
    text = drawn_groups(svg)["block.0.mlp.hidden"].findtext(f"{SVG}title")
    assert text is not None
    assert text.splitlines() == [
        "Block 0 · MLP hidden",
        "256 channels, 128 removed (50.0%)",
        "Value: 2.5",
        "Written by:",
        "  block.0.mlp.fc1_conv (256 × 64 × 1 × 1)",
        "Read by:",
        "  block.0.mlp.fc2_conv (64 × 256 × 1 × 1)",
    ]


def test_a_picture_is_accessible_and_needs_nothing_else() -> None:
    svg = network_svg(summary(), title="Own title")
    root = ET.fromstring(svg)
    assert root.attrib["role"] == "img"
    named = root.attrib["aria-labelledby"].split()
    found = {e.attrib["id"]: e.text for e in root if e.tag in (f"{SVG}title", f"{SVG}desc")}
    assert set(named) == set(found)
    assert "Own title" in found.values()
    assert any("16 channel groups" in (text or "") for text in found.values())
    assert re.findall(r"https?://[^\"' ]+", svg) == ["http://www.w3.org/2000/svg"]
    assert "@import" not in svg


def test_themes() -> None:
    texts = {theme: network_svg(summary(), theme=theme) for theme in THEMES}
    assert len(set(texts.values())) == len(THEMES)
    assert [theme for theme, svg in texts.items() if "prefers-color-scheme" in svg] == ["auto"]
    with pytest.raises(UnknownNameError, match="sepia"):
        network_svg(summary(), theme="sepia")


def test_ids_differ_between_pictures() -> None:
    plan = plan_from_ratios(summary(), {"stem0": 0.5}, criterion="l2")
    ids = [re.findall(r' id="([^"]+)"', network_svg(summary(), p)) for p in (None, plan)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])


def test_names_of_strangers_stay_text() -> None:
    model = summary()
    names = {g.group_id: NASTY[i % len(NASTY)] + str(i) for i, g in enumerate(model.groups)}
    groups = tuple(
        dataclasses.replace(
            g,
            group_id=names[g.group_id],
            title=names[g.group_id],
            block=names[g.group_id],
            writers=((names[g.group_id], 0),),
        )
        for g in model.groups
    )
    shapes = dataclasses.replace(model.shapes, tensors=())
    hostile = dataclasses.replace(model, groups=groups, shapes=shapes, model=NASTY[0])
    values = GroupValues(by_group={g.group_id: 1.0 for g in groups}, name=NASTY[1], unit=NASTY[0])
    svg = network_svg(hostile, None, values, NASTY[2])
    root = ET.fromstring(svg)
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {
        *("svg", "title", "desc", "style", "defs", "pattern", "rect", "path", "text", "g"),
    }
    assert len([g for g in root.iter(f"{SVG}g")]) == len(groups)
    assert "\x00" not in svg
    assert "\u202e" not in svg
    svg.encode("utf-8")
    texts = [t.text or "" for t in root.iter(f"{SVG}text")]
    assert any("<script>" in text for text in texts)
    assert max(map(len, texts)) < 60


def test_values_colour_and_unknown_ones_are_marked() -> None:
    model = summary()
    values: Mapping[str, float] = {
        "stem0": 0.0, "stem1": 5.0, "stem2": 10.0, "stream": math.nan, "block.0.attn.qkv": -3.0,
    }  # fmt: skip
    groups = drawn_groups(network_svg(model, None, values))
    assert shade(groups["stem0"]) == shade(groups["block.0.attn.qkv"]) == "pn-h0"
    assert shade(groups["stem1"]) == "pn-h8"  # half of 15 steps, rounded to even
    assert shade(groups["stem2"]) == "pn-h15"
    assert shade(groups["stream"]) == shade(groups["block.0.mlp.hidden"]) == "pn-missing"
    clipped = GroupValues(by_group={"stem0": 9.0, "stem1": 2.5}, end=2.5 * 4, root=True)
    assert clipped.position(2.5) == pytest.approx(0.5)
    assert GroupValues(by_group={"stem0": 9.0}, end=3.0).position(9.0) == 1.0
    assert shade(drawn_groups(network_svg(model))["stem0"]) == "pn-plain"


@pytest.mark.parametrize("name", SHIPPED)
def test_bytes_are_what_a_model_without_the_group_lacks(name: str) -> None:
    model = summary(name)
    whole = size_at(model.shapes, {}).bytes
    for group_id, value in bytes_values(model).by_group.items():
        assert value == pytest.approx(whole - size_at(model.shapes, {group_id: 0}).bytes)


def test_sensitivities_are_those_of_one_ratio() -> None:
    model = summary()
    cells = rows(model, (0.1, 0.6, 0.9))
    values = sensitivity_values(cells)
    assert values.by_group["stream"] == pytest.approx(12.0)  # 20 pp times 0.6
    assert "60 %" in values.name
    assert sensitivity_values(cells, 0.1, "kl").by_group["stream"] == pytest.approx(0.01)
    assert "stem0" not in sensitivity_values(cells, 0.1).by_group  # 0.1 of 8 units is none
    with pytest.raises(RecordError, match=r"0\.3.*0\.1, 0\.6, 0\.9"):
        sensitivity_values(cells, 0.3)
    with pytest.raises(RecordError, match="none"):
        sensitivity_values(())


def test_firing_rates_are_those_beside_the_layers() -> None:
    model = summary()
    group = model.by_id["block.0.mlp.hidden"]
    parents = {layer.rpartition(".")[0] for side in coupled_layers(group) for layer in side}
    assert parents == {"block.0.mlp"}
    values = firing_values(model, {"block.0.mlp.a": 0.1, "block.0.mlp.b": 0.3, "block.9.x": 1.0})
    assert dict(values.by_group) == {"block.0.mlp.hidden": pytest.approx(0.2)}


def test_a_plan_of_other_weights_is_refused() -> None:
    plan = plan_from_ratios(summary("e_spikeformer_digits"), {}, criterion="l2")
    with pytest.raises(InvalidPlanError, match="weights"):
        network_svg(summary(), plan)
