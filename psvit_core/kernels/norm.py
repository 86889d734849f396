"""BatchNorm in training as native loops, for tensors whose channels are adjacent in memory.

Sums over rows are of double precision, so results equal torch's within rounding. Everything else,
and a process without a C compiler, runs torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core.kernels.lif import trains_natively
from psvit_core.kernels.training import Norm, Rows, arithmetic


def batch_norm(  # torch's signature
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``torch.nn.functional.batch_norm``, in native loops where they apply."""
    parameters = [t for t in (weight, bias, running_mean, running_var) if t is not None]
    if weight is None or bias is None or not training or not _applies(x, parameters):
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    has_running = running_mean is not None and running_var is not None
    running = (running_mean, running_var) if has_running else None
    out: Tensor = _BatchNorm.apply(x, weight, bias, eps, running, momentum)
    return out


def _applies(x: Tensor, parameters: Sequence[Tensor]) -> bool:
    kind = arithmetic(x.dtype)
    return (
        x.dim() > 2
        and x.numel() > x.shape[1]
        and x.movedim(1, -1).is_contiguous()
        and all(p.dtype == kind and p.is_contiguous() for p in parameters)
        and trains_natively(x)
    )


def _rows(x: Tensor) -> Tensor:
    """Return (N, C, ...) with adjacent channels as (rows, C), without copying."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(x.movedim(1, -1).shape).movedim(-1, 1)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(  # torch passes no keywords
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
    ) -> Tensor:
        out, norm = Rows(_rows(x)).normalised(weight, bias, eps, running, momentum)
        ctx.save_for_backward(x, weight, norm.statistics, norm.scaling)
        return _like(out, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *kept = ctx.saved_tensors
        given = _rows(grad).contiguous()
        of_x, of_weight, of_bias = Rows(_rows(x)).gradients(given, weight, Norm(*kept))
        return _like(of_x, x), of_weight, of_bias, None, None, None
