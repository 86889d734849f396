"""Neuron kernels: the bits of SpikingJelly's multi-step LIF, in one pass over time.

``lif`` runs the neuron of every LIF family (tau 2, input decayed, hard reset to 0) from zero state
and returns spikes only. SpikingJelly's CPU module walks the tensor four to six times a step; here
a native loop (``native``) walks it once. Without a C compiler the recurrence is done in place on
cache-sized pieces. All give the module's bits (``tests/test_fused.py``). On CUDA SpikingJelly's own
kernels run.

Training needs the potentials: the recurrence and its gradient (SpikingJelly's sigmoid surrogate
with the reset detached) run as plain torch, or through ``torch.compile`` after ``use_compiled()``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from psvit_core import native

log = logging.getLogger(__name__)

_PIECE = (
    1 << 15
)  # elements a piece: fits the L2 cache, and below the size at which torch forks threads
SURROGATE_ALPHA = 4.0  # slope of the sigmoid surrogate in all published LIF models

_compiled = False
_plain = False


def use_compiled(on: bool = True) -> bool:
    """Choose compiled kernels for training in this process, if they compile and agree bit for bit.

    Compiling takes seconds once a process, so short commands leave it off.

    Returns:
        Whether compiled kernels are in use now.
    """
    global _compiled
    _compiled = on and _compiled_kernels_agree()
    return _compiled


def kernels() -> str:
    """Which kernels inference uses in this process now: ``native`` or ``plain``."""
    return "native" if runs_natively(torch.empty(0)) else "plain"


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Use neither native nor compiled kernels inside the block."""
    global _compiled, _plain
    before = _compiled, _plain
    _compiled, _plain = False, True
    try:
        yield
    finally:
        _compiled, _plain = before


def runs_natively(x: Tensor) -> bool:
    """Whether neurons of such a tensor run in native loops whose bits have been checked."""
    return not _plain and native.available(x) and _native_agrees()


@functools.cache
def _native_agrees() -> bool:
    """Once a process: compare the native loops bit for bit with plain torch, around the limits."""
    x = torch.linspace(-3, 6, 4 * 257).reshape(257, 4).T.contiguous()
    if torch.equal(native.lif(x, 1.0), _in_pieces(x, 1.0)) and torch.equal(
        native.integer_lif(x, 4, 4), _integer_lif(x, 4, 4)
    ):
        return True
    log.warning("native neurons are off: their bits differ from those of torch")
    return False


@functools.cache
def _compiled_kernels_agree() -> bool:
    """Compile once and compare with the plain recurrence on values around the threshold."""
    x = torch.linspace(-3, 3, 4 * 257).reshape(257, 4).T.contiguous()
    try:
        with torch.no_grad():
            got = _compiled_kernel(_recurrence)(x, 1.0)
    except Exception as error:  # any failure of a compiler we do not control: say so, go on without
        log.warning("compiled LIF kernels are off: %s", str(error).splitlines()[0])
        return False
    if torch.equal(got, _recurrence(x, 1.0)):
        return True
    log.warning("compiled LIF kernels are off: their bits differ from the plain recurrence")
    return False


@functools.cache
def _compiled_kernel(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True, fullgraph=True)


def lif(x: Tensor, v_threshold: float) -> Tensor:
    """Spikes of a LIF layer that starts from zero state and leaves none.

    Args:
        x: (T, ...) input current; time first.
        v_threshold: Firing threshold, above 0.

    Returns:
        Tensor shaped like ``x`` holding 0.0 or 1.0.

    Source:
        ``h = v + (x - v) / 2``, spike where ``h >= v_threshold``, then ``v = 0`` there.
    """
    if has_torch_function_unary(x):  # a step of its own on a tape
        return handle_torch_function(lif, (x,), x, v_threshold)
    if torch.is_grad_enabled() and x.requires_grad:
        return _LIF.apply(x, v_threshold)
    if x.device.type == "meta":
        return torch.empty_like(x)  # shapes are asked for, not spikes
    if x.is_cuda:
        return _by_spikingjelly(x, v_threshold)
    order = _memory_order(x)
    dense = x.permute(order)
    if runs_natively(x):
        flat = _steps(dense)
        spikes = native.lif(flat, v_threshold).view(dense.shape)
    else:
        spikes = _in_pieces(dense, v_threshold)
    return spikes.permute([order.index(axis) for axis in range(len(order))])


def integer_lif(x: Tensor, levels: int, norm: int) -> Tensor:
    """``round(clamp(x, 0, levels)) / norm`` without gradient, shaped like ``x``."""
    if has_torch_function_unary(x):  # a step of its own on a tape
        return handle_torch_function(integer_lif, (x,), x, levels, norm)
    if runs_natively(x) and _is_dense(x):
        return native.integer_lif(x, levels, norm)
    return _integer_lif(x, levels, norm)


def _integer_lif(x: Tensor, levels: int, norm: int) -> Tensor:
    return x.clamp(0, levels).round_().div_(norm)


def _steps(dense: Tensor) -> Tensor:
    """(T, n) with every step contiguous; a static image's repeated steps are not copied."""
    if dense[0].is_contiguous():
        flat = dense.as_strided((dense.shape[0], dense[0].numel()), (dense.stride()[0], 1))
        if flat.stride()[0] in (0, flat.shape[1]):
            return flat
    return dense.reshape(dense.shape[0], -1).contiguous()


def _is_dense(x: Tensor) -> bool:
    return x.permute(sorted(range(x.dim()), key=lambda a: -x.stride()[a])).is_contiguous()


def _by_spikingjelly(x: Tensor, v_threshold: float) -> Tensor:
    node = _node(v_threshold)
    functional.reset_net(node)
    spikes: Tensor = node(x.contiguous())
    functional.reset_net(node)
    return spikes


@functools.cache
def _node(v_threshold: float) -> nn.Module:
    node: nn.Module = neuron.LIFNode(
        tau=2.0, v_threshold=v_threshold, v_reset=0.0, decay_input=True, step_mode="m"
    )
    return node.eval()


def _memory_order(x: Tensor) -> list[int]:
    """Axes in the order of memory, time first: channels-last tensors need no copy."""
    return [0, *sorted(range(1, x.dim()), key=lambda axis: -x.stride()[axis])]


_Kernel = Callable[..., Tensor]


def _run(function: _Kernel, otherwise: _Kernel, *x: Tensor, v_threshold: float) -> Tensor:
    """Run a kernel compiled on (T, n) views: few shapes, so that few kernels are compiled.

    torch refuses to compile one function for too many kinds of input; then, as after any failure of
    the compiler, compiled kernels are switched off for the process and ``otherwise`` runs.
    """
    global _compiled
    if _compiled:
        try:
            # .data: a view's guards would speak of its base, and each kind of base compile anew.
            flat = [t.reshape(t.shape[0], -1).contiguous().data for t in x]
            return _compiled_kernel(function)(*flat, v_threshold).view(x[0].shape)
        except Exception as error:  # of a compiler that we do not control
            log.warning("compiled LIF kernels are off: %s", str(error).splitlines()[0])
            _compiled = False
    return otherwise(*x, v_threshold)


def _recurrence(x: Tensor, v_threshold: float) -> Tensor:
    v = torch.zeros_like(x[0])
    spikes = []
    for t in range(x.shape[0]):
        h = v + (x[t] - v) * 0.5
        fired = h >= v_threshold
        spikes.append(fired.to(x.dtype))
        v = torch.where(fired, 0.0, h)
    return torch.stack(spikes)


def _in_pieces(x: Tensor, v_threshold: float) -> Tensor:
    flat = x.detach().reshape(x.shape[0], -1)
    spikes = torch.empty_like(flat)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    for low in range(0, flat.shape[1], _PIECE):
        piece = slice(low, min(low + _PIECE, flat.shape[1]))
        v = torch.zeros_like(flat[0, piece])
        for current, out in zip(flat[:, piece], spikes[:, piece], strict=True):
            torch.sub(current, v, out=out)
            v.add_(out.mul_(0.5))
            torch.ge(v, v_threshold, out=out)
            torch.where(out > 0, zero, v, out=v)
    return spikes.view(x.shape)


def _membrane(x: Tensor, v_threshold: float) -> Tensor:
    """Membrane potential before the reset, (T, ...): all that the backward pass needs."""
    v = torch.zeros_like(x[0])
    potentials = []
    for t in range(x.shape[0]):
        h = v + (x[t] - v) * 0.5
        potentials.append(h)
        v = torch.where(h >= v_threshold, 0.0, h)
    return torch.stack(potentials)


def _spikes(h: Tensor, v_threshold: float) -> Tensor:
    return (h >= v_threshold).to(h.dtype)


def _gradient(grad: Tensor, h: Tensor, v_threshold: float) -> Tensor:
    carry = torch.zeros_like(h[0])
    out: list[Tensor] = []
    for t in range(h.shape[0] - 1, -1, -1):
        gate = torch.sigmoid((h[t] - v_threshold) * SURROGATE_ALPHA)
        kept = torch.where(h[t] >= v_threshold, 0.0, carry)
        grad_x = (grad[t] * (1.0 - gate) * gate * SURROGATE_ALPHA + kept) * 0.5
        out.append(grad_x)
        carry = grad_x
    return torch.stack(out[::-1])


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, v_threshold: float) -> Tensor:  # type: ignore[no-untyped-def]
        h = _run(_membrane, _membrane, x, v_threshold=v_threshold)
        ctx.save_for_backward(h)
        ctx.v_threshold = v_threshold
        return _spikes(h, v_threshold)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (h,) = ctx.saved_tensors
        return _run(_gradient, _gradient, grad, h, v_threshold=ctx.v_threshold), None
