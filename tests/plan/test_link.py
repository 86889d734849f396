"""Links to plans: round trips, and rejection of damaged and hostile texts."""

from __future__ import annotations

import base64
import dataclasses
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psvit_core.errors import InvalidPlanError
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.link import MAX_TEXT, read_share, share_text
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.zoo.cards import shipped_summary

NAMES = ("sdt_v1_digits", "e_spikeformer_digits", "meta_spikeformer_digits")
MAX_LINK = 200  # characters


def summary(name: str) -> ModelSummary:
    found = shipped_summary(name)
    assert found is not None
    return found


def packed(body: bytes, version: int = 1) -> str:
    return base64.urlsafe_b64encode(bytes([version]) + zlib.compress(body)).decode().rstrip("=")


def example() -> tuple[ModelSummary, PrunePlan]:
    model = summary("sdt_v1_digits")
    ratios = {g.group_id: 0.3 for g in model.groups}
    return model, plan_from_ratios(model, ratios, criterion="l2")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES), criterion=st.sampled_from(["l1", "l2"]))
def test_round_trip(data: st.DataObject, name: str, criterion: str) -> None:
    model = summary(name)
    n = len(model.groups)
    ratios = data.draw(st.lists(st.floats(0, 0.99), min_size=n, max_size=n))
    asked = {g.group_id: ratio for g, ratio in zip(model.groups, ratios, strict=True)}
    plan = plan_from_ratios(model, asked, criterion=criterion)
    text = share_text(model, plan)
    shared = read_share(text)
    assert shared.model == name
    assert len(text) <= MAX_LINK
    back = shared.plan(model)
    assert (back.kept, back.criterion, back.weights_hash) == (
        plan.kept,
        criterion,
        plan.weights_hash,
    )


def test_file_name_is_stored_without_its_folder() -> None:
    model, plan = example()
    model = dataclasses.replace(model, model="/home/someone/secret/small.safetensors")
    assert read_share(share_text(model, plan)).model == "small.safetensors"


def test_plan_with_other_units_is_rejected() -> None:
    model, plan = example()
    group = next(g for g in model.groups if not g.heads)
    removed = set(range(group.n_units)) - set(plan.kept[group.group_id])
    other = (*sorted([*plan.kept[group.group_id][1:], min(removed)]),)
    unusual = dataclasses.replace(plan, kept={**plan.kept, group.group_id: other})
    with pytest.raises(InvalidPlanError, match=r"plan \(l2\) were chosen differently"):
        share_text(model, unusual)
    with pytest.raises(InvalidPlanError, match=r"plan \(taylor\) were chosen differently"):
        share_text(model, dataclasses.replace(plan, criterion="taylor"))


def test_link_of_another_model_is_rejected() -> None:
    model, plan = example()
    shared = read_share(share_text(model, plan))
    with pytest.raises(InvalidPlanError, match="sdt_v1_digits with weights"):
        shared.plan(summary("e_spikeformer_digits"))
    with pytest.raises(InvalidPlanError, match="has 16"):
        dataclasses.replace(shared, steps=shared.steps[:-1]).plan(model)
    with pytest.raises(InvalidPlanError, match="at least one must remain"):
        dataclasses.replace(shared, steps=(5000,) * 16).plan(model)
    with pytest.raises(InvalidPlanError, match="no ranking by 'magic'"):
        dataclasses.replace(shared, criterion="magic").plan(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a link"),
        ("<script>", "not a link"),
        ("A" * (MAX_TEXT + 1), "not a link"),
        ("A", "damaged"),
        ("AQ", "damaged"),
        (packed(b"", version=9), "version 9"),
        (packed(b"123"), "damaged"),
        (packed(bytes(6) + b"\x7fabc"), "damaged"),
        (packed(bytes(6) + b"\x02\xff\xfe\x00"), "damaged"),
        (packed(bytes(8) + b"\xff\xff\xff\xff"), "damaged"),
        (packed(bytes(8) + bytes(5000)), "damaged"),
        (packed(bytes(1_000_000)), "damaged"),  # small when compressed
    ],
)
def test_invalid_texts_are_rejected(text: str, message: str) -> None:
    with pytest.raises(InvalidPlanError, match=message):
        read_share(text)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_mistyped_link_never_gives_another_plan(data: st.DataObject) -> None:
    model, plan = example()
    text = share_text(model, plan)
    expected = read_share(text).plan(model)
    at = data.draw(st.integers(0, len(text) - 2))
    letter = data.draw(st.sampled_from("ABCxyz019-_"))
    try:
        found = read_share(text[:at] + letter + text[at + 1 :]).plan(model)
    except InvalidPlanError:
        found = expected
    assert found == expected  # rejected, or only padding bits of the compressed data differ
    with pytest.raises(InvalidPlanError):
        read_share(text[:at]).plan(model)
