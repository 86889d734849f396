"""Training loops give the values of SpikingJelly and torch, with and without a compiler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core.kernels import lif, training
from psvit_core.kernels.layers import fast_layers
from psvit_core.kernels.norm import batch_norm
from psvit_core.neurons import LIF, eager_neurons
from psvit_core.runtime import channels_last
from tests.kernels.test_lif import current
from tests.tiny import tiny_data, tiny_model

#: Precision of a gradient relative to its largest value.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 3e-6}


def spikes_and_grad(neuron: LIF, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    spikes = neuron(x)
    (spikes * weights).sum().backward()
    assert x.grad is not None
    return spikes.detach(), x.grad


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("atan", [False, True])
@pytest.mark.parametrize("shape", [(4, 2, 515, 3), (1, 513), (9, 1500)], ids=str)
def test_gradients_of_large_tensors_are_spikingjellys(
    shape: tuple[int, ...], atan: bool, dtype: torch.dtype, plain: bool
) -> None:
    neuron, x = LIF(0.5, atan=atan), current(shape, dtype)
    x[..., :2] *= 40  # far from the threshold, where the sigmoid's gradient vanishes
    weights = current(shape, dtype, seed=9)
    with eager_neurons():
        expected_spikes, expected = spikes_and_grad(neuron, x, weights)
    with lif.plain_kernels() if plain else contextlib.nullcontext():
        spikes, grad = spikes_and_grad(neuron, x, weights)
    assert torch.equal(spikes, expected_spikes)
    assert 0.02 < float(spikes.mean()) < 0.98
    assert float((grad - expected).abs().max()) <= TOLERANCES[dtype] * float(expected.abs().max())


def test_threads_do_not_show() -> None:
    x, weights = current((3, 200_000), torch.float32), current((3, 200_000), torch.float32, 1)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(spikes_and_grad(LIF(), x, weights))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("plain", [False, True])
def test_bfloat16_is_the_arithmetic_of_float32(plain: bool) -> None:
    x, weights = (current((4, 3000), torch.bfloat16, seed) for seed in (0, 1))
    with lif.plain_kernels() if plain else contextlib.nullcontext():
        spikes, grad = spikes_and_grad(LIF(), x, weights)
        with torch.no_grad():
            assert torch.equal(LIF()(x), spikes)
    assert spikes.dtype == grad.dtype == torch.bfloat16
    wide_spikes, wide_grad = spikes_and_grad(LIF(), x.float(), weights.float())
    assert torch.equal(spikes.float(), wide_spikes)
    assert torch.allclose(grad.float(), wide_grad, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("layout", ["channels last", "every second", "expanded gradient"])
def test_layouts(layout: str) -> None:
    x = current((4, 6, 8, 10), torch.float64)
    if layout == "channels last":
        x = x.unflatten(1, (2, 3)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = x.unflatten(0, (4, 2))
    elif layout == "every second":
        x = x[:, ::2, :, ::3]
    weights = torch.ones((), dtype=x.dtype).expand(x.shape)
    with eager_neurons():
        expected = spikes_and_grad(LIF(), x, weights)
    for got, wanted in zip(spikes_and_grad(LIF(), x, weights), expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


# --- BatchNorm


def normed(
    function: Callable[..., Tensor], x: Tensor, grad: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Results of one BatchNorm in training: output, gradients, running statistics."""
    channels = x.shape[1]
    x = x.clone().requires_grad_()
    weight, bias = (current((channels,), dtype, seed).requires_grad_() for seed in (2, 3))
    mean, var = torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype)
    y = function(x, mean, var, weight, bias, True, 0.1, 1e-5)
    y.backward(grad)
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    return {
        "y": y.detach(),
        "x": x.grad,
        "weight": weight.grad,
        "bias": bias.grad,
        "mean": mean,
        "var": var,
    }


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "shape", [(16, 3, 4, 4), (6, 70, 5, 3), (31, 8, 7), (3, 130, 1, 3)], ids=str
)
def test_batch_norm_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = current(shape, dtype) * 3 + 20  # a large mean is the hard case
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    grad = current(shape, dtype, seed=1)
    got, expected = (normed(f, x, grad, dtype) for f in (batch_norm, F.batch_norm))
    for name, wanted in expected.items():
        assert got[name].shape == wanted.shape
        difference = float((got[name] - wanted).abs().max())
        assert difference <= 20 * TOLERANCES[dtype] * float(wanted.abs().max()), name
    if training.available(x):
        assert got["y"].movedim(1, -1).is_contiguous()  # channels stay last


def test_batch_norm_of_bfloat16_is_that_of_float32_rounded() -> None:
    x = (current((8, 24, 6, 6), torch.bfloat16) * 3).contiguous(memory_format=torch.channels_last)
    grad = current((8, 24, 6, 6), torch.bfloat16, seed=1)
    got = normed(batch_norm, x, grad, torch.float32)
    wide = normed(F.batch_norm, x.float(), grad.float(), torch.float32)
    assert got["y"].dtype == got["x"].dtype == torch.bfloat16
    for name, wanted in wide.items():
        limit = 2e-2 if name in ("weight", "bias") else 5e-3  # torch's fallback sums in bfloat16
        difference = float((got[name].float() - wanted).abs().max())
        assert difference <= limit * float(wanted.abs().max()), name


def test_batch_norms_that_are_not_replaced() -> None:
    x = current((4, 6, 3, 3), torch.float64)
    one, weight, bias = torch.ones(6, dtype=x.dtype), *current((2, 6), torch.float64)
    last = x.contiguous(memory_format=torch.channels_last)
    for images, arguments in (
        (x, (None, None, weight, bias, True)),  # channels are not adjacent
        (last, (one, one, weight, bias, False)),  # not in training
        (last, (None, None, weight, None, True)),  # without a bias
    ):
        assert torch.equal(batch_norm(images, *arguments), F.batch_norm(images, *arguments))


# --- whole models


def test_depthwise_convolutions_stay_wide_under_autocast() -> None:
    x, weight = current((2, 6, 9, 9), torch.float32), current((6, 1, 3, 3), torch.float32, 1)
    bias = current((6,), torch.float32, 2)
    expected = F.conv2d(x.bfloat16().float(), weight, bias, padding=1, groups=6)
    with fast_layers():
        assert F.conv2d(x, weight, bias, padding=1, groups=6).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            got = F.conv2d(x.bfloat16(), weight, bias, padding=1, groups=6)
            dense = F.conv2d(x, weight.expand(6, 6, 3, 3), padding=1)
    assert got.dtype == dense.dtype == torch.bfloat16
    assert torch.equal(got, expected.bfloat16())


@pytest.mark.parametrize("name", ["sdt_v1", "spikingresformer_cifar", "qkformer_cifar"])
def test_gradients_of_a_model_in_channels_last(name: str) -> None:
    """The whole training step in float64: native loops against torch and SpikingJelly."""
    x = torch.stack([tiny_data(name, 4).load(i) for i in range(4)]).double()

    def gradients(context: Any, place: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        model = tiny_model(name).double().train()  # anew: training changes running values
        for parameter in model.parameters():
            parameter.data = place(parameter.data)
        with context:
            model(place(x)).square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients(eager_neurons(), lambda tensor: tensor)
    got = gradients(fast_layers(), channels_last)
    assert got.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 0
    for layer, wanted in expected.items():
        assert float((got[layer] - wanted).abs().max()) <= 1e-9 * scale, layer
