"""E-SpikeFormer Large: sizes, time steps, layer scales, two BatchNorms in a row, the two heads."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from psvit_core.errors import CheckpointError, ModelError
from psvit_core.groups import find_groups, plan_from_kept, shape_table, summarize
from psvit_core.importance import all_scores
from psvit_core.metrics.spikes import count_spikes
from psvit_core.plan.size import plan_size, real_macs
from psvit_core.recover import recover
from psvit_core.recover.readers import pruned_readers
from psvit_core.recover.teacher import can_refit
from psvit_core.runtime import Run
from psvit_core.sensitivity.sweep import sweep
from psvit_core.surgery import apply_plan, silenced
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.checkpoint import load_model, weights_hash
from psvit_core.zoo.opening import find_sizings, from_cards
from psvit_core.zoo.registry import FAMILIES, build_model
from tests.tiny import NAMES, tiny_data, tiny_input, tiny_model, vector

LARGE = [name for name in NAMES if name.startswith("sdt_v3_large")]
OTHER_SIZES: tuple[dict[str, Any], ...] = (
    {"embed_dim": [4, 10, 20], "num_heads": 5, "depths": 2, "mlp_ratios": 3, "kd": False},
    {"embed_dim": [6, 8, 18], "num_heads": 3, "depths": 1, "sr_ratios": 2, "in_channels": 2},
)


def state_shapes(model: SpikingModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# ---- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["large", "base"])
@pytest.mark.parametrize("size", OTHER_SIZES)
def test_shapes_reveal_the_size(size: dict[str, Any], choice: str) -> None:
    made = {"num_classes": 7, "mlp_ratios": 4, "sr_ratios": 1, "in_channels": 3, "kd": True, **size}
    for name in ("sdt_v3_large", "sdt_v3_large_base", "sdt_v3_large_d8"):
        model = build_model(name, choice=choice, img_size_h=32, img_size_w=32, **made)
        found = FAMILIES[name].read_size(state_shapes(model))
        assert found is not None
        assert found == {**{k: v for k, v in made.items() if k != "num_heads"}, "choice": choice}
        again = build_model(name, num_heads=made["num_heads"], **found)
        assert state_shapes(again) == state_shapes(model)


def test_levels_must_be_told(tmp_path: Path) -> None:
    model = tiny_model("sdt_v3_large")
    path = tmp_path / "own.pth"
    torch.save({"model": model.state_dict()}, path)
    (sizing,) = find_sizings(model.state_dict())
    assert sizing.family == "sdt_v3_large"
    given: dict[str, Any] = {"num_heads": 4, "T": 1, "image_size": 64}
    with pytest.raises(CheckpointError, match=r"levels \(--levels\): 4 \[weights named 1x4\]; 8"):
        load_model(path, **given)
    with pytest.raises(CheckpointError, match=r"cannot have levels=6\. Possible"):
        load_model(path, levels=6, **given)
    four, eight = (load_model(path, levels=levels, **given) for levels in (4, 8))
    x = tiny_input("sdt_v3_large")
    with torch.no_grad():
        assert torch.equal(four(x), model(x))
        assert not torch.equal(eight(x), model(x))
    assert weights_hash(four) == weights_hash(model) != weights_hash(eight)


@pytest.mark.parametrize("size", ["83m", "83m_kd", "173m", "173m_192"])
def test_of_a_published_size_only_the_levels_are_asked_for(size: str) -> None:
    card = model_card(f"e_spikeformer_large_{size}")
    with torch.device("meta"):
        model = build_model(card.family, **card.arguments)
    (sizing,) = find_sizings(model.state_dict())
    eight = f"e_spikeformer_large_{size.removesuffix('_kd')}_1x8{'_kd' * size.endswith('_kd')}"
    assert set(sizing.cards) == {card.name, eight}
    asked = {choice.argument for choice in sizing.choices} - from_cards(sizing).keys()
    assert asked == {"levels"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"levels": 6}, "levels must be 4 or 8; got 6"),
        ({"choice": "huge"}, "choice must be 'large' or 'base'; got 'huge'"),
        ({"embed_dim": [12, 16, 24, 32]}, r"three widths.*got \[12, 16, 24, 32\]"),
        ({"embed_dim": [12, 16, 25]}, "multiple of num_heads=4"),
        ({"mlp_ratios": 2.5}, "mlp_ratios must be a whole number of at least 1; got 2.5"),
        ({"sr_ratios": 0}, "sr_ratios must be a whole number of at least 1; got 0"),
        ({"nb_classes": 5}, "must be equal with kd; got 5 and 10"),
    ],
)
def test_impossible_arguments_are_refused(wrong: dict[str, Any], message: str) -> None:
    arguments = vector("sdt_v3_large").meta["constructor"]
    with pytest.raises(ModelError, match=message):
        build_model("sdt_v3_large", **{**arguments, **wrong})


def test_official_names_of_the_classes() -> None:
    arguments = vector("sdt_v3_large").meta["constructor"]
    model = build_model("sdt_v3_large", **{**arguments, "nb_classes": 5, "kd": False})
    assert model.num_classes == 5
    assert model.get_parameter("head.weight").shape[0] == 5


@pytest.mark.parametrize("name", NAMES)
def test_functions_on_the_same_tensors_have_other_hashes(name: str) -> None:
    """Results are stored by hash: those of two networks must not mix."""
    model, x = tiny_model(name), tiny_input(name)
    found: list[tuple[str, Tensor]] = []
    for other in networks_with_the_tensors_of(model):
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            found.append((weights_hash(other), other(x)))
    for i, (hashed, logits) in enumerate(found):
        for other_hash, other_logits in found[:i]:
            if not torch.equal(logits, other_logits):
                assert hashed != other_hash


def networks_with_the_tensors_of(model: SpikingModel) -> Iterator[SpikingModel]:
    """Build every family with these tensors, at the model's heads, with each other option."""
    names = ("img_size", "img_size_h", "img_size_w", "num_heads", "T")
    known = {name: model.arguments[name] for name in names if name in model.arguments}
    for sizing in find_sizings(model.state_dict()):
        yield build_model(sizing.family, **{**sizing.size, **known})
        for choice in sizing.choices:
            if choice.argument not in (*names, "image_size"):
                for option in choice.options:
                    changed = {**sizing.size, **known, choice.argument: option.value}
                    yield build_model(sizing.family, **changed)


# ---- time ------------------------------------------------------------------------------------


def over_time(name: str, T: int) -> SpikingModel:
    once = tiny_model(name)
    model = build_model(once.family, **{**once.arguments, "T": T})
    model.load_state_dict(once.state_dict())
    return model.double()


@pytest.mark.parametrize("name", LARGE)
def test_time_steps_repeat_the_image(name: str) -> None:
    once, x = tiny_model(name, torch.float64), tiny_input(name, torch.float64)
    three = over_time(name, 3)
    with torch.no_grad(), count_spikes(once) as one, count_spikes(three) as all_steps:
        torch.testing.assert_close(three(x), once(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(all_steps.sops[0], 3 * one.sops[0])
    assert all_steps.firing_rates() == pytest.approx(one.firing_rates())
    first = once.real_fed().keys() - {"downsample1_1.encode_conv"}
    assert three.real_fed() == {"downsample1_1.encode_conv": 1, **dict.fromkeys(first, 3)}
    (macs_once, macs_three) = (real_macs(summarize(m, {}), None) for m in (once, three))
    assert macs_once < macs_three < 3 * macs_once


def test_sweep_over_time_steps() -> None:
    name = "sdt_v3_large"
    data, run = tiny_data(name, 5), Run(batch=3, precision="float64")
    one, two = (
        sweep(over_time(name, T), data, ratios=(0.5,), criterion="l2", run=run) for T in (1, 2)
    )
    assert len(one.rows) == len(two.rows) > 20
    for a, b in zip(one.rows, two.rows, strict=True):
        assert b.kl == pytest.approx(a.kl, abs=1e-9)
        assert b.sops == pytest.approx(2 * a.sops)


# ---- layer scales and BatchNorms in a row ------------------------------------------------------


def half_plan(model: SpikingModel, *kinds: str) -> Any:
    kept = {}
    for g in find_groups(model):
        width = g.n_units // (g.heads or 1)
        if not kinds or g.kind in kinds:
            kept[g.group_id] = [i for i in range(g.n_units) if i % width < max(1, width // 2)]
    return plan_from_kept(model, kept)


@pytest.mark.parametrize("name", LARGE)
def test_layer_scales_are_pruned_with_the_stream(name: str) -> None:
    model = tiny_model(name, torch.float64)
    stream = next(g for g in find_groups(model) if g.group_id == "stage3.stream")
    scales = [n for n, _ in stream.writers if "layer_scale" in n]
    assert len(scales) == 2 * model.arguments["depths"]
    plan = plan_from_kept(model, {"stage3.stream": [1, 4, 5]})
    small = apply_plan(model, plan)
    for n in scales:
        assert torch.equal(small.get_parameter(n), model.get_parameter(n)[[1, 4, 5]])


@pytest.mark.parametrize("name", LARGE)
def test_a_zero_layer_scale_silences_its_branch(name: str) -> None:
    """Zeros in both layer scales and the other writers remove the units, like zero BatchNorms."""
    model, x = tiny_model(name, torch.float64), tiny_input(name, torch.float64)
    plan = plan_from_kept(model, {"stage3.stream": [*range(2, 24)]})
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        writers = ["downsample3.encode_bn.weight", "downsample3.encode_bn.bias"]
        for n, _ in zeroed.named_parameters():
            if "layer_scale" in n or n.endswith(
                ("rep_conv.conv2.1.weight", "rep_conv.conv2.1.bias")
            ):
                writers.append(n)
        for n in writers:
            zeroed.get_parameter(n)[:2] = 0
        expected = silenced(model, plan)(x)
        torch.testing.assert_close(zeroed(x), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(apply_plan(model, plan)(x), expected, rtol=0, atol=1e-12)
        assert float((expected - model(x)).abs().max()) > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1e-6, -3.0])
def test_surgery_is_exact_for_any_layer_scale(scale: float) -> None:
    model, x = (
        tiny_model("sdt_v3_large_base", torch.float64),
        tiny_input("sdt_v3_large_base").double(),
    )
    for n, parameter in model.named_parameters():
        if "layer_scale" in n:
            parameter.data.fill_(scale)
    plan = half_plan(model)
    with torch.no_grad():
        expected = silenced(model, plan)(x)
        torch.testing.assert_close(apply_plan(model, plan)(x), expected, rtol=0, atol=1e-9)


def test_of_two_norms_in_a_row_the_outer_one_counts() -> None:
    model, x = tiny_model("sdt_v3_large", torch.float64), tiny_input("sdt_v3_large").double()
    plan = half_plan(model, "qk", "v")
    inner = {n for n in model.state_dict() if ".conv2.1." in n and "attn" in n}
    assert inner
    only_inner, only_outer = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for g in find_groups(model):
            removed = sorted(
                set(range(g.n_units)) - set(plan.kept.get(g.group_id, range(g.n_units)))
            )
            for n, _ in g.writers:
                if not n.endswith(("weight", "bias")) or ".conv2.0." in n or not removed:
                    continue
                changed = only_inner if n in inner else only_outer
                changed.get_parameter(n)[removed] = 0
        expected = apply_plan(model, plan)(x)
        torch.testing.assert_close(only_outer(x), expected, rtol=0, atol=1e-12)
        assert float((only_inner(x) - expected).abs().max()) > 1e-6


# ---- readers, importance, size -----------------------------------------------------------------


@pytest.mark.parametrize("name", LARGE)
def test_both_heads_and_all_projections_are_refitted(name: str) -> None:
    model = tiny_model(name, torch.float64)
    plan = half_plan(model, "residual")
    small = apply_plan(model, plan)
    data = dataclasses.replace(tiny_data(name, 8), split="calib")
    run = Run(batch=4, precision="float64")
    fitted, report = recover(small, model, plan, data, method="lsq", run=run)
    layers = {layer.layer for layer in report.layers}
    readers = pruned_readers(model.channel_groups(), plan)
    assert layers == {name for name in readers if can_refit(model, name)}
    heads = {"head", "head_kd"} if model.arguments["kd"] else {"head"}
    assert heads | {"block3.0.attn.q_conv.0.conv1.0", "block3.0.mlp.fc1_conv"} <= layers
    assert report.kl["lsq"] < report.kl["none"]
    assert fitted.widths == small.widths


def test_importance_does_not_count_layer_scales_as_filters() -> None:
    model = tiny_model("sdt_v3_large")
    scaled = copy.deepcopy(model)
    for n, parameter in scaled.named_parameters():
        if "layer_scale" in n:
            parameter.data.mul_(5)
    for criterion in ("l1", "l2", "l2_group", "fpgm", "bn_scale"):
        for group, scores in all_scores(model, criterion).items():
            assert torch.equal(scores, all_scores(scaled, criterion)[group])


@pytest.mark.parametrize("name", LARGE)
def test_size_of_a_pruned_model_with_layer_scales(name: str) -> None:
    model = tiny_model(name)
    summary = summarize(model, {})
    plan = half_plan(model)
    small = apply_plan(model, plan)
    for precision in ("float32", "int8"):
        direct = plan_size(summarize(small, {}), None, precision)
        assert plan_size(summary, plan, precision) == direct
    roles = {t.name: t.role for t in shape_table(model).tensors}
    assert roles["block3.0.layer_scale1"] == "affine"  # float32 also where weights are int8
    assert direct.params == sum(p.numel() for p in small.parameters())


def test_real_values_are_counted_as_multiply_accumulates() -> None:
    model = tiny_model("sdt_v3_large_base")
    width = model.arguments["embed_dim"][2]
    tokens, mid, depths = 16, int(1.5 * width), 3
    first, head = (
        model.get_parameter(f"{name}.weight") for name in ("downsample1_1.encode_conv", "head")
    )
    second = depths * tokens * (4 * mid * width + width * width)
    expected = first.numel() * 32 * 32 + second + head.numel()
    assert real_macs(summarize(model, {}), None) == expected


@pytest.mark.parametrize("name", LARGE)
def test_gradients_reach_every_parameter(name: str) -> None:
    model, x = tiny_model(name).train(), tiny_input(name)
    model(x).square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    scales = [p for n, p in model.named_parameters() if "layer_scale" in n]
    assert all(float(p.grad.abs().max()) > 0 for p in scales if p.grad is not None)
