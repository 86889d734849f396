"""Kinds of networks that once failed: each is measured right, or refused in one line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from spikingjelly.activation_based import neuron
from torch import Tensor, nn
from torch.nn import functional as F

import psvit_core as psvit
from psvit_core.cli import main
from psvit_core.custom import CustomModel
from psvit_core.custom import plugin as plugins
from psvit_core.data import EvalSet
from psvit_core.errors import CheckpointError, ModelError, PsvitWarning
from psvit_core.evaluate import measure
from psvit_core.groups import plan_from_kept, summarize
from psvit_core.importance import rank
from psvit_core.incremental.executor import FullExecutor, IncrementalExecutor
from psvit_core.incremental.fusion import Folded
from psvit_core.incremental.graph import WeightLength
from psvit_core.incremental.propagation import record_network
from psvit_core.metrics.profile import profile_of
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import SensitivityTable, Transform
from psvit_core.runtime import Run
from psvit_core.sensitivity import local
from psvit_core.sensitivity.prepare import prepare as prepare_sweep
from psvit_core.sensitivity.sweep import sweep
from psvit_core.tasks.inspect import inspect_file
from psvit_core.zoo import cards
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash
from psvit_core.zoo.tensors import read_tensors
from tests import odd_networks as odd
from tests.odd_networks import CLASSES, NETWORKS, SHAPE, Chain, Fails, T, conv, ready

PLUGIN = Path(odd.__file__)
EXACT = Run(batch=5, precision="float64")
RATIOS = (0.34, 0.67)


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the networks for one test, with a store of its own."""
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    odd.register()
    yield
    cards._custom_cards.clear()
    plugins._state.loaded.clear()
    plugins._state.store = None


def load(name: str) -> CustomModel:
    model = psvit.load_model(name)
    assert isinstance(model, CustomModel)
    return model


def load_net(build: Callable[[], nn.Module], name: str = "own_net", **changes: Any) -> CustomModel:
    """Register and load a network of the test's own."""
    options = {"input_shape": SHAPE, "num_classes": CLASSES, "T": T, "data": "digits", **changes}
    psvit.register_model(name, build, **options)
    return load(name)


def some_images(name: str, n_images: int = 12) -> EvalSet:
    return psvit.load_data("digits", limit=n_images, transform=psvit.model_card(name).transform)


def swept(
    model: SpikingModel, data: EvalSet, run: Run = EXACT, *, incremental: bool = True
) -> SensitivityTable:
    """Run a sweep and check its executor; views with explicit widths need full runs."""
    before = prepare_sweep

    def prepare(*args: Any) -> Any:
        executor, batch = before(*args)
        assert isinstance(executor, IncrementalExecutor if incremental else FullExecutor)
        return executor, batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "prepare", prepare)
        return sweep(model, data, ratios=RATIOS, criterion="l2", run=run)


def assert_sweep_is_the_naive_loop(
    model: SpikingModel, name: str, *, incremental: bool = True
) -> SensitivityTable:
    """Compare every cell with the physically pruned model, in float64."""
    data = some_images(name)
    table = swept(model, data, incremental=incremental)
    unpruned = measure(model, data, run=EXACT)
    assert table.baseline_sops == unpruned.sops > 0
    assert table.baseline_accuracy == unpruned.accuracy
    assert table.rows
    for row in table.rows:
        plan = plan_from_ratios(table.summary, {row.group_id: row.prune_ratio}, criterion="l2")
        pruned = measure(model, data, plan, run=EXACT)
        assert (row.accuracy, row.sops) == (pruned.accuracy, pruned.sops), row.group_id
        assert row.kl == pytest.approx(pruned.kl, rel=1e-6, abs=1e-12)
        assert row.size == pruned.size
    assert any(row.kl > 1e-4 for row in table.rows)  # pruning changes something
    return table


def group_ids(model: SpikingModel) -> list[str]:
    return [group.group_id for group in psvit.find_groups(model)]


# ---- grouped convolutions --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "accepted", "grouped", "incremental"),
    [
        ("odd_grouped", ["tail.conv"], "middle.conv", True),
        ("odd_half_grouped", ["tail.conv"], "middle.conv", True),
        ("odd_multiplier", ["middle.conv", "tail.conv"], "deep.conv", True),
        ("odd_looped_multiplier", ["middle.conv", "tail.conv"], "deep.conv", True),
        ("odd_resnext", ["stem.conv"], "blocks.0.grouped.conv", False),
    ],
)
def test_grouped_convolutions_are_refused_by_name_and_the_rest_is_swept(
    name: str, accepted: list[str], grouped: str, incremental: bool
) -> None:
    model = load(name)
    assert group_ids(model) == accepted
    assert model.refused[grouped] == f"{grouped} is a grouped convolution."
    table = assert_sweep_is_the_naive_loop(model, name, incremental=incremental)
    assert {row.group_id for row in table.rows} == set(accepted)
    graph = record_network(model, model.input_shape).graph
    groups = [node.args[6] for node in _convolutions(model)]
    groups += [d.groups for n in graph.nodes for d in n.derived_weights() if isinstance(d, Folded)]
    assert not any(isinstance(n, WeightLength) for n in groups)  # fixed at every width
    assert max(groups) > 1


@pytest.mark.parametrize("name", ["odd_depthwise", "odd_looped_depthwise"])
def test_depthwise_convolutions_have_as_many_groups_as_their_weight_is_long(name: str) -> None:
    model = load(name)
    assert group_ids(model) == ["stem.conv", "middle.conv", "tail.conv"]
    assert_sweep_is_the_naive_loop(model, name, incremental="looped" in name)
    groups = [node.args[6] for node in _convolutions(model)]
    assert WeightLength("net.deep.conv.weight") in groups
    small = psvit.apply_plan(model, plan_from_kept(model, {"stem.conv": (4,)}))
    deep = small.get_submodule("net.deep.conv")
    assert isinstance(deep, nn.Conv2d)
    assert (deep.groups, deep.in_channels, deep.out_channels) == (1, 1, 1)


def _convolutions(model: SpikingModel) -> list[Any]:
    """Return the recorded convolutions that are not folded: the grouped ones."""
    graph = record_network(model, model.input_shape).graph
    return [node for node in graph.nodes if node.name == "conv2d"]


def test_macs_of_grouped_convolutions() -> None:
    model = load("odd_grouped")
    places, tail_places = 8 * 8, 4 * 4
    expected = places * (6 * 9 + 9 * 2 * 9) + tail_places * 6 * 9 * 9 + 6 * CLASSES
    assert plan_size(summarize(model, {}), None).macs == expected


# ---- shared parameters -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["odd_tied", "odd_same_memory"])
def test_shared_parameters_are_refused_by_name_counted_once_and_never_untied(
    name: str, tmp_path: Path
) -> None:
    model = load(name)
    assert group_ids(model) == ["stem.conv", "middle.conv", "tail.conv"]
    reason = "first.conv shares its weight with second.conv, so their widths cannot differ."
    assert model.refused["before.conv"] == model.refused["first.conv"] == reason
    unique = sum(p.numel() for p in NETWORKS["odd_tied"][0]().parameters())
    assert plan_size(summarize(model, {}), None).params == unique
    assert_sweep_is_the_naive_loop(model, name)

    small = psvit.apply_plan(model, plan_from_kept(model, {"stem.conv": (0, 2), "tail.conv": (1,)}))
    path = psvit.save_pruned(small, tmp_path / "small.safetensors")
    again = psvit.load_model(path)
    for pruned in (small, again):
        first, second = (pruned.get_submodule(f"net.{n}.conv") for n in ("first", "second"))
        assert first.weight is second.weight
        assert plan_size(summarize(pruned, {}), None).params == sum(
            p.numel() for p in pruned.parameters()
        )
    assert weights_hash(again) == weights_hash(small)
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))


def test_files_of_before_still_load(tmp_path: Path) -> None:
    """Version 0.1 saved a shared tensor under each name, and untied what it pruned."""
    model = load("odd_tied")
    small = psvit.apply_plan(model, plan_from_kept(model, {"stem.conv": (0, 2)}))
    path = psvit.save_pruned(small, tmp_path / "twice.safetensors")
    read = read_tensors(path)
    tensors, metadata = dict(read.tensors), dict(read.metadata)
    assert "net.second.conv.weight" not in tensors
    tensors["net.second.conv.weight"] = tensors["net.first.conv.weight"].clone()
    save_file(tensors, path, metadata=metadata)
    assert weights_hash(psvit.load_model(path)) == weights_hash(small)
    tensors["net.second.conv.weight"] += 1
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(net.second.conv.weight\)"):
        psvit.load_model(path)

    def untie() -> nn.Module:
        net = odd.tied()
        shared = net.first.conv.weight
        net.second.conv.weight = nn.Parameter(shared.detach().clone())
        return net

    before = load_net(untie, name="odd_tied")
    odd.register()
    plan = plan_from_kept(before, {"first.conv": (0, 3), "stem.conv": (1,)})
    untied = psvit.apply_plan(before, plan)
    again = psvit.load_model(psvit.save_pruned(untied, tmp_path / "untied.safetensors"))
    shapes = [again.get_parameter(f"net.{n}.conv.weight").shape for n in ("first", "second")]
    assert shapes == [(2, 6, 3, 3), (6, 2, 3, 3)]
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        assert torch.equal(again(x), untied(x))


def test_parameters_that_overlap_in_part_are_refused() -> None:
    with pytest.raises(ModelError, match=r"weight and middle.conv.weight are parts of the same"):
        load("odd_overlapping")


def test_weights_of_a_shared_parameter_must_agree(tmp_path: Path) -> None:
    state = odd.tied().state_dict()
    torch.save(state, tmp_path / "w.pth")
    assert isinstance(psvit.load_model("odd_tied", tmp_path / "w.pth"), CustomModel)
    state["second.conv.weight"] = state["second.conv.weight"] + 1
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="are one shared parameter of the network, but diff"):
        psvit.load_model("odd_tied", tmp_path / "other.pth")


def test_a_module_with_two_names_is_pruned_as_one_and_left_as_it_was(tmp_path: Path) -> None:
    model = load("odd_two_names")
    assert group_ids(model) == ["stem.conv", "middle.conv", "tail.conv"]
    before, data = weights_hash(model), some_images("odd_two_names")
    plan = plan_from_kept(model, {"tail.conv": (0, 3, 4), "middle.conv": (1, 2)})
    with torch.no_grad():
        psvit.silenced(model, plan)(torch.randn(2, *SHAPE))
    measure(model, data, run=Run(batch=5))
    rank(
        model,
        "taylor",
        calib=psvit.load_data(
            "digits", split="calib", limit=8, transform=psvit.model_card("odd_two_names").transform
        ),
    )
    assert weights_hash(model) == before
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())
    assert_sweep_is_the_naive_loop(model, "odd_two_names")
    small = psvit.apply_plan(model, plan)
    assert small.get_submodule("net.alias") is small.get_submodule("net.tail")
    again = psvit.load_model(psvit.save_pruned(small, tmp_path / "small.safetensors"))
    assert weights_hash(again) == weights_hash(small)


# ---- loops over time -------------------------------------------------------------------------


def direct_sops(model: SpikingModel, images: Tensor) -> float:
    """Count operations without the engine: every spike times the weights that it meets."""
    total = 0.0

    def count(layer: nn.Conv2d, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        nonlocal total
        x = inputs[0].flatten(0, -4).double()
        ones = torch.ones(layer.weight.shape, dtype=torch.float64)
        reached = F.conv2d(x, ones, stride=layer.stride, padding=layer.padding)
        total += float(reached.sum())

    handles = [
        model.get_submodule(f"net.{name}.conv").register_forward_hook(count)
        for name in ("middle", "tail")  # the stem reads images and the head a mean
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return total / len(images)


@pytest.mark.parametrize("name", ["odd_loop", "odd_sequence_loop"])
def test_sops_of_a_loop_over_time(name: str) -> None:
    model, data = load(name), some_images(name)
    (x,) = data.batches(len(data))
    exact = direct_sops(model.double(), x.double())
    table = assert_sweep_is_the_naive_loop(model, name)
    assert table.baseline_sops == pytest.approx(exact, rel=1e-12)
    for row in table.rows:
        plan = plan_from_ratios(table.summary, {row.group_id: row.prune_ratio}, criterion="l2")
        assert row.sops == pytest.approx(direct_sops(psvit.apply_plan(model, plan), x.double()))
    assert len({row.sops for row in table.rows}) > 3


@pytest.mark.parametrize(("name", "n_steps"), [("odd_loop", 3), ("odd_sequence_loop", T)])
def test_macs_of_a_loop_are_those_of_one_step(name: str, n_steps: int) -> None:
    model = load(name)
    assert n_steps == model.T
    expected = 64 * (6 * 9 + 6 * 6 * 9) + 16 * 6 * 6 * 9 + 6 * CLASSES
    assert plan_size(summarize(model, {}), None).macs == expected
    assert model.real_fed() == {"net.stem.conv": n_steps, "net.head": n_steps}


# ---- buffers, precision, frames --------------------------------------------------------------


def test_buffers_that_are_not_saved() -> None:
    model = load("odd_window")
    assert_sweep_is_the_naive_loop(model, "odd_window")
    assert model.get_buffer("net.window").device.type == "cpu"


def test_a_network_in_double_precision_with_a_bias() -> None:
    model, data = load("odd_double"), some_images("odd_double")
    assert model.dtype == torch.float64
    assert group_ids(model) == ["stem.conv", "middle.conv", "tail.conv"]
    assert_sweep_is_the_naive_loop(model, "odd_double")
    single = swept(model, data, Run(batch=5))
    assert single.baseline_accuracy == measure(model, data, run=Run(batch=5)).accuracy
    assert profile_of(model, data, EXACT).state_bytes == 0  # of the zoo's neurons only
    assert psvit.check_groups(model).accepted == ("stem.conv", "middle.conv", "tail.conv")


@pytest.mark.parametrize(
    "transform",
    [
        None,
        Transform(resize=8, crop=8),
        Transform(resize=8, crop=8, mean=(0.5,) * 2, std=(0.25,) * 2),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_event_networks_take_frames_of_their_channels(
    transform: Transform | None, dtype: Any, tmp_path: Path
) -> None:
    model = load_net(
        lambda: ready(Chain(conv(), channels=2), channels=2),
        input_shape=(2, 8, 8),
        transform=transform,
    )
    random = np.random.default_rng(0)
    frames = random.integers(0, 9, (10, 6, 2, 8, 8)).astype(dtype)
    np.savez(tmp_path / "events.npz", frames=frames, labels=np.arange(10))
    card = psvit.model_card("own_net")
    assert card.transform.channels == 2
    data = psvit.load_data(f"npz:{tmp_path / 'events.npz'}", transform=card.transform)
    model.set_time_steps(6)
    found = measure(model, data, run=EXACT)
    table = swept(model, data)
    assert found.sops == table.baseline_sops
    assert found.sops > 0
    x = torch.from_numpy(frames).double()
    if dtype is np.uint8:
        x = x / 255
        x = (x - 0.5) / 0.25 if transform and transform.mean == (0.5, 0.5) else x
    assert found.sops == pytest.approx(direct_sops(model.double(), x), rel=1e-6)


def test_a_transform_for_other_channels_is_refused() -> None:
    two = Transform(resize=8, crop=8, mean=(0.5, 0.5), std=(0.5, 0.5))
    with pytest.raises(ModelError, match="input_shape has 4 channels, but the transform has mean"):
        load_net(lambda: ready(Chain(conv())), input_shape=(4, 8, 8), transform=two)


# ---- what the user's code raises, at the command line ----------------------------------------


def fails(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return the one line of a command that ends with exit status 2."""
    assert main([*map(str, arguments)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = [ln for ln in captured.err.splitlines() if ln.startswith("psvit: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("odd_casts", r"float64, T=4.*the forward must not change types"),
        ("odd_casts_bias", r"RuntimeError: Input type \(float\) and bias type \(double\)"),
        ("odd_keeps", "its attribute kept keeps an activation with its gradient"),
        ("odd_locked", r"its attribute tail.guard cannot be copied \(TypeError: cannot pickle"),
        ("odd_masked", r"middle.conv.weight has a mask of torch.nn.utils.prune.*remove\("),
        ("odd_masked_bias", "middle.conv.bias has a mask of torch.nn.utils.prune"),
        ("odd_no_steps", "attribute T must be its number of time steps, a whole number; got None"),
        ("odd_word_steps", "number of time steps, a whole number; got 'four'"),
        ("odd_half_step", "number of time steps, a whole number; got 2.5"),
        ("odd_repr", "ValueError: the user's error"),
        ("odd_state", "ValueError: the user's error"),
        ("odd_alone", r"cannot run on 1 image \(1, 8, 8\) .*ValueError: the user's error"),
        ("odd_exits", "cannot be built: SystemExit: 0"),
        ("odd_reset", "ValueError: the user's error"),
        ("odd_other_steps", "T=6.*RuntimeError: a and b must have same reduction dim"),
    ],
)
def test_errors_of_the_users_code_are_one_line(
    name: str, cause: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = ("--plugin", PLUGIN)
    assert re.search(cause, fails(capfd, "groups", name, *own))
    if name in ("odd_alone", "odd_keeps", "odd_no_steps"):
        assert re.search(cause, fails(capfd, "evaluate", name, *own, "--limit", "4"))
        out = ("--limit", "4", "--out", tmp_path / "s.json")
        assert re.search(cause, fails(capfd, "sweep", name, *own, *out))


def test_other_time_steps_than_a_layers(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("evaluate", "odd_psn", "--plugin", PLUGIN, "--limit", "4", "--time-steps", "3")
    assert re.search(r"odd_psn cannot run on .*T=3.*reduction dim", fails(capfd, *arguments))


def test_a_forward_that_fails_later(capfd: pytest.CaptureFixture[str]) -> None:
    net = Fails("", RuntimeError("the user's error"))
    model = load_net(lambda: ready(net))
    vars(model.net)["where"] = "forward"  # as a forward that fails on some images only
    with pytest.raises(ModelError, match=r"cannot run on .*RuntimeError: the user's error"):
        measure(model, some_images("own_net"), run=EXACT)


def test_a_plugin_that_exits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "exits.py"
    path.write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    assert "SystemExit: 0" in fails(capfd, "groups", "odd_loop", "--plugin", path)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("middle.conv.weight", float("nan")),
        ("tail.conv.weight", float("inf")),
        ("middle.conv.bias", float("-inf")),
        ("stem.norm.weight", float("nan")),
        ("tail.norm.running_var", float("nan")),
    ],
)
def test_weights_that_are_not_finite_are_refused_as_in_the_zoo(
    tensor: str, value: float, tmp_path: Path
) -> None:
    message = f"{re.escape(tensor)} contains NaN or infinite values"
    with pytest.raises(CheckpointError, match=message):
        load_net(lambda: odd.with_value(tensor, value))
    torch.save(odd.with_value(tensor, value).state_dict(), tmp_path / "w.pth")
    load_net(lambda: ready(Chain(conv(bias=True))))
    with pytest.raises(CheckpointError, match=message):
        psvit.load_model("own_net", tmp_path / "w.pth")


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match="returns NaN for random images"):
        load_net(lambda: odd.with_value("norm.running_var", -1.0, odd.NormalizedLogits()))


# ---- reasons ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fire", "kind"),
    [
        (lambda: neuron.PSN(T=T), "PSN"),
        (lambda: neuron.SlidingPSN(k=2, step_mode="m"), "SlidingPSN"),
        (lambda: neuron.GatedLIFNode(T=T), "GatedLIFNode"),
        (odd.OwnNeuron, "OwnNeuron"),
    ],
)
def test_reasons_name_the_neuron(fire: Callable[[], nn.Module], kind: str) -> None:
    other = "which is not derived from SpikingJelly's BaseNode; no other neurons are supported."
    model = load_net(lambda: odd.fires_with(fire))
    expected = {
        f"{part}.conv": f"{part}.fire is a {kind}, {other}" for part in ("stem", "middle", "tail")
    }
    assert model.refused == {**expected, "head": "Its units are the model's outputs."}
    mixed = load_net(lambda: odd.fires_with(fire, everywhere=False))
    assert mixed.refused["middle.conv"] == expected["middle.conv"]
    assert group_ids(mixed) == ["stem.conv", "tail.conv"]
    assert_sweep_is_the_naive_loop(mixed, "own_net", incremental=kind != "SlidingPSN")


def test_a_neuron_that_cannot_run_on_shapes_is_named() -> None:
    with pytest.raises(ModelError, match=r"meta device .*Its neurons MaskedPSN are not supported"):
        load_net(lambda: odd.fires_with(lambda: neuron.MaskedPSN(k=2, T=T)))


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("parametrization", "by the parametrization WeightNorm"),
        ("spectral", "by the parametrization SpectralNorm"),
        ("hook", "by the hook WeightNorm"),
    ],
)
def test_reasons_name_the_computation_of_a_weight(how: str, cause: str) -> None:
    model = load_net(lambda: odd.computed(how))
    assert model.refused["stem.conv"] == model.refused["middle.conv"]
    assert model.refused["middle.conv"].startswith(f"middle.conv computes its weight {cause}")
    assert group_ids(model) == ["tail.conv"]
    assert_sweep_is_the_naive_loop(model, "own_net")


# ---- plugins that change, and that print -----------------------------------------------------

_SOURCE = """
import os, subprocess, sys
import psvit_core
from tests.odd_networks import CLASSES, SHAPE, T, Chain, conv, ready

class Net(Chain):
    def step(self, x):
        SPEAK
        x = self.tail(self.middle(self.stem(x)))
        return self.head(x.mean((-2, -1)))

def build():
    SPEAK
    net = Net(conv())
    return ready(net)

SPEAK
psvit_core.register_model("own_net", build, input_shape=SHAPE, num_classes=CLASSES, T=T,
                          data="digits")
"""


def plugin(tmp_path: Path, name: str, *changes: tuple[str, str]) -> Path:
    text = _SOURCE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / name
    path.write_text(text.replace("SPEAK", "pass"), encoding="utf-8")
    return path


def test_a_pruned_file_says_that_its_plugin_has_changed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plugins.load_plugin(str(plugin(tmp_path, "first.py")))
    model = load("own_net")
    small = psvit.apply_plan(model, plan_from_kept(model, {"middle.conv": (0, 1, 4)}))
    path = psvit.save_pruned(small, tmp_path / "small.safetensors")
    assert psvit.load_model(path).notes == ()

    def evaluate(plugin_file: Path) -> tuple[int, str]:
        plugins._state.loaded.clear()
        status = main(["evaluate", str(path), "--plugin", str(plugin_file), "--limit", "4"])
        lines = capfd.readouterr().err.splitlines()  # an untrained network is at chance
        return status, "".join(f"{line}\n" for line in lines if "better than guessing" not in line)

    assert evaluate(plugin(tmp_path, "same.py")) == (0, "")
    other = plugin(tmp_path, "other.py", ("x.mean((-2, -1))", "x.amax((-2, -1))"))
    status, text = evaluate(other)
    assert status == 0
    assert text.count("The plugin that registers own_net has changed since this file") == 1
    with pytest.warns(PsvitWarning, match="has changed since this file was written"):
        assert psvit.load_model(path).notes != ()

    changes = (
        ("Net(conv())", "Net(conv(bias=True))"),
        ("net = Net(conv())", "net = Net(conv()); net.middle = net.middle.conv"),
        ("net = Net(conv())", "1 / 0"),
    )
    for number, change in enumerate(changes):
        status, text = evaluate(plugin(tmp_path, f"changed_{number}.py", change))
        assert (status, text.count("\n")) == (2, 1), text
        assert "has changed since" in text or "ZeroDivisionError" in text


@pytest.mark.parametrize(
    "speak",
    [
        "print('spoken')",
        "sys.stdout.write('spoken'); sys.stdout.flush()",
        "os.write(1, b'spoken')",
        "subprocess.run(['echo', 'spoken'])",
    ],
)
def test_json_stays_pure_when_a_plugin_prints(
    speak: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = plugin(tmp_path, "speaks.py", ("SPEAK", speak))
    for command in (["groups", "own_net"], ["models"]):
        plugins._state.loaded.clear()
        assert main([*command, "--plugin", str(path), "--json"]) == 0
        os.write(1, b"")  # stdout is back
        captured = capfd.readouterr()
        assert json.loads(captured.out)
        assert "spoken" in captured.err


class Scaled(Chain):
    """Two blocks that multiply by one buffer, which the state dict does not contain."""

    def __init__(self) -> None:
        super().__init__(conv(4, 4), 4, 4)
        scale = torch.full((1,), 0.5)
        for block in (self.stem, self.middle):
            block.register_buffer("scale", scale, persistent=False)

    def step(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x) * self.stem.scale) * self.middle.scale
        out: Tensor = self.head(self.tail(x).mean((-2, -1)))
        return out


def test_a_shared_buffer_that_is_not_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_net(lambda: ready(Scaled()), name="scaled")
    small = psvit.apply_plan(model, plan_from_kept(model, {"tail.conv": (0, 2)}))
    again = psvit.load_model(psvit.save_pruned(small, tmp_path / "small.safetensors"))
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))


@pytest.mark.parametrize("dropped", ["first", "second"])
def test_a_file_with_one_name_of_a_shared_parameter(dropped: str, tmp_path: Path) -> None:
    state = dict(odd.tied().state_dict())
    del state[f"{dropped}.conv.weight"]
    torch.save(state, tmp_path / "one.pth")
    loaded = psvit.load_model("odd_tied", tmp_path / "one.pth")
    kept = "first" if dropped == "second" else "second"
    weight = loaded.get_parameter("net.first.conv.weight")
    assert torch.equal(weight, state[f"{kept}.conv.weight"])
    assert weight is loaded.get_parameter("net.second.conv.weight")


def test_a_network_without_a_readable_state_hides_no_file(tmp_path: Path) -> None:
    torch.save(NETWORKS["odd_grouped"][0]().state_dict(), tmp_path / "own.pth")
    report = inspect_file(str(tmp_path / "own.pth"))
    assert "odd_grouped" in report.fits
    assert any("odd_state was not compared: odd_state has no" in note for note in report.notes)
