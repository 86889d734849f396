"""A context in which the layers of a training step run in the form that is fastest on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from psvit_core.kernels.norm import batch_norm


class fast_layers(TorchFunctionMode):  # noqa: N801  # used as a function
    """Run BatchNorms in native loops inside the block, and depthwise convolutions in float32.

    Native loops apply in training, with channels last. Processors multiply matrices of bfloat16
    fast, but not single channels: in float32 a depthwise convolution takes half of the time.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace the two functions; call every other one."""
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def conv2d(  # torch's signature
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Compute ``torch.conv2d``; under autocast, in float32 if each group is one channel."""
    single = groups > 1 and weight.shape[1] == 1
    if not (single and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    with torch.autocast("cpu", enabled=False):
        wide = x.float(), weight.float(), None if bias is None else bias.float()
        y = torch.conv2d(*wide, stride, padding, dilation, groups)
    return y.to(torch.get_autocast_dtype("cpu"))


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: batch_norm,
    F.conv2d: conv2d,
}
