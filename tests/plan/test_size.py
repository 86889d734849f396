"""Exact sizes compared with pruned models, and MACs with torch's FLOP counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from psvit_core.errors import UnknownNameError
from psvit_core.groups import find_groups, summarize
from psvit_core.importance import rank
from psvit_core.neurons import eager_neurons
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import memory_saving, plan_size, plan_widths, real_macs
from psvit_core.records import ModelSummary
from psvit_core.surgery import apply_plan, stored_bytes
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.products import AttentionProduct
from tests.tiny import NAMES, tiny_input, tiny_model

MODELS = {name: tiny_model(name) for name in NAMES}


def summary_of(model: SpikingModel) -> ModelSummary:
    return summarize(model, {"l2": rank(model, "l2")})


SUMMARIES = {name: summary_of(model) for name, model in MODELS.items()}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4)
@given(data=st.data())
def test_equal_to_real_surgery(name: str, data: st.DataObject) -> None:
    summary = SUMMARIES[name]
    ratios = {
        g.group_id: data.draw(st.floats(0, 0.95, allow_nan=False), label=g.group_id)
        for g in summary.groups
    }
    plan = plan_from_ratios(summary, ratios, criterion="l2")
    small = apply_plan(MODELS[name], plan)
    size = plan_size(summary, plan)
    read = {k: v for k, v in small.named_parameters() if k not in small.unused}
    assert size.params == sum(p.numel() for p in read.values())
    assert size.bytes == stored_bytes(small)
    again = summary_of(small)
    assert size == plan_size(again, None)
    assert real_macs(summary, plan) == real_macs(again, None)


@pytest.mark.parametrize("name", NAMES)
def test_macs_agree_with_torch_flop_counter(name: str) -> None:
    model, x = MODELS[name], tiny_input(name)[:1]
    with torch.no_grad(), eager_neurons(), FlopCounterMode(display=False) as counter:
        model(x)
    flops = counter.get_flop_counts()
    products = [n for n, m in model.named_modules() if isinstance(m, AttentionProduct)]
    root = type(model).__name__
    # products are counted as published, and computed in the cheaper order
    n_computed = counter.get_total_flops() - sum(
        sum(flops[f"{root}.{product}"].values()) for product in products
    )
    terms = tuple(
        t for t in SUMMARIES[name].shapes.terms if t.layer.rpartition(".")[0] not in products
    )
    assert len(terms) < len(SUMMARIES[name].shapes.terms) or not products
    shapes = dataclasses.replace(SUMMARIES[name].shapes, terms=terms)
    summary = dataclasses.replace(SUMMARIES[name], shapes=shapes)
    # torch counts two FLOPs per MAC and all T steps; some layers run once per static image.
    each_once = dataclasses.replace(summary, real_fed=dict.fromkeys(summary.real_fed, 1))
    spiking = plan_size(summary, None).macs - real_macs(each_once, None)
    assert n_computed / 2 == real_macs(summary, None) + spiking * model.T


def test_savings_do_not_add_up() -> None:
    summary = SUMMARIES["sdt_v3"]
    alone = sum(
        memory_saving(summary, plan_from_ratios(summary, {g.group_id: 0.5}, criterion="l2"))
        for g in summary.groups
    )
    half = {g.group_id: 0.5 for g in summary.groups}
    together = memory_saving(summary, plan_from_ratios(summary, half, criterion="l2"))
    assert together < 0.8 < alone


def test_int8_counts_scales() -> None:
    summary = SUMMARIES["sdt_v1"]
    weights = [t for t in summary.shapes.tensors if t.role == "weight"]
    count = sum(torch.Size(t.sizes).numel() for t in weights)
    scales = sum(t.sizes[0] for t in weights)
    fp32, int8 = plan_size(summary, None), plan_size(summary, None, "int8")
    assert int8.bytes == fp32.bytes - 3 * count + 4 * scales
    with pytest.raises(UnknownNameError, match="int8"):
        plan_size(summary, None, "int4")


def test_unused_tensors_and_counters_are_not_counted() -> None:
    model, summary = MODELS["sdt_v1"], SUMMARIES["sdt_v1"]
    unused = {t.name for t in summary.shapes.tensors if t.role == "unused"}
    assert unused == {f"block.{i}.attn.talking_heads.weight" for i in range(2)}
    everything = sum(p.numel() for p in model.parameters())
    assert plan_size(summary, None).params == everything - 2 * 16
    assert {t.role for t in summary.shapes.tensors} == {
        "weight",
        "affine",
        "buffer",
        "counter",
        "unused",
    }


@pytest.mark.parametrize("name", NAMES)
def test_round_to_keeps_multiples(name: str) -> None:
    summary = SUMMARIES[name]
    ratios = {g.group_id: 0.4 for g in summary.groups}
    plan = plan_from_ratios(summary, ratios, criterion="l2", round_to=8)
    widths = plan_widths(summary, plan)
    for group in find_groups(MODELS[name]):
        width = widths[group.group_id]
        assert width % 8 == 0 or width == group.n_units
        assert width >= 0.6 * group.n_units
    assert plan.kept
