"""LIF neurons with the bits of SpikingJelly's multi-step LIF, in one pass over time.

``lif`` runs the neuron of every LIF family (tau 2, decayed input, hard reset to 0) from zero state
and returns only the spikes. SpikingJelly's CPU module passes over the tensor four to six times per
time step; the compiled loop (``native``) passes over it once. Without a C compiler, torch
operations run in place on chunks that fit the cache. Both give the module's bits
(``tests/kernels``). On CUDA, ``torch.compile`` makes one kernel of the recurrence (Triton), if it
works there and gives the bits of torch; otherwise SpikingJelly's torch operations run.

In training, the native loops (``training``) compute the gradient too: SpikingJelly's sigmoid or
arctangent surrogate with the reset detached. They keep the input only and compute the potentials
again. Otherwise the recurrence and its gradient run as torch operations on the potentials, or
through ``torch.compile`` after ``use_compiled()``.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from psvit_core.kernels import native, training

log = logging.getLogger(__name__)

#: Elements of a chunk: fits the L2 cache and stays below the size at which torch starts threads.
_CHUNK = 1 << 15
SURROGATE_ALPHA = 4.0  # slope of the sigmoid surrogate
ATAN_ALPHA = 2.0  # slope of the arctangent surrogate


@dataclass
class _Mode:
    """Kernels that this process uses.

    Attributes:
        compiled: Train with kernels of ``torch.compile``.
        plain: Use torch operations only.
        fused: Run inference on accelerators in one kernel, as long as it compiles.
    """

    compiled: bool = False
    plain: bool = False
    fused: bool = True


_mode = _Mode()


def use_compiled(on: bool = True) -> bool:
    """Train with ``torch.compile`` in this process, if it works and gives the same bits.

    Compilation takes seconds per process, so short commands leave it off.

    Returns:
        Whether compiled kernels are in use now.
    """
    _mode.compiled = on and _compiled_kernels_agree()
    return _mode.compiled


def kernels(device: str = "cpu") -> str:
    """Return what inference runs neurons with: ``native``, ``compiled`` or ``plain``."""
    kind = torch.device(device).type
    if kind != "cpu":
        fused = _mode.fused and not _mode.plain and _fused_kernel_agrees(kind)
        return "compiled" if fused else "plain"
    return "native" if runs_natively(torch.empty(0)) else "plain"


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Use torch operations only inside the block: no native and no compiled kernels."""
    before = _mode.compiled, _mode.plain
    _mode.compiled, _mode.plain = False, True
    try:
        yield
    finally:
        _mode.compiled, _mode.plain = before


def runs_natively(x: Tensor) -> bool:
    """Return whether neurons of such a tensor run in native loops whose bits were checked."""
    return not _mode.plain and native.available(x) and _native_agrees()


def trains_natively(x: Tensor) -> bool:
    """Return whether such a tensor is trained on in native loops."""
    return not _mode.plain and training.available(x) and _native_agrees()


@functools.cache
def _native_agrees() -> bool:
    """Compare the native loops with torch, bit for bit, on values around the thresholds."""
    x = torch.linspace(-3, 6, 4 * 257).reshape(257, 4).T.contiguous()
    integers = all(
        torch.equal(native.integer_lif(x, 4, 4, half_up), _integer_lif(x, 4, 4, half_up))
        for half_up in (False, True)
    )
    spikes = _chunked_recurrence(x, 1.0)
    if integers and all(torch.equal(loop(x, 1.0), spikes) for loop in (native.lif, training.lif)):
        return True
    log.warning("native neurons are off: their bits differ from those of torch")
    return False


@functools.cache
def _compiled_kernels_agree() -> bool:
    """Compile the recurrence once and compare it with torch on values around the threshold."""
    x = torch.linspace(-3, 3, 4 * 257).reshape(257, 4).T.contiguous()
    try:
        with torch.no_grad():
            spikes = _compiled_kernel(_recurrence)(x, 1.0)
    except Exception as error:  # compilers fail in many ways; training continues without
        log.warning("compiled LIF kernels are off: %s", str(error).splitlines()[0])
        return False
    if torch.equal(spikes, _recurrence(x, 1.0)):
        return True
    log.warning("compiled LIF kernels are off: their bits differ from those of torch")
    return False


@functools.cache
def _compiled_kernel(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True, fullgraph=True)


def lif(x: Tensor, v_threshold: float, *, atan: bool = False) -> Tensor:
    """Return the spikes of a LIF layer that starts from zero state and keeps none.

    Args:
        x: (T, ...) input current; time first.
        v_threshold: Firing threshold, above 0.
        atan: Train with the arctangent surrogate; otherwise with the sigmoid.

    Returns:
        Tensor shaped like ``x`` with values 0.0 and 1.0.

    Source:
        ``h = v + (x - v) / 2``, spike where ``h >= v_threshold``, then ``v = 0`` there.
    """
    trains = torch.is_grad_enabled() and x.requires_grad
    if has_torch_function_unary(x):  # recorded as one node of a graph
        surrogate = {"atan": True} if atan and trains else {}
        return handle_torch_function(lif, (x,), x, v_threshold, **surrogate)
    if trains:
        native_loops = not _mode.compiled and trains_natively(x)
        return (_NativeLIF if native_loops else _LIF).apply(x, float(v_threshold), atan)
    if x.device.type == "meta":
        return torch.empty_like(x)
    if x.is_cuda:
        return _accelerated_lif(x, v_threshold)
    order = _memory_order(x)
    dense = x.permute(order)
    if runs_natively(x):
        spikes = native.lif(_flat_steps(dense), v_threshold).view(dense.shape)
    elif x.dtype == torch.bfloat16:  # arithmetic is that of float32
        spikes = _bfloat16_spikes(dense, v_threshold)
    else:
        spikes = _chunked_recurrence(dense, v_threshold)
    return spikes.permute(_inverse(order))


def integer_lif(x: Tensor, levels: int, norm: int, half_up: bool = False) -> Tensor:
    """Return ``round(clamp(x, 0, levels)) / norm``, shaped like ``x``; it has no gradient.

    Args:
        x: Input current.
        levels: Largest integer level.
        norm: Divisor of the output.
        half_up: Round halves up; otherwise to the nearest even number.
    """
    if has_torch_function_unary(x):  # recorded as one node of a graph
        return handle_torch_function(integer_lif, (x,), x, levels, norm, half_up)
    if x.device.type == "meta":
        return torch.empty_like(x)
    if runs_natively(x) and _is_dense(x):
        return native.integer_lif(x, levels, norm, half_up)
    return _integer_lif(x, levels, norm, half_up)


def _integer_lif(x: Tensor, levels: int, norm: int, half_up: bool) -> Tensor:
    clamped = x.clamp(0, levels)
    return (clamped.add_(0.5).floor_() if half_up else clamped.round_()).div_(norm)


def _bfloat16_spikes(dense: Tensor, v_threshold: float) -> Tensor:
    if trains_natively(dense):
        return training.lif(_flat_steps(dense), v_threshold).view(dense.shape)
    return _chunked_recurrence(dense.float(), v_threshold).to(torch.bfloat16)


def _flat_steps(dense: Tensor) -> Tensor:
    """Return (T, n) with contiguous time steps, without copying a static image's repetitions."""
    if dense[0].is_contiguous():
        flat = dense.as_strided((dense.shape[0], dense[0].numel()), (dense.stride()[0], 1))
        if flat.stride()[0] in (0, flat.shape[1]):
            return flat
    return dense.reshape(dense.shape[0], -1).contiguous()


def _is_dense(x: Tensor) -> bool:
    return x.permute(sorted(range(x.dim()), key=lambda a: -x.stride()[a])).is_contiguous()


def _accelerated_lif(x: Tensor, v_threshold: float) -> Tensor:
    """Run neurons as one kernel, or in SpikingJelly's operations where that is not exact."""
    if x.dtype == torch.bfloat16:  # arithmetic is that of float32, as on the processor
        return _accelerated_lif(x.float(), v_threshold).to(torch.bfloat16)
    # In float16, a kernel would keep potentials in float32, which the operations round.
    exact = x.dtype in (torch.float32, torch.float64)
    if exact and not _mode.plain and _fused_kernel_agrees(x.device.type):
        order = _memory_order(x)
        dense = x.permute(order)
        spikes = _fused(_flat_steps(dense).contiguous(), v_threshold)
        if spikes is not None:
            return spikes.view(dense.shape).permute(_inverse(order))
    return _spikingjelly_lif(x, v_threshold)


def _fused(flat: Tensor, v_threshold: float) -> Tensor | None:
    """Return spikes of (T, n) from one kernel; None, then and later, if torch fails to compile."""
    if not _mode.fused:
        return None
    try:
        # .data: guards on a view depend on its base, so each kind of base would be compiled.
        return _compiled_kernel(_recurrence)(flat.data, float(v_threshold))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # also after too many kinds of input; SpikingJelly's operations run
        log.warning("neurons are no longer fused: %s", str(error).splitlines()[0])
        _mode.fused = False
        return None


@functools.cache
def _fused_kernel_agrees(kind: str) -> bool:
    """Compile the recurrence for a kind of device and compare it with torch, bit for bit."""
    try:
        x = torch.linspace(-3, 3, 4 * 257, device=kind).reshape(257, 4).T.contiguous()
        with torch.no_grad():
            agrees = torch.equal(_compiled_kernel(_recurrence)(x, 1.0), _recurrence(x, 1.0))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in many ways; SpikingJelly's operations run then
        log.warning("neurons on %s are not fused: %s", kind, str(error).splitlines()[0])
        return False
    if not agrees:
        log.warning("neurons on %s are not fused: their bits differ from those of torch", kind)
    return agrees


def _spikingjelly_lif(x: Tensor, v_threshold: float) -> Tensor:
    node = _spikingjelly_node(v_threshold)
    functional.reset_net(node)
    spikes: Tensor = node(x.contiguous())
    functional.reset_net(node)
    return spikes


@functools.cache
def _spikingjelly_node(v_threshold: float) -> nn.Module:
    node: nn.Module = neuron.LIFNode(
        tau=2.0, v_threshold=v_threshold, v_reset=0.0, decay_input=True, step_mode="m"
    )
    return node.eval()


def _memory_order(x: Tensor) -> list[int]:
    """Return time, then the other axes in memory order: channels-last tensors need no copy."""
    return [0, *sorted(range(1, x.dim()), key=lambda axis: -x.stride()[axis])]


def _inverse(order: list[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def _run_training_kernel(function: Callable[..., Tensor], *x: Tensor, v_threshold: float) -> Tensor:
    """Run a function of (T, ...) tensors, compiled if ``use_compiled`` turned that on.

    Compiled functions get (T, n) views, so that few shapes are compiled. torch refuses to compile
    one function for too many kinds of input. After that, or any other failure of the compiler, the
    process continues without compiled kernels.
    """
    if _mode.compiled:
        try:
            # .data: guards on a view depend on its base, so each kind of base would be compiled.
            flat = [t.reshape(t.shape[0], -1).contiguous().data for t in x]
            return _compiled_kernel(function)(*flat, v_threshold).view(x[0].shape)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways; training continues without
            log.warning("compiled LIF kernels are off: %s", str(error).splitlines()[0])
            _mode.compiled = False
    return function(*x, v_threshold)


def _recurrence(x: Tensor, v_threshold: float) -> Tensor:
    v = torch.zeros_like(x[0])
    spikes = []
    for t in range(x.shape[0]):
        h = v + (x[t] - v) * 0.5
        fired = h >= v_threshold
        spikes.append(fired.to(x.dtype))
        v = torch.where(fired, 0.0, h)
    return torch.stack(spikes)


def _chunked_recurrence(x: Tensor, v_threshold: float) -> Tensor:
    flat = x.detach().reshape(x.shape[0], -1)
    spikes = torch.empty_like(flat)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    for low in range(0, flat.shape[1], _CHUNK):
        chunk = slice(low, min(low + _CHUNK, flat.shape[1]))
        v = torch.zeros_like(flat[0, chunk])
        for current, out in zip(flat[:, chunk], spikes[:, chunk], strict=True):
            torch.sub(current, v, out=out)
            v.add_(out.mul_(0.5))
            torch.ge(v, v_threshold, out=out)
            torch.where(out > 0, zero, v, out=v)
    return spikes.view(x.shape)


def _membrane(x: Tensor, v_threshold: float) -> Tensor:
    """Return the membrane potentials before the reset, (T, ...), for the backward pass."""
    v = torch.zeros_like(x[0])
    potentials = []
    for t in range(x.shape[0]):
        h = v + (x[t] - v) * 0.5
        potentials.append(h)
        v = torch.where(h >= v_threshold, 0.0, h)
    return torch.stack(potentials)


def _gradient(grad: Tensor, h: Tensor, v_threshold: float) -> Tensor:
    """Return the gradient of the input from that of the spikes and the potentials ``h``."""
    return _backward_in_time(grad, h, v_threshold, _sigmoid_gradient)


def _atan_gradient(grad: Tensor, h: Tensor, v_threshold: float) -> Tensor:
    """Return ``_gradient`` with the arctangent surrogate."""
    return _backward_in_time(grad, h, v_threshold, _arctangent_gradient)


def _sigmoid_gradient(grad: Tensor, distance: Tensor) -> Tensor:
    gate = torch.sigmoid(distance * SURROGATE_ALPHA)
    return grad * (1.0 - gate) * gate * SURROGATE_ALPHA


def _arctangent_gradient(grad: Tensor, distance: Tensor) -> Tensor:
    return grad * (ATAN_ALPHA / 2) / (1 + (distance * (math.pi / 2 * ATAN_ALPHA)) ** 2)


def _backward_in_time(
    grad: Tensor, h: Tensor, v_threshold: float, spike_gradient: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the gradient of the input; a step passes its own to the step before, unless it fired.

    Args:
        grad: Gradient of the spikes.
        h: Potentials before the reset.
        v_threshold: Firing threshold.
        spike_gradient: Takes a step's gradient of the spikes and the potentials' distance from the
            threshold.
    """
    carry = torch.zeros_like(h[0])
    out: list[Tensor] = []
    for t in range(h.shape[0] - 1, -1, -1):
        from_later = torch.where(h[t] >= v_threshold, 0.0, carry)
        carry = (spike_gradient(grad[t], h[t] - v_threshold) + from_later) * 0.5
        out.append(carry)
    return torch.stack(out[::-1])


class _LIF(torch.autograd.Function):
    """The neuron with kept potentials; arithmetic of half precision is that of float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v_threshold: float, atan: bool) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        h = _run_training_kernel(_membrane, wide, v_threshold=v_threshold)
        ctx.save_for_backward(h)
        ctx.v_threshold, ctx.atan = v_threshold, atan
        return (h >= v_threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (h,) = ctx.saved_tensors
        function = _atan_gradient if ctx.atan else _gradient
        wide = _run_training_kernel(function, grad.to(h.dtype), h, v_threshold=ctx.v_threshold)
        return wide.to(grad.dtype), None, None


class _NativeLIF(torch.autograd.Function):
    """The neuron in native loops, which keep its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v_threshold: float, atan: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.v_threshold, ctx.atan = v_threshold, atan
        order = _memory_order(x)
        dense = x.permute(order)
        spikes = training.lif(_flat_steps(dense), v_threshold).view(dense.shape)
        return spikes.permute(_inverse(order))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        order = _memory_order(x)
        dense = x.permute(order)
        flat, flat_grad = _flat_steps(dense), _flat_steps(grad.permute(order))
        slope = ATAN_ALPHA if ctx.atan else SURROGATE_ALPHA
        out = training.lif_grad(flat, flat_grad, ctx.v_threshold, slope, atan=ctx.atan)
        return out.view(dense.shape).permute(_inverse(order)), None, None
