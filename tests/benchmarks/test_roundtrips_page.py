"""Round trips of exports: the stored result covers every family, and the page is that of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks._report import RESULTS, stored
from benchmarks._roundtrips_networks import KINDS, vectors
from benchmarks._roundtrips_page import FORMATS, QUANTIZED, TRIPS, page
from benchmarks.roundtrips import Reference, with_stored
from psvit_core.zoo.registry import FAMILIES
from tests.tiny import tiny_model


def test_the_page_has_the_stored_result() -> None:
    text = (RESULTS.parents[1] / "docs" / "round-trips.md").read_text(encoding="utf-8")
    assert text == page(stored("roundtrips"))


def test_every_kind_of_a_family_makes_every_trip() -> None:
    rows = stored("roundtrips")["rows"]
    families = [name for name in FAMILIES if any(row["family"] == name for row in rows)]
    assert [(row["family"], row["network"]) for row in rows] == [
        (family, kind) for family in families for kind in KINDS
    ]
    assert set(FORMATS) <= set(TRIPS)
    for row in rows:
        assert {*TRIPS, QUANTIZED} <= set(row), row
        kinds = {name: row[name]["kind"] for name in TRIPS}
        assert {kinds[name] for name in ("torch", "int8", "int8 torch")} <= {"bits", "rounding"}
        coupled = tiny_model(vectors()[row["family"]]).batch_coupled
        for name in ("onnx", "pt2"):
            assert (kinds[name] == "refused") == (coupled and name == "onnx"), row
            assert "influence each other" in row[name].get("reason", "influence each other")
            assert row[name].get("predictions", 0) == 0


@pytest.mark.parametrize(
    ("change", "kind", "logits", "predictions"),
    [(0.0, "bits", 0, 0), (3e-6, "rounding", 0, 0), (0.1, "differs", 1, 0), (9.0, "differs", 1, 1)],
)
def test_logits_are_compared_by_image(
    change: float, kind: str, logits: int, predictions: int
) -> None:
    expected = torch.tensor([[1.0, 4.0], [3.0, -8.0]])
    got = expected.clone()
    got[1, 1] += change + 3 * (change > 1)
    found = Reference(expected, []).compared(got)
    assert (found.kind, found.logits, found.predictions) == (kind, logits, predictions)
    assert found.flips is None
    assert set(found.as_row()) >= {"kind"}


def test_one_flip_is_seen() -> None:
    logits = torch.tensor([[1.0, 4.0]])
    spikes: list[Tensor] = [torch.zeros(2, 3), torch.ones(2, 5)]
    flipped = [spikes[0], spikes[1].clone()]
    flipped[1][1, 2] = 0
    found = Reference(logits, spikes).compared(logits, flipped)
    assert (found.kind, found.flips, found.outputs) == ("differs", 1, 16)
    assert found.as_row() == {"kind": "differs", "flips": 1, "outputs": 16}
    assert Reference(logits, spikes).compared(logits, spikes).kind == "bits"


def test_other_families_stay_if_versions_are_the_same() -> None:
    before = stored("roundtrips")
    row = {**before["rows"][0], "largest logit": -1.0}
    one = {**before, "rows": [row]}
    rows = with_stored(one, list(FAMILIES))["rows"]
    family = row["family"]
    assert [r for r in rows if r["family"] == family] == [row]
    assert [r for r in rows if r["family"] != family] == before["rows"][len(KINDS) :]
    assert with_stored({**one, "versions": {"torch": "0"}}, list(FAMILIES))["rows"] == [row]
