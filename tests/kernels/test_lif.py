"""The kernels give SpikingJelly's bits and gradients; the neurons keep no state."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor

from psvit_core.kernels import lif
from psvit_core.neurons import LIF, IntegerLIF, eager_neurons, spikes_per_unit

DTYPES = (torch.float32, torch.float64)
THRESHOLDS = (1.0, 0.5)
PIECE = lif._CHUNK
SHAPES = (
    (4, 3, 8, 5, 7),
    (1, 2, 33),
    (4, 1),
    (4, PIECE - 1),
    (4, PIECE),
    (4, PIECE + 1),
    (1, 2 * PIECE + 37),
    (7, 3, 129),
)


def current(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Input current around the thresholds, so that some units fire and some do not."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype) * 1.5 + 0.6


def spikingjelly(x: Tensor, v_threshold: float, *, atan: bool = False) -> Tensor:
    with eager_neurons():
        spikes: Tensor = LIF(v_threshold, atan=atan)(x)
    return spikes


def gradients(
    neuron: Callable[[Tensor, float], Tensor], x: Tensor, v_threshold: float
) -> tuple[Tensor, Tensor]:
    """Spikes, and the gradient of a sum that weighs every spike differently."""
    x = x.detach().clone().requires_grad_()
    spikes = neuron(x, v_threshold)
    weights = current(tuple(spikes.shape), x.dtype, seed=9)
    (spikes * weights).sum().backward()
    assert x.grad is not None
    return spikes.detach(), x.grad


def tied(dtype: torch.dtype) -> Tensor:
    """Multiples of 1/8, as attention products are: potentials meet the threshold exactly."""
    steps = torch.arange(-8, 25, dtype=dtype) / 8
    return torch.cartesian_prod(steps, steps, steps).T.contiguous()  # (3, 33 ** 3)


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "comp"])
def compiled(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Plain kernels, and compiled ones where a compiler is installed."""
    if request.param and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("no C++ compiler")
    try:
        if request.param:
            torch._dynamo.reset()  # what one test compiled does not count for the next
        assert lif.use_compiled(request.param) is request.param
        yield request.param
    finally:
        lif.use_compiled(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("v_threshold", THRESHOLDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_spikingjellys(
    shape: tuple[int, ...], v_threshold: float, dtype: torch.dtype, compiled: bool
) -> None:
    x = current(shape, dtype)
    before = x.clone()
    got = lif.lif(x, v_threshold)
    assert got.dtype == dtype
    assert got.shape == x.shape
    assert torch.equal(got, spikingjelly(x, v_threshold))
    assert torch.equal(x, before)
    if x.numel() > 100:
        assert 0.02 < float(got.mean()) < 0.98


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("v_threshold", THRESHOLDS)
def test_ties_fire(v_threshold: float, dtype: torch.dtype, compiled: bool) -> None:
    x = tied(dtype)
    potentials = lif._membrane(x, v_threshold)
    ties = potentials == v_threshold
    assert int(ties.sum(dim=1).min()) > 100  # at every time step
    got = lif.lif(x, v_threshold)
    assert bool(got[ties].all())
    assert torch.equal(got, spikingjelly(x, v_threshold))


@pytest.mark.parametrize("T", [1, 4])
def test_pieces_do_not_show(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = current((T, 1000), torch.float32)
    whole = lif.lif(x, 1.0)
    for piece in (1, 7, 999, 1000, 1001):
        monkeypatch.setattr(lif, "_CHUNK", piece)
        assert torch.equal(lif.lif(x, 1.0), whole)


def layouts() -> dict[str, Tensor]:
    x = current((4, 6, 8, 10), torch.float32)
    return {
        "transposed": x.transpose(1, 3),
        "time not first in memory": x.permute(1, 0, 2, 3),
        "every second": x[:, ::2, :, ::3],
        "a static image over time": x[:1].expand(4, -1, -1, -1),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "one value": x[:, :1, :1, :1].expand(-1, 6, 8, 10),
    }


@pytest.mark.parametrize("layout", layouts())
def test_any_layout(layout: str, compiled: bool) -> None:
    x = layouts()[layout]
    before = x.clone()
    expected = spikingjelly(x.clone(memory_format=torch.contiguous_format), 1.0)
    assert torch.equal(lif.lif(x, 1.0), expected)
    assert torch.equal(x, before)
    spikes, grad = gradients(lif.lif, x, 1.0)
    assert torch.equal(spikes, expected)
    assert torch.allclose(grad, gradients(spikingjelly, x, 1.0)[1], atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("v_threshold", THRESHOLDS)
@pytest.mark.parametrize("shape", [(4, 3, 8, 5), (1, 50), (7, 41)], ids=str)
def test_gradients_are_spikingjellys(
    shape: tuple[int, ...], v_threshold: float, dtype: torch.dtype, tolerance: float, compiled: bool
) -> None:
    x = current(shape, dtype)
    spikes, grad = gradients(lif.lif, x, v_threshold)
    expected_spikes, expected = gradients(spikingjelly, x, v_threshold)
    assert torch.equal(spikes, expected_spikes)
    assert torch.allclose(grad, expected, rtol=tolerance, atol=tolerance)
    assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("v_threshold", THRESHOLDS)
@pytest.mark.parametrize("shape", [(4, 3, 8, 5), (1, 50)], ids=str)
def test_arctangent_gradients_are_spikingjellys(
    shape: tuple[int, ...], v_threshold: float, dtype: torch.dtype, tolerance: float, compiled: bool
) -> None:
    x = current(shape, dtype)
    spikes, grad = gradients(functools.partial(lif.lif, atan=True), x, v_threshold)
    through_layer = gradients(lambda x, v: LIF(v, atan=True)(x), x, v_threshold)
    expected_spikes, expected = gradients(
        functools.partial(spikingjelly, atan=True), x, v_threshold
    )
    assert torch.equal(spikes, expected_spikes)
    assert torch.allclose(grad, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(through_layer[1], grad)
    sigmoid = gradients(lif.lif, x, v_threshold)[1]
    assert float((sigmoid - grad).abs().max()) > 0.01


def test_gradients_at_ties(compiled: bool) -> None:
    x = tied(torch.float64)[:, ::7]
    assert torch.allclose(
        gradients(lif.lif, x, 1.0)[1], gradients(spikingjelly, x, 1.0)[1], rtol=1e-12, atol=1e-12
    )


def test_inference_and_training_spike_alike(compiled: bool) -> None:
    x = current((4, 1000), torch.float32)
    assert torch.equal(gradients(lif.lif, x, 1.0)[0], lif.lif(x, 1.0))
    with torch.no_grad():
        assert torch.equal(lif.lif(x.requires_grad_(), 1.0), lif.lif(x.detach(), 1.0))


@pytest.mark.slow
def test_compiled_kernels_take_any_shapes_in_one_process() -> None:
    """More shapes, thresholds and precisions than PyTorch recompiles one function for."""
    torch._dynamo.reset()
    try:
        assert lif.use_compiled()
        for dtype in DTYPES:
            for T in (1, 2, 4):
                for shape in ((T, 3), (T, 1, 3), (T, 2, 3, 4, 5), (T, 1, 3, 1, 1)):
                    for v_threshold in THRESHOLDS:
                        x = current(shape, dtype)
                        expected = spikingjelly(x, v_threshold)
                        assert torch.equal(lif.lif(x, v_threshold), expected)
                        assert torch.equal(gradients(lif.lif, x, v_threshold)[0], expected)
    finally:
        lif.use_compiled(False)


def test_hand_calculation() -> None:
    # h = v + (x - v) / 2: 0.75; 0.875; 1.4375 fires, v = 0; 1.0 fires
    x = torch.tensor([1.5, 1.0, 2.0, 2.0]).view(4, 1)
    assert lif.lif(x, 1.0).flatten().tolist() == [0, 0, 1, 1]
    assert lif._membrane(x, 1.0).flatten().tolist() == [0.75, 0.875, 1.4375, 1.0]


@pytest.mark.parametrize("reference", [False, True], ids=["fused", "spikingjelly"])
def test_lif_keeps_no_state(reference: bool) -> None:
    neuron = LIF()
    x = current((4, 2, 100), torch.float32)

    def run(x: Tensor) -> Tensor:
        if not reference:
            return neuron(x)
        with eager_neurons():
            return neuron(x)

    first = run(x)
    assert torch.equal(run(x), first)
    run(current((2, 5, 7), torch.float32))  # another length and shape
    assert torch.equal(run(x), first)
    assert torch.equal(run(x[:, :1]), first[:, :1])  # a short last batch
    assert neuron.v == 0.0
    assert not neuron.state_dict()


def test_eager_neurons_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    kernel = lif.lif

    def counted(x: Tensor, v_threshold: float) -> Tensor:
        calls.append(v_threshold)
        return kernel(x, v_threshold)

    monkeypatch.setattr(lif, "lif", counted)
    x = current((4, 10), torch.float32)
    with eager_neurons():
        LIF()(x)
        with eager_neurons():
            LIF()(x)
        LIF()(x)
    assert calls == []
    with pytest.raises(RuntimeError, match="inside"), eager_neurons():
        raise RuntimeError("inside")
    LIF(0.5)(x)
    assert calls == [0.5]


def test_use_compiled_off_is_the_default_and_sticks() -> None:
    assert lif._mode.compiled is False
    assert lif.use_compiled(False) is False


def test_compiler_failure_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("no compiler here\nsecond line")

    monkeypatch.setattr(lif, "_compiled_kernel", broken)
    lif._compiled_kernels_agree.cache_clear()
    try:
        assert lif.use_compiled() is False
        assert "no compiler here" in caplog.text
        assert "second line" not in caplog.text
        x = current((4, 100), torch.float32)
        assert torch.equal(lif.lif(x, 1.0), spikingjelly(x, 1.0))
    finally:
        lif._compiled_kernels_agree.cache_clear()
        lif.use_compiled(False)


# --- the integer neuron


@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_levels_round_half_to_even(dtype: torch.dtype) -> None:
    x = torch.tensor([-3, -0.5, 0, 0.5, 0.51, 1.5, 2.5, 3.5, 3.49, 4, 4.5, 9], dtype=dtype)
    levels = torch.tensor([0, 0, 0, 0, 1, 2, 2, 4, 3, 4, 4, 4], dtype=dtype)
    assert torch.equal(IntegerLIF(norm=1)(x), levels)
    assert torch.equal(IntegerLIF()(x), levels / 4)
    assert torch.equal(IntegerLIF(norm=1, levels=2)(x), levels.clamp(max=2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plain", [False, True])
def test_integer_levels_round_halves_up(plain: bool, dtype: torch.dtype) -> None:
    x = torch.tensor([-3, -0.5, 0, 0.49, 0.5, 1.5, 2.5, 3.5, 3.49, 4, 4.5, 9], dtype=dtype)
    levels = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 3, 4, 5, 8], dtype=dtype)
    with lif.plain_kernels() if plain else contextlib.nullcontext():
        assert torch.equal(IntegerLIF(norm=1, levels=8, half_up=True)(x), levels)
        assert torch.equal(IntegerLIF(norm=8, levels=8, half_up=True)(x), levels / 8)
        assert torch.equal(IntegerLIF(half_up=True)(x), levels.clamp(max=4) / 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("half_up", [False, True])
def test_integer_neurons_have_the_same_bits_without_a_compiler(
    half_up: bool, dtype: torch.dtype
) -> None:
    ties = torch.arange(-4096, 5 * 4096, dtype=dtype) / 512  # as attention products are
    below = torch.nextafter(ties, torch.full_like(ties, -9))
    above = torch.nextafter(ties, torch.full_like(ties, 99))
    x = torch.stack([ties, below, above, current((len(ties),), dtype)])
    special = torch.tensor([float("inf"), -float("inf"), -0.0], dtype=dtype)
    for values in (x, x.T, x.view(4, 2, -1).transpose(1, 2), x[:, ::3], special):
        for levels, norm in ((4, 4), (8, 8), (4, 1), (8, 1)):
            neuron = IntegerLIF(norm, levels, half_up)
            with lif.plain_kernels():
                expected = neuron(values)
            assert torch.equal(neuron(values), expected)
            training = neuron(values.clone().requires_grad_()).detach()
            assert torch.equal(training, expected)


def test_gradient_with_halves_up_stops_at_the_limits() -> None:
    x = torch.tensor([-0.1, 0.0, 1e-7, 0.5, 2.5, 3.999, 4.0, 9.0], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    (IntegerLIF(half_up=True)(x) * weights).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3 / 4, 4 / 4, 5 / 4, 6 / 4, 0, 0]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (2, 0, 3, 1)])
def test_integer_neurons_of_shapes_alone(order: tuple[int, ...]) -> None:
    x = current((2, 5, 3, 4), torch.float32).permute(order)
    real, made = lif.integer_lif(x, 4, 4), lif.integer_lif(x.to("meta"), 4, 4)
    assert (made.shape, made.stride(), made.dtype) == (real.shape, real.stride(), real.dtype)
    assert made.is_meta


def test_integer_gradient_passes_inside_the_levels() -> None:
    x = torch.tensor([-0.1, -1e-7, 0.0, 0.3, 2.5, 4.0, 4.1, 9.0], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    (IntegerLIF()(x) * weights).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3 / 4, 4 / 4, 5 / 4, 6 / 4, 0, 0]


def test_integer_training_and_inference_agree_and_leave_the_input() -> None:
    neuron = IntegerLIF()
    x = current((3, 1000), torch.float32) * 2
    before = x.clone()
    plain = neuron(x)
    assert torch.equal(x, before)
    assert torch.equal(neuron(x.clone().requires_grad_()).detach(), plain)
    assert torch.equal(neuron(x), plain)
    assert not neuron.state_dict()
    assert set(plain.unique().tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_spikes_per_unit() -> None:
    assert spikes_per_unit(LIF()) == 1
    assert spikes_per_unit(IntegerLIF()) == 4
    assert spikes_per_unit(IntegerLIF(norm=1)) == 1


def layouts_of(x: Tensor) -> list[Tensor]:
    """Return (T, B, C, H, W) with channels first, with channels last, and a repeated image."""
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    return [x, last, x[:1].expand(x.shape)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_neurons_of_accelerators_have_the_bits_of_spikingjelly(
    dtype: torch.dtype, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of an accelerator, on the processor; without ``compiles``, only its layouts."""
    if not compiles:
        monkeypatch.setattr(lif, "_compiled_kernel", lambda function: function)
    elif not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()  # what one test compiled does not count for the next
    monkeypatch.setattr(lif._mode, "fused", True)
    lif._fused_kernel_agrees.cache_clear()
    assert lif._fused_kernel_agrees("cpu")
    monkeypatch.setattr(lif, "_spikingjelly_lif", refuse)  # nothing else runs
    x = torch.randn(4, 2, 6, 5, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 2
    for given in layouts_of(x):
        for threshold in (1.0, 0.5):
            node = lif._spikingjelly_node(threshold)
            functional.reset_net(node)
            wanted = node(given.contiguous())
            functional.reset_net(node)
            assert torch.equal(lif._accelerated_lif(given, threshold), wanted)


def refuse(*_: object) -> NoReturn:
    raise AssertionError("not this one")


def test_neurons_of_accelerators_run_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(function: object) -> NoReturn:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(lif, "_compiled_kernel", fail)
    lif._fused_kernel_agrees.cache_clear()
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 2
    assert torch.equal(lif._accelerated_lif(x, 1.0), lif.lif(x, 1.0))
    assert "not fused: no compiler here" in caplog.text
    monkeypatch.setattr(lif, "_fused_kernel_agrees", lambda kind: True)  # it fails later
    monkeypatch.setattr(lif._mode, "fused", True)
    assert torch.equal(lif._accelerated_lif(x, 1.0), lif.lif(x, 1.0))
    assert "no longer fused: no compiler here" in caplog.text
    assert not lif._mode.fused
    monkeypatch.undo()
    lif._fused_kernel_agrees.cache_clear()
