"""Energy with memory access: counted by hand, and as SpikingJelly's counter counts it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based.op_counter import NeuromorphicMemoryAccessCounter
from spikingjelly.activation_based.op_counter.base import ModuleCounterMode
from spikingjelly.activation_based.op_counter.simple_energy import SimpleEnergyCostConfig
from torch import nn

from psvit_core.cli import main
from psvit_core.cli.output import measurement_text
from psvit_core.data import EvalSet
from psvit_core.errors import InvalidEnergyError
from psvit_core.evaluate import count_memory_access, measure
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.metrics.energy import ENERGY_MODELS, at_energy, energy_model, energy_pj
from psvit_core.neurons import eager_neurons
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import ENERGY_45NM, EnergyModel, Measurement, MemoryAccess
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.registry import build_model
from tests.tiny import tiny_data, tiny_input, tiny_model

ROOT = Path(__file__).parents[2]
WITH_MEMORY = [model for model in ENERGY_MODELS.values() if model.byte_pj]


def quiet() -> SpikingModel:
    """Build a small network in which nothing fires: T 2, 8 x 8 pixels, 8 channels, 1 block."""
    model = build_model(
        "sdt_v1",
        img_size_h=8,
        img_size_w=8,
        in_channels=1,
        num_classes=2,
        embed_dims=8,
        num_heads=1,
        depths=1,
        T=2,
        pooling_stat="0000",
    ).eval()
    for module in model.modules():
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.data.zero_()
    model.get_parameter("patch_embed.proj_conv1.weight").data.fill_(0.01)  # one spike is too weak
    return model


def blank(n_images: int) -> EvalSet:
    return EvalSet(
        spec="made",
        split="val",
        transform="none",
        ids=tuple(map(str, range(n_images))),
        labels=(0,) * n_images,
        classes=("0", "1"),
        load=lambda i: torch.zeros(1, 8, 8),
    )


#: Outputs of layers with a bias: proj, fc1 and fc2 (8, 32, 8 channels of 64 pixels), and the head.
BIASED = 2 * (64 * (8 + 32 + 8) + 2)
#: Potentials: the stem's 1, 2, 4 and 8 channels, the block's shortcut, q, k, v, fc1 (8 each) and
#: fc2 (32), on 64 pixels; the gate and the head, 8 each.
POTENTIALS = 2 * (64 * (1 + 2 + 4 + 8 + 5 * 8 + 32) + 8 + 8)


def test_a_network_counted_by_hand() -> None:
    model = quiet()
    found = count_memory_access(model, blank(3))
    first = 64 * 9  # the first convolution reads pixels: 3 x 3 weights for each of 64 outputs
    assert found == MemoryAccess(
        weight_bytes=4 * first,
        bias_bytes=4 * BIASED,
        state_read_bytes=4 * POTENTIALS,
        state_write_bytes=4 * POTENTIALS,
    )
    assert found.bytes == 116_240
    measured = measure(model, blank(3), memory=True)
    assert (measured.memory, measured.sops, measured.macs_real) == (found, 0, first)
    assert (measured.energy_pj, measured.energy_model) == (4.6 * first, ENERGY_45NM)
    at = at_energy(measured, energy_model("45nm-fp32-memory"))
    assert at.energy_pj == pytest.approx(4.6 * 576 + 24.96 * 116_240)
    at = at_energy(measured, energy_model("45nm-fp32-sram8k"))
    assert at.energy_pj == pytest.approx(4.6 * 576 + 1.25 * 116_240)


#: A spike inside meets 3 x 3 weights, one at the border 2 x 3, for each of 2 outputs.
@pytest.mark.parametrize(("row", "reads"), [(4, 18), (0, 12)])
def test_a_spike_reads_the_weights_that_it_meets(row: int, reads: int) -> None:
    model = quiet()
    before = count_memory_access(model, blank(1))

    def feed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = torch.zeros_like(inputs[0])
        x[0, 0, row, 4] = 1.0
        return (x,)

    model.get_submodule("patch_embed.proj_conv1").register_forward_pre_hook(feed)
    found = count_memory_access(model, blank(1))
    assert found == dataclasses.replace(before, weight_bytes=before.weight_bytes + 4 * reads)


def test_weights_and_biases_agree_with_spikingjelly() -> None:
    model, x = tiny_model("sdt_v1").eval(), tiny_input("sdt_v1")
    counter = NeuromorphicMemoryAccessCounter()
    with torch.no_grad(), eager_neurons(), ModuleCounterMode([counter], model=model):
        model(x)
    theirs = counter.get_counts()["Global"]
    data = dataclasses.replace(tiny_data("sdt_v1", len(x)), load=lambda i: x[i])
    found = count_memory_access(model, data)
    assert found.weight_bytes * len(x) == pytest.approx(theirs["weight_read_bytes"], rel=1e-9)
    assert found.bias_bytes * len(x) == theirs["bias_read_bytes"]
    assert found.state_read_bytes > 0  # of neurons that SpikingJelly does not know


def test_constants_are_those_of_the_sources() -> None:
    theirs = SimpleEnergyCostConfig.fp32()
    model = energy_model("45nm-fp32-memory")
    assert (model.mac_pj, model.sop_pj) == (theirs.e_mac_pj, theirs.e_ac_pj)
    assert model.byte_pj == theirs.e_memory_pj_per_byte == pytest.approx(8 * 3.12)
    page = (ROOT / "docs" / "definitions.md").read_text(encoding="utf-8")
    for model in ENERGY_MODELS.values():
        assert model.source
        (row,) = [line for line in page.splitlines() if f"| `{model.name}` |" in line]
        shown = [f"{model.mac_pj:g}", f"{model.sop_pj:g}", f"{model.byte_pj:g}"]
        cells = [cell.strip() for cell in row.strip(" |").split("|")]
        assert cells[1:4] == [*shown[:2], shown[2] if model.byte_pj else "not counted"]


def test_a_pruned_network_reads_less() -> None:
    model, data = tiny_model("sdt_v1").eval(), tiny_data("sdt_v1", 4)
    summary = summarize(model, {"l2": rank(model, "l2")})
    plan = plan_from_ratios(summary, {g.group_id: 0.5 for g in summary.groups}, criterion="l2")
    full, small = measure(model, data, memory=True), measure(model, data, plan, memory=True)
    assert small.memory == count_memory_access(apply_plan(model, plan), data)
    assert full.memory is not None
    assert small.memory is not None
    assert small.memory.state_read_bytes < full.memory.state_read_bytes
    assert small.memory.bytes < full.memory.bytes
    assert dataclasses.replace(small, memory=None) == measure(model, data, plan)


def test_what_was_not_counted_is_refused() -> None:
    measured = measure(tiny_model("sdt_v1").eval(), tiny_data("sdt_v1", 2))
    for model in WITH_MEMORY:
        with pytest.raises(InvalidEnergyError, match=f"{model.name}.* includes memory access"):
            at_energy(measured, model)
    with pytest.raises(InvalidEnergyError, match="A byte cannot need -1"):
        energy_model(byte_pj=-1)
    own = energy_model("45nm-int8", byte_pj=2)
    assert (own.name, own.mac_pj, own.byte_pj) == ("own", 0.23, 2)
    assert energy_pj(1, 1, own, memory_bytes=10) == pytest.approx(0.23 + 0.03 + 20)


def test_networks_of_ones_own_are_refused() -> None:
    model = tiny_model("sdt_v1").eval()
    model.__class__ = type("Own", (type(model),), {})
    with pytest.raises(InvalidEnergyError, match="network of your own"):
        count_memory_access(model, tiny_data("sdt_v1", 2))


def test_old_results_mean_arithmetic() -> None:
    old = {"name": "45nm-fp32", "mac_pj": 4.6, "sop_pj": 0.9, "source": ENERGY_45NM.source}
    assert EnergyModel.from_dict(old) == ENERGY_45NM
    assert ENERGY_45NM.to_dict() == old  # older programs read it
    measured = measure(tiny_model("sdt_v1").eval(), tiny_data("sdt_v1", 2), memory=True)
    at = at_energy(measured, WITH_MEMORY[0])
    assert Measurement.from_dict(json.loads(json.dumps(at.to_dict()))) == at
    before = {k: v for k, v in measured.to_dict().items() if k not in ("memory", "energy_model")}
    assert Measurement.from_dict(before) == dataclasses.replace(measured, memory=None)


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    command = ["evaluate", "sdt_v1_digits", "--limit", "5", "--energy", "45nm-fp32-memory"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["energy_model"]["name"] == "45nm-fp32-memory"
    accessed = sum(result["memory"].values())
    assert result["energy_pj"] == pytest.approx(
        4.6 * result["macs_real"] + 0.9 * result["sops"] + 24.96 * accessed
    )
    text = measurement_text(Measurement.from_dict(result))
    assert "(45nm-fp32-memory)" in text
    assert f"{result['memory']['state_write_bytes']:,} written" in text
    assert f"({result['memory']['weight_bytes']:,.0f} of weights)" in text
    assert main([*command[:-2], "--energy-byte", "-2"]) == 2
    assert "picojoules" in capsys.readouterr().err
