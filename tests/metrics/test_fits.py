"""Bytes that a model needs, counted by hand and in other ways, and what devices they fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

import psvit_core as psvit
from psvit_core.errors import InvalidSizeError, UnknownNameError
from psvit_core.groups import find_groups, shape_table
from psvit_core.metrics.devices import DEVICES, find_devices, fit, own_device
from psvit_core.metrics.fits import (
    ALL_STEPS,
    ONE_STEP,
    find_schedules,
    peaks_by_position,
    runs_step_by_step,
    spike_expansion,
)
from psvit_core.metrics.profile import peak_activation_bytes, state_neurons
from psvit_core.neurons import LIF, IntegerLIF
from psvit_core.plan.size import bytes_by_layer, size_at
from psvit_core.records import FitReport, ShapeTable, TensorShape
from tests import own_models
from tests.tiny import INTEGER_NAMES, QUICK_NAMES, tiny_input, tiny_model


def shape(name: str, role: str, *sizes: int) -> TensorShape:
    return TensorShape(name=name, role=role, sizes=sizes, groups=(None,) * len(sizes))


SHAPES = ShapeTable(
    tensors=(
        shape("stem.conv.weight", "weight", 8, 3, 3, 3),  # 216 values, 8 output channels
        shape("stem.conv.bias", "affine", 8),
        shape("stem.bn.weight", "affine", 8),
        shape("stem.bn.bias", "affine", 8),
        shape("stem.bn.running_mean", "buffer", 8),
        shape("stem.bn.running_var", "buffer", 8),
        shape("stem.bn.num_batches_tracked", "counter"),
        shape("head.weight", "weight", 10, 8),
        shape("position", "affine", 5),  # of no module
        shape("old.weight", "unused", 100, 100),
    ),
    terms=(),
)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float32", {"stem.conv": 4 * 224, "stem.bn": 128, "head": 320, "position": 20}),
        # Two bytes per weight; biases and BatchNorms stay.
        ("float16", {"stem.conv": 2 * 216 + 32, "stem.bn": 128, "head": 160, "position": 20}),
        # One byte per weight and 4 per output channel's scale; biases and BatchNorms stay.
        ("int8", {"stem.conv": 216 + 32 + 32, "stem.bn": 128, "head": 80 + 40, "position": 20}),
    ],
)
def test_bytes_by_layer_by_hand(precision: str, expected: dict[str, int]) -> None:
    assert bytes_by_layer(SHAPES, {}, precision) == expected
    assert size_at(SHAPES, {}, precision).bytes == sum(expected.values())


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="float16"):
        bytes_by_layer(SHAPES, {}, "int4")


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_weights_are_those_of_the_state_dict(name: str) -> None:
    model = tiny_model(name).eval()
    read = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if tensor.is_floating_point() and key not in model.unused
    }
    shapes = shape_table(model)
    assert sum(bytes_by_layer(shapes, {}).values()) == sum(t.nbytes for t in read.values())
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    layers = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, kinds)}
    half = sum(t.half().nbytes if key in layers else t.nbytes for key, t in read.items())
    assert sum(bytes_by_layer(shapes, {}, "float16").values()) == half


class Known(nn.Module):
    """Three layers whose live bytes are known: a shortcut keeps ``a`` alive."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(100, 1000, bias=False)
        self.wider = nn.Linear(1000, 3000, bias=False)
        self.back = nn.Linear(3000, 1000, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.wide(x)
        b = self.back(self.wider(a))
        return a + b


def test_peaks_of_a_known_network() -> None:
    x = torch.ones(1, 100)
    network = Known()
    found = peaks_by_position(network, x)
    assert found == {
        "wide": 4 * (100 + 1000),
        "wider": 4 * (100 + 1000 + 3000),
        "back": 4 * (100 + 1000 + 3000 + 1000),
        "": 4 * (100 + 1000 + 1000 + 1000),  # x, a, b and their sum
    }
    assert list(found) == ["", "wide", "wider", "back"]  # as they run
    assert network.training  # left as it was
    assert not network.wide._forward_hooks
    assert not network.wide._forward_pre_hooks


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_the_report_of_a_family(name: str) -> None:
    model = tiny_model(name).eval()
    report = psvit.check_fit(model, ["pico"])
    with torch.no_grad():  # real images, and no hooks
        peak = peak_activation_bytes(model, tiny_input(name)[:1].clone())
    first, *rest = report.schedules
    assert first.name == ALL_STEPS
    assert first.peak_activation_bytes == peak
    assert max(p.bytes for p in first.positions) == peak
    assert first.state_bytes == 0
    for schedule in rest:
        assert schedule.name == ONE_STEP
        assert schedule.state_bytes == 4 * sum(state_neurons(model).values())
        assert schedule.peak_activation_bytes < peak  # one step's activations
    assert report.ram_bytes == min(s.bytes for s in report.schedules)
    spans_steps = name.startswith("statten") or model.batch_coupled
    assert bool(rest) == (model.T > 1 and not spans_steps)
    assert model.T == tiny_model(name).T  # as it was
    assert FitReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_one_step_at_a_time_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run T steps by SpikingJelly's neurons, whose potentials stay between steps."""
    model, x = tiny_model(name, torch.float64).eval(), tiny_input(name, torch.float64)[:1]
    T = model.T
    if T == 1 or not runs_step_by_step(model):
        assert len(find_schedules(model)) == 1
        return
    with torch.no_grad():
        expected = model(x)
        model.set_time_steps(1)
        monkeypatch.setattr(LIF, "forward", neuron.LIFNode.forward)
        steps = [model(x) for _ in range(T)]
    assert not torch.equal(steps[0], steps[1])  # the potentials matter
    assert (torch.stack(steps).mean(0) - expected).abs().max() < 1e-9


def test_a_network_of_ones_own_runs_all_steps_at_once() -> None:
    """The state of its neurons, SpikingJelly's, is not known apart from its activations."""
    own_models.register()
    (only,) = find_schedules(psvit.load_model("own_spikformer"))
    assert (only.name, only.steps, only.state_bytes) == (ALL_STEPS, 4, 0)


def test_a_pruned_model_needs_less() -> None:
    model = tiny_model("sdt_v1").eval()
    kept = {g.group_id: range(g.n_units // 2) for g in find_groups(model) if g.heads is None}
    small = psvit.apply_plan(model, psvit.plan_from_kept(model, kept))
    before, after = (psvit.check_fit(m, ["pico"]) for m in (model, small))
    assert after.weight_bytes == sum(
        t.nbytes
        for name, t in small.state_dict().items()
        if t.is_floating_point() and name not in small.unused
    )
    assert after.weight_bytes < 0.6 * before.weight_bytes
    assert after.ram_bytes < before.ram_bytes


# ---- devices ---------------------------------------------------------------------------------


def test_flash_binds() -> None:
    found = fit(own_device(1000, 5000), weight_bytes=1001, ram_bytes=100)
    flash, ram = found.limits
    assert (found.fits, found.binds) == (False, "flash")
    assert (flash.memory, flash.spare_bytes) == ("flash", -1)
    assert (ram.memory, ram.spare_bytes) == ("RAM", 4900)


def test_ram_binds() -> None:
    found = fit(own_device(10**6, 5000), weight_bytes=1001, ram_bytes=6000)
    assert (found.fits, found.binds) == (False, "RAM")
    assert [limit.spare_bytes for limit in found.limits] == [998_999, -1000]


def test_one_memory_holds_both() -> None:
    assert fit(own_device(None, 1100), weight_bytes=1000, ram_bytes=100).fits  # no byte spare
    found = fit(own_device(None, 1099), weight_bytes=1000, ram_bytes=100)
    assert (found.fits, found.binds) == (False, "RAM")
    assert [limit.spare_bytes for limit in found.limits] == [-1]


def test_known_devices_bind_by_both() -> None:
    """The pico has 2 MiB of flash and 264 KiB of RAM."""
    (pico,) = find_devices(["pico"])
    assert fit(pico, 2 * 1024**2 + 1, 264 * 1024).binds == "flash"
    assert fit(pico, 2 * 1024**2, 264 * 1024 + 1).binds == "RAM"
    assert fit(pico, 2 * 1024**2, 264 * 1024).fits


def test_every_device_has_a_source() -> None:
    assert 8 <= len(DEVICES) <= 15
    for name, device in DEVICES.items():
        assert name == device.name
        assert len(device.source) > 20
        assert device.kind in ("microcontroller", "module", "neuromorphic")
        assert (device.flash_bytes is None) == (device.kind != "microcontroller")
        assert "core" in device.note or device.kind != "neuromorphic"
    assert {"microcontroller", "module", "neuromorphic"} == {d.kind for d in DEVICES.values()}


def test_the_documentation_has_every_device() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fits.md").read_text(encoding="utf-8")
    for device in DEVICES.values():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{device.name}` |")]
        assert device.title in row
        assert device.source in row
        assert device.url in row
        assert device.note in row
        sizes = re.findall(r"\| ([\d.]+) (KiB|MiB|MB|GB) (?=\|)", row)
        units = {"KiB": 1024, "MiB": 1024**2, "MB": 10**6, "GB": 10**9}
        stated = [float(number) * units[unit] for number, unit in sizes]
        assert stated == [n for n in (device.flash_bytes, device.ram_bytes) if n is not None]


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'stm32h743'.*jetson.*truenorth"):
        find_devices(["stm32h7"])
    with pytest.raises(UnknownNameError, match="pico2"):
        psvit.check_fit(tiny_model("sdt_v1").eval(), ["picoo"])


def test_no_size_is_refused() -> None:
    with pytest.raises(InvalidSizeError, match="flash has at least 1 byte; got 0"):
        own_device(0, 5)
    with pytest.raises(InvalidSizeError, match="RAM has at least 1 byte; got -1"):
        own_device(None, -1)


# ---- integer neurons -------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTEGER_NAMES)
def test_integers_become_spikes(name: str) -> None:
    """Count the values, and the highest level, in a run on an image."""
    model = tiny_model(name).eval()
    counted: dict[str, int] = {}
    highest = 0.0

    def count(label: str) -> object:
        def hook(module: IntegerLIF, inputs: object, output: Tensor) -> None:
            nonlocal highest
            counted[label] = counted.get(label, 0) + output.numel()
            highest = max(highest, float(output.max()) * module.norm)

        return hook

    for label, module in model.named_modules():
        if isinstance(module, IntegerLIF):
            module.register_forward_hook(count(label))  # type: ignore[arg-type]
    with torch.no_grad():
        model(tiny_input(name)[:1])
    found = spike_expansion(model)
    assert found is not None
    levels = 8 if name.endswith("_d8") else 4
    assert (found.T, found.levels, found.steps) == (model.T, levels, model.T * levels)
    assert 1 <= highest <= levels
    assert found.values == counted
    total = sum(counted.values())
    assert found.spike_bits == levels * total
    assert found.level_bits == (4 if levels == 8 else 3) * total  # 0 to 8, 0 to 4


def test_binary_neurons_have_no_expansion() -> None:
    assert spike_expansion(tiny_model("sdt_v1")) is None
