"""The contract of every importance criterion, and hand-made values for the norms."""

from __future__ import annotations

import pytest
import torch

from psvit_core.errors import UnknownNameError
from psvit_core.groups import find_groups
from psvit_core.importance import CRITERIA, criterion, rank
from psvit_core.plans import kept_units
from tests.tiny import tiny_model


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("model_name", ["sdt_v1", "sdt_v3"])
def test_contract(name: str, model_name: str) -> None:
    model = tiny_model(model_name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for group in find_groups(model):
        scores = criterion(name).scores(model, group)
        assert scores.shape == (group.n_units,)
        assert scores.dtype == torch.float64
        assert torch.isfinite(scores).all()
        assert torch.equal(scores, criterion(name).scores(model, group))
        order = rank(model, name)[group.group_id]
        assert sorted(order) == list(range(group.n_units))
        ranked = scores[list(order)]
        assert (ranked[:-1] >= ranked[1:]).all()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("name", "expected"), [("l1", [3.0, 4.0]), ("l2", [5**0.5, 8**0.5])])
def test_norms_concatenate_tied_filters(name: str, expected: list[float]) -> None:
    model = tiny_model("sdt_v1")
    group = next(g for g in find_groups(model) if g.group_id == "block.0.attn.qkv")
    with torch.no_grad():
        for part, values in (("q", (2.0, 2.0)), ("k", (-1.0, 0.0)), ("v", (0.0, -2.0))):
            weight = model.get_parameter(f"block.0.attn.{part}_conv.weight")
            weight.zero_()
            weight[0, 0], weight[1, 1] = values
    assert criterion(name).scores(model, group)[:2].tolist() == pytest.approx(expected)


def test_heads_lose_equally() -> None:
    model = tiny_model("sdt_v3")
    group = next(g for g in find_groups(model) if g.group_id == "block3.0.attn.qk")
    ranking = list(range(12))  # the first head's units are all better than the second's
    assert kept_units(group, ranking, 4) == (0, 1, 2, 3, 6, 7, 8, 9)


def test_unknown_criterion_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'l2'"):
        criterion("l2_norm")
