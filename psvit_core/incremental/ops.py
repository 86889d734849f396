"""Sets of torch operations that the incremental engine treats alike.

An operation is listed by function where torch has only one, and by name where it has several
(``torch.add``, ``Tensor.add``, ``Tensor.__add__``). ``fusion.convolve``, this package's own
convolution, is in none of the sets: it replaces nodes only after a graph has been recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from psvit_core.kernels import lif
from psvit_core.zoo.layers import bn_and_pad, scale_channels
from psvit_core.zoo.products import patch_scores, patch_values

Calls = frozenset[Callable[..., Any]]
Names = frozenset[str]

# ---- by function -----------------------------------------------------------------------------

CONVOLUTIONS_2D: Calls = frozenset({torch.conv2d, F.conv2d})
CONVOLUTIONS: Calls = CONVOLUTIONS_2D | {torch.conv1d, F.conv1d}
LINEAR: Calls = frozenset({F.linear, torch._C._nn.linear})
BATCH_NORM = F.batch_norm
#: Operations that treat every channel alone, with weights of one entry per channel.
NORMS: Calls = frozenset({BATCH_NORM, bn_and_pad, scale_channels})
NEURONS: Calls = frozenset({lif.lif, lif.integer_lif})

# ---- by name ---------------------------------------------------------------------------------

#: Reshapes that BatchNorm folding may skip between a convolution and its BatchNorm.
FOLDABLE_RESHAPES: Names = frozenset({"flatten", "unflatten"})

_RESHAPES: Names = FOLDABLE_RESHAPES | {
    "view",
    "expand",
    "unsqueeze",
    "squeeze",
    "transpose",
    "permute",
    "movedim",
}
#: Reshapes whose output is assumed to take no memory of its own. ``reshape``, ``contiguous`` and
#: ``__getitem__`` may copy; ``__get__`` is a property such as ``Tensor.T``.
MEMORY_SHARING: Names = _RESHAPES | {"__get__"}
#: Reshapes that native programs express as strides, or as a copy where no strides can. The name
#: ``__get__`` does not say which property is read, so it has no native operation.
LOWERED_RESHAPES: Names = _RESHAPES | {"reshape", "contiguous", "__getitem__"}

#: Name of an arithmetic operation -> name of the native operation.
ARITHMETIC = {
    "add": "add",
    "__add__": "add",
    "__radd__": "add",
    "sub": "sub",
    "__sub__": "sub",
    "mul": "mul",
    "__mul__": "mul",
    "__rmul__": "mul",
    "div": "div",
    "truediv": "div",
    "__truediv__": "div",
}
REDUCTIONS: Names = frozenset({"sum", "mean"})
MATRIX_PRODUCTS: Names = frozenset({"matmul", "__matmul__"})
#: ``F.max_pool2d`` calls itself ``boolean_dispatch``.
LOWERED_POOLS: Names = frozenset({"max_pool2d", "boolean_dispatch"})

#: Operations that treat every channel alone, or only move channels: if their input loses channels,
#: their output loses the same ones and is otherwise unchanged. Neurons are channelwise too.
CHANNELWISE: Names = frozenset().union(
    LOWERED_RESHAPES,
    MEMORY_SHARING,
    ARITHMETIC,
    REDUCTIONS,
    LOWERED_POOLS,
    {"_max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "clamp", "round", "relu"},
)

# ---- native programs -------------------------------------------------------------------------

#: Operations with a native counterpart, without ``fusion.convolve``. A call may still be refused
#: for its arguments (``lowering.UnsupportedError``).
LOWERED_CALLS: Calls = frozenset().union(
    NEURONS,
    CONVOLUTIONS_2D,
    LINEAR,
    {bn_and_pad, scale_channels, patch_scores, patch_values},
)
LOWERED_NAMES: Names = frozenset().union(
    LOWERED_RESHAPES,
    ARITHMETIC,
    REDUCTIONS,
    MATRIX_PRODUCTS,
    LOWERED_POOLS,
    {BATCH_NORM.__name__, "double"},
)
