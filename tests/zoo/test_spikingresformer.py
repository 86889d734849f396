"""SpikingResformer: sizes, firing rates, shared axes and grouped convolutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from psvit_core.errors import CheckpointError, ModelError
from psvit_core.evaluate import place
from psvit_core.groups import axis_groups, find_groups, plan_from_kept, summarize
from psvit_core.importance import rank
from psvit_core.neurons import LIF
from psvit_core.plan.size import plan_size
from psvit_core.planners._base import Problem
from psvit_core.records import (
    ChannelGroup,
    ModelSummary,
    SensitivityTable,
    Target,
    axis_owners,
    axis_width,
    divided_owner,
    shared_owner,
)
from psvit_core.runtime import Run
from psvit_core.sensitivity.sweep import sweep
from psvit_core.surgery import apply_plan, silenced, stored_bytes
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.fitting import build_empty, load_tensors
from psvit_core.zoo.pruned import save_pruned
from psvit_core.zoo.registry import FAMILIES, build_model
from psvit_core.zoo.resformer_layers import DSSA
from tests.tiny import tiny_data, tiny_input, tiny_model, vector

NAMES = ("spikingresformer", "spikingresformer_cifar")
SIZES: dict[str, dict[str, Any]] = {
    "two stages, other kernels": {
        "layers": [["GWFFN", "DSSA", "DSSA"], ["DSSA", "GWFFN"]],
        "planes": [12, 40],
        "num_heads": [3, 5],
        "patch_sizes": [2, 4],
        "img_size": 32,
        "T": 2,
        "in_channels": 1,
        "num_classes": 7,
        "group_size": 4,
    },
    "one stage": {
        "layers": [["DSSA", "GWFFN"]],
        "planes": [16],
        "num_heads": [4],
        "patch_sizes": [1],
        "img_size": 16,
        "T": 1,
        "in_channels": 2,
        "num_classes": 3,
        "group_size": 64,
    },
    "a stage without attention": {
        "layers": [["GWFFN"], ["DSSA", "GWFFN"]],
        "planes": [8, 16],
        "num_heads": [1, 2],
        "patch_sizes": [1, 2],
        "img_size": 16,
        "T": 4,
        "in_channels": 3,
        "num_classes": 5,
        "group_size": 8,
    },
}


def with_rates(model: SpikingModel, seed: int = 0) -> SpikingModel:
    """Give a model weights with which neurons fire, and set its statistics by one batch."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1.0, 2.0)
            nn.init.uniform_(module.bias, 0.2, 1.0)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images(model, 16, seed=1))
    return model.eval()


def images(model: SpikingModel, n: int = 3, seed: int = 0) -> Tensor:
    dtype = next(model.parameters()).dtype
    return torch.randn(
        n, *model.input_shape, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


def every_second(groups: tuple[ChannelGroup, ...]) -> dict[str, list[int]]:
    """Keep every second unit of each head, from a position that differs between heads."""
    kept = {}
    for group in groups:
        width = group.n_units // (group.heads or 1)
        if width > 1:
            kept[group.group_id] = sorted(
                head * width + (2 * i + head) % (width // 2 * 2)
                for head in range(group.heads or 1)
                for i in range(width // 2)
            )
    return kept


# ---- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("size", ["vector", *SIZES])
def test_shapes_reveal_the_size(family: str, size: str) -> None:
    arguments = SIZES[size] if size != "vector" else vector(family).meta["constructor"]
    model = build_model(family, **arguments)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    kind = FAMILIES[family]
    found = kind.read_size(shapes)
    assert found is not None
    assert [c.argument for c in kind.choices(found)] == ["T", "image_size"]
    given = {"T": arguments["T"], "img_size": arguments["img_size"]}
    again = build_model(family, **found, **given)
    assert {name: tuple(t.shape) for name, t in again.state_dict().items()} == shapes
    assert again.channel_groups() == model.channel_groups()
    other = FAMILIES[next(n for n in NAMES if n != family)]
    assert other.read_size(shapes) is None  # the prologue tells the families apart


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_other_sizes_are_pruned_exactly(family: str, size: str) -> None:
    model = with_rates(build_model(family, **SIZES[size])).double()
    groups = find_groups(model)
    x = images(model)
    fired = {
        name: []  # type: ignore[var-annotated]  # filled by the hooks
        for name, m in model.named_modules()
        if isinstance(m, LIF)
    }
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _m, _i, out, n=name: fired[n].append(out.mean()))
    with torch.no_grad():
        full = model(x)
        assert all(0.02 < float(rates[0]) < 0.98 for rates in fired.values()), fired
        kept = every_second(groups)
        assert len(kept) == len(groups)
        for plan in (kept, *({g: units} for g, units in kept.items())):
            made = plan_from_kept(model, plan)
            small = apply_plan(model, made)
            logits = small(x)
            assert float((logits - silenced(model, made)(x)).abs().max()) < 1e-9, plan
            assert float((logits - full).abs().max()) > 1e-6, plan


@pytest.mark.parametrize("family", NAMES)
def test_frames_of_one_image_are_the_image(family: str) -> None:
    model, x = tiny_model(family, torch.float64), tiny_input(family, torch.float64)
    with torch.no_grad():
        frames = model(x[:, None].expand(-1, model.T, -1, -1, -1))
        assert float((frames - model(x)).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"img_size": 4}, "larger img_size"),
        ({"num_heads": [3, 1]}, "num_heads"),
        ({"num_heads": [0, 2]}, "num_heads"),
        ({"planes": [16]}, "one entry per stage"),
        ({"layers": [], "planes": [], "num_heads": [], "patch_sizes": []}, "at least one"),
        ({"layers": [["DSSA"], ["MLP"]]}, "MLP"),
        ({"group_size": 0}, "group_size|zero"),
        ({"group_size": 7}, "group_size"),
        ({"activation": "IF"}, "activation"),
        ({"prologue": "a convolution"}, "prologue"),
    ],
)
def test_wrong_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model("spikingresformer", **{**SIZES["a stage without attention"], **changed})


# ---- firing rates ----------------------------------------------------------------------------


def test_a_model_without_firing_rates_is_refused(tmp_path: Path) -> None:
    model = build_model("spikingresformer", **SIZES["one stage"])
    for run in (model, lambda x: place(model, Run())):
        with pytest.raises(CheckpointError, match=r"firing_rate_x contains 0.*training batch"):
            run(images(model))
    path = tmp_path / "fresh.safetensors"
    empty = build_empty("spikingresformer", SIZES["one stage"], {})
    with pytest.raises(CheckpointError, match=r"fresh\.safetensors: .*firing_rate_x contains 0"):
        load_tensors(empty, model.state_dict(), path)
    negative = with_rates(model).state_dict()
    negative["layers.0.0.firing_rate_attn"][0, 0, 1] = -0.5
    save_file(negative, path)
    with pytest.raises(CheckpointError, match=r"firing_rate_attn contains -0\.5"):
        load_model(path, T=1, image_size=16)
    with torch.no_grad():
        model.load_state_dict(
            with_rates(build_model("spikingresformer", **SIZES["one stage"])).state_dict()
        )
        assert torch.isfinite(model(images(model))).all()


def test_training_batches_set_and_move_the_firing_rates() -> None:
    model = build_model("spikingresformer", **SIZES["one stage"]).double()
    block: Any = model.get_submodule("layers.0.0")
    spikes: dict[str, Tensor] = {}
    for name in ("activation_in", "activation_attn"):
        block.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, n=name: spikes.__setitem__(n, out.detach())
        )

    def rates() -> tuple[Tensor, Tensor]:
        heads = spikes["activation_in"].unflatten(2, (4, -1))
        return heads.mean((0, 1, 3, 4, 5)), spikes["activation_attn"].mean((0, 1, 3, 4))

    model.train()
    expected: tuple[Tensor, ...] | None = None
    for seed in range(3):
        model(images(model, 8, seed) * 2)
        now = rates()
        assert min(float(r.min()) for r in now) > 0
        before = now if expected is None else expected
        # the first batch sets them, which is also what a running mean of equal values gives
        expected = tuple(b * 0.999 + n * 0.001 for b, n in zip(before, now, strict=True))
        for name, rate in zip(("firing_rate_x", "firing_rate_attn"), expected, strict=True):
            torch.testing.assert_close(getattr(block, name).flatten(), rate)
    model.eval()
    stored = block.firing_rate_x.clone()
    with torch.no_grad():
        assert torch.isfinite(model(images(model))).all()
    assert torch.equal(block.firing_rate_x, stored)


@pytest.mark.parametrize("family", NAMES)
def test_pruned_and_silenced_models_train_alike(family: str) -> None:
    """Removed channels count as silent in the firing rates, as in the silenced model."""
    model = tiny_model(family, torch.float64)
    plan = plan_from_kept(model, every_second(find_groups(model)))
    small, full = apply_plan(model, plan).train(), silenced(model, plan).train()
    x = tiny_input(family, torch.float64)
    moved = 0.0
    for _ in range(2):
        assert float((small(x) - full(x)).detach().abs().max()) < 1e-9
    for name, rate in small.named_buffers():
        if "firing_rate" in name:
            torch.testing.assert_close(rate, model.get_buffer(name))
            moved += float((rate - vector(family).weights[name].double()).abs().sum())
    assert moved > 0


def test_neurons_train_with_the_arctangent() -> None:
    model = tiny_model("spikingresformer")
    assert {m.atan for m in model.modules() if isinstance(m, LIF)} == {True}
    assert {m.v_threshold for m in model.modules() if isinstance(m, LIF)} == {1.0}


# ---- groups, sizes, plans --------------------------------------------------------------------


@pytest.mark.parametrize("family", NAMES)
def test_constants_keep_their_values(family: str) -> None:
    model = tiny_model(family)
    small = apply_plan(model, plan_from_kept(model, every_second(find_groups(model))))
    for name, block in model.named_modules():
        if isinstance(block, DSSA):
            other: Any = small.get_submodule(name)
            assert (other.head_width, other.n_patches) == (block.head_width, block.n_patches)
            assert torch.equal(other.firing_rate_x, block.firing_rate_x)
            assert other.W.weight.shape[0] < block.W.weight.shape[0]


@pytest.mark.parametrize("family", NAMES)
def test_a_pruned_model_is_pruned_again(family: str, tmp_path: Path) -> None:
    model, x = tiny_model(family, torch.float64), tiny_input(family, torch.float64)
    for step in range(2):
        plan = plan_from_kept(model, every_second(find_groups(model)))
        small = apply_plan(model, plan)
        with torch.no_grad():
            assert float((small(x) - silenced(model, plan)(x)).abs().max()) < 1e-9
        model = small
        path = save_pruned(model, tmp_path / f"{step}.safetensors")
        again = load_model(path)
        with torch.no_grad():
            assert torch.equal(again(x), model(x))
        assert again.channel_groups() == model.channel_groups()
        assert plan_size(summarize(again, {}), None).bytes == stored_bytes(model)


def test_uneven_numbers_are_refused() -> None:
    model = tiny_model("spikingresformer")
    for group in find_groups(model):
        if group.heads and group.heads > 1:
            with pytest.raises(Exception, match="every head must keep the same number"):
                plan_from_kept(model, {group.group_id: range(1, group.n_units)})


def test_groups_without_maps_have_the_json_of_older_versions() -> None:
    old = tiny_model("sdt_v1").channel_groups()[0].to_dict()
    assert set(old) == {
        *("group_id", "kind", "n_units", "heads", "writers", "readers", "block", "title")
    }
    assert ChannelGroup.from_dict(old) == tiny_model("sdt_v1").channel_groups()[0]
    model = tiny_model("spikingresformer")
    summary = summarize(model, {"l2": rank(model, "l2")})
    again = ModelSummary.from_dict(json.loads(json.dumps(summary.to_dict())))
    assert again == summary
    again.check()


@pytest.mark.parametrize("ids", [("a+b", "c/4"), ("stage 1.x", "8"), ("x:0", "+/")])
def test_owners_allow_any_name_of_a_module(ids: tuple[str, str]) -> None:
    widths = dict(zip(ids, (8, 12), strict=True))
    for group_id, width in widths.items():
        assert axis_owners(group_id) == ((group_id,), 1)
        assert axis_width(group_id, widths) == width
        assert axis_width(divided_owner(group_id, 4), widths) == width // 4
    assert axis_owners(shared_owner(*ids)) == (ids, 1)
    assert axis_width(shared_owner(*ids), widths) == 20


def test_owners_of_shared_and_divided_axes() -> None:
    model = tiny_model("spikingresformer")
    owners = axis_groups(find_groups(model))
    assert axis_owners(owners["layers.1.1.W.weight", 0]) == (("stage1.stream", "layers.1.1.y2"), 1)
    assert axis_owners(owners["layers.1.1.W.weight", 1]) == (("stage1.stream",), 1)
    conv = owners["layers.1.2.conv.0.1.weight", 1]
    assert axis_owners(conv) == (("layers.1.2.hidden",), 8)


def test_streams_with_heads_are_streams() -> None:
    model, data = tiny_model("spikingresformer_cifar"), tiny_data("spikingresformer_cifar", 4)
    table: SensitivityTable = sweep(model, data, ratios=(0.5,))
    target = Target(saving=0.1, resource="memory")
    inner = Problem(table=table, target=target, scope="inner").groups()
    streams = [g.group_id for g in table.summary.groups if g.is_stream]
    assert streams == ["stage0.stream", "stage1.stream", "stage2.stream"]
    assert [g.group_id for g in inner] == [
        g.group_id for g in table.summary.groups if g.group_id not in streams
    ]
