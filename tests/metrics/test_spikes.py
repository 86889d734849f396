"""SOPs and firing rates: known counts, SpikingJelly's counter, totals over batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from torch import Tensor

from psvit_core.groups import COMPUTE_LAYERS
from psvit_core.metrics.energy import energy_pj
from psvit_core.metrics.spikes import count_spikes
from psvit_core.neurons import NEURONS, eager_neurons
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import HeadSum, MaskedKeySum
from psvit_core.zoo.products import AttentionProduct, ChunkProduct, PatchScores, PatchValues
from psvit_core.zoo.registry import build_model
from tests.tiny import INTEGER_NAMES, NAMES, tiny_input, tiny_model, vector


def product_sops(module: AttentionProduct, inputs: tuple[Any, ...]) -> Tensor:
    """Return the accumulates of a product by running it again with ones for what spikes meet."""
    if isinstance(module, PatchScores):
        s, y, _ = inputs
        return torch.einsum("rp,rcn->rpcn", torch.ones_like(y[:, 0]), s).flatten(1)
    if isinstance(module, PatchValues):
        y, s, a, _ = inputs
        own = y.shape[1] // module.heads - s.shape[1] // module.heads
        ones = torch.ones(len(a), module.heads, own, a.shape[2], dtype=a.dtype)
        return (ones @ a).flatten(1)
    q, k, v = (x.flatten(0, -3).unflatten(1, (module.heads, -1)) for x in inputs[:3])
    ones_k, ones_v = torch.ones_like(k), torch.ones_like(v)
    if isinstance(module, ChunkProduct) or module.keys_first:
        keys = torch.einsum("rhcn,rhdn->rhcd", k, ones_v)
        queries = torch.einsum("rhcn,d->rhdn", q, torch.ones(v.shape[2], dtype=v.dtype))
        return torch.cat([keys.flatten(1), queries.flatten(1)], 1)
    queries = torch.einsum("rhcn,rhcm->rhnm", q, ones_k)
    values = torch.einsum("rhdn,m->rhdm", v, torch.ones(q.shape[3], dtype=v.dtype))
    return torch.cat([queries.flatten(1), values.flatten(1)], 1)


def naive_sops(model: SpikingModel, x: Tensor) -> Tensor:
    """Return SOPs per image by brute force: run every reader again with unit weights."""
    total = torch.zeros(len(x), dtype=torch.float64)

    def add(rows: Tensor) -> None:
        total.add_(rows.flatten(1).sum(1).view(-1, len(x)).sum(0))

    def on_conv(name: str):
        def hook(module, inputs, output) -> None:
            weight, bias = module.weight.data.clone(), module.bias
            module.weight.data.fill_(1.0)
            if bias is not None:
                kept = bias.data.clone()
                bias.data.zero_()
            add(module.forward(inputs[0]))
            module.weight.data.copy_(weight)
            if bias is not None:
                bias.data.copy_(kept)

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, COMPUTE_LAYERS) and name not in model.real_fed():
            handles.append(module.register_forward_hook(on_conv(name)))
        elif isinstance(module, HeadSum):
            handles.append(module.register_forward_hook(lambda _m, i, _o: add(i[0].flatten(0, 1))))
        elif isinstance(module, MaskedKeySum):
            handles.append(
                module.register_forward_hook(lambda _m, i, _o: add((i[0] * i[1]).flatten(0, 1)))
            )
        elif isinstance(module, AttentionProduct):
            handles.append(module.register_forward_hook(lambda m, i, _o: add(product_sops(m, i))))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_brute_force(name: str) -> None:
    model, x = tiny_model(name, torch.float64), tiny_input(name, torch.float64)
    with torch.no_grad(), count_spikes(model) as count:
        model(x)
    expected = naive_sops(model, x)
    if name in INTEGER_NAMES:  # levels are divided everywhere except before the last neuron
        levels = vector(name).meta.get("levels", 4)
        last = "head" if name == "sdt_v3" else "head_kd"
        has_last = last in dict(model.named_modules())
        head = naive_head_sops(model, last, x) if has_last else torch.zeros(len(x))
        expected = (expected - head) * levels + head
    torch.testing.assert_close(torch.cat(count.sops), expected, rtol=1e-12, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_real_fed_layers_read_no_spikes(name: str) -> None:
    model = tiny_model(name, torch.float64)
    real: set[str] = set()

    def hook(layer: str):
        def check(_module, inputs) -> None:
            levels = inputs[0] * model.spike_unit(layer)
            if not torch.equal(levels, levels.round()):
                real.add(layer)

        return check

    for layer, module in model.named_modules():
        if isinstance(module, COMPUTE_LAYERS):
            module.register_forward_pre_hook(hook(layer))
    with torch.no_grad():
        model(tiny_input(name, torch.float64))
    assert real == set(model.real_fed())


def naive_head_sops(model: SpikingModel, head: str, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(head).register_forward_pre_hook(
        lambda _m, i: seen.append(i[0].sum(1) * model.num_classes)
    )
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


def test_convolutions_agree_with_spikingjelly() -> None:
    model, x = tiny_model("sdt_v1"), tiny_input("sdt_v1")
    counter = SynOpCounter()
    with torch.no_grad(), eager_neurons(), DispatchCounterMode([counter]):
        model(x)
    with torch.no_grad(), count_spikes(model) as count:
        model(x)
    gates: list[float] = []
    for module in model.modules():
        if type(module).__name__ == "MaskedKeySum":
            module.register_forward_hook(lambda _m, _i, out: gates.append(float(out.sum())))
    with torch.no_grad():
        model(x)
    ours = float(torch.cat(count.sops).sum()) - sum(gates)  # theirs has no elementwise attention
    assert ours == pytest.approx(float(counter.get_total()), rel=1e-9)


def test_counts_are_per_image_and_sum_over_batches() -> None:
    model, x = tiny_model("sdt_v1"), tiny_input("sdt_v1")
    with torch.no_grad(), count_spikes(model) as whole:
        model(x)
    with torch.no_grad(), count_spikes(model) as split:
        for image in x:
            model(image.unsqueeze(0))
    assert torch.cat(whole.sops).tolist() == torch.cat(split.sops).tolist()
    assert whole.firing_rates() == pytest.approx(split.firing_rates())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_firing_rates_count_levels_of_integer_neurons() -> None:
    model, x = tiny_model("sdt_v3"), tiny_input("sdt_v3")
    sums: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, NEURONS):
            module.register_forward_hook(
                lambda m, _i, out, name=name: sums.__setitem__(name, float(out.mean()) * m.norm)
            )
    with torch.no_grad(), count_spikes(model) as count:
        model(x)
    assert count.firing_rates() == pytest.approx(sums)


def test_a_single_spike_at_border_and_centre() -> None:
    model = build_model(
        "sdt_v1",
        img_size_h=8,
        img_size_w=8,
        in_channels=1,
        num_classes=2,
        embed_dims=8,
        num_heads=1,
        depths=1,
        T=1,
        pooling_stat="0000",
    )
    conv = model.get_submodule("patch_embed.proj_conv1")  # 3 x 3, pad 1, 2 outputs

    def sops_of(row: int, column: int) -> float:
        x = torch.zeros(1, 1, 8, 8)
        x[0, 0, row, column] = 1.0
        feed = conv.register_forward_pre_hook(lambda module, inputs: (x,))
        with torch.no_grad(), count_spikes(model) as count:
            model(torch.zeros(1, 1, 8, 8))
        feed.remove()
        name = "patch_embed.proj_conv1"
        return float(count.reached[name][0]) * count.fan_out[name]

    assert (sops_of(4, 4), sops_of(0, 4), sops_of(0, 0)) == (18.0, 12.0, 8.0)


def test_energy_constants() -> None:
    assert energy_pj(macs_real=10, sops=100) == pytest.approx(4.6 * 10 + 0.9 * 100)
