"""A pretended CUDA device, for code that has to run without one.

Inside ``pretended_cuda``, tensors that are placed on ``cuda`` say so and compute on the processor.
As on a real device, operations that mix both devices fail, and numpy reads no tensor of the device.
So code paths, placement and results are tested; kernels and times are not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda:0")
#: Operations that read from or write to another device; indices may lie on the processor.
_CROSSING = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::index_put"}


class PretendedTensor(Tensor):
    """A tensor of the pretended device; ``held`` holds its values on the processor."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> PretendedTensor:
        """Wrap a tensor of the processor."""
        made: PretendedTensor = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
        )
        made.held = real
        return made

    def data_ptr(self) -> int:
        """Return where the values are."""
        return self.held.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return a copy; a parameter stays one."""
        copied: Tensor = PretendedTensor(self.held.clone())
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it static
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation on the processor."""
        return _run(func, args, kwargs or {})


class _Placement(TorchDispatchMode):
    """Puts tensors that are made on ``cuda`` onto the pretended device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    ours = [t for t in tensors if isinstance(t, PretendedTensor)]
    name = func._schema.name
    if ours and name not in _CROSSING:
        others = [t for t in tensors if not isinstance(t, PretendedTensor) and t.dim() > 0]
        if others:
            raise RuntimeError(f"{name}: expected all tensors on one device, not cuda:0 and cpu")
    asked = kwargs.get("device")
    on_device = bool(ours)
    if asked is not None:
        on_device = torch.device(asked).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu") if on_device else asked}
    elif name == "aten::copy_":
        on_device = isinstance(args[0], PretendedTensor)
    wrapped = {id(t.held): t for t in ours}
    result = func(*tree_map(_real, args), **tree_map(_real, kwargs))

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor) or not on_device:
            return value
        known = wrapped.get(id(value))  # an operation in place returns its argument
        return PretendedTensor(value) if known is None else known

    return tree_map(place, result)


def _real(value: Any) -> Any:
    return value.held if isinstance(value, PretendedTensor) else value


@contextmanager
def pretended_cuda(free: int = 1 << 34) -> Iterator[None]:
    """Pretend that this machine has a CUDA device with so many free bytes."""
    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (free, free),
        "current_device": lambda: 0,
        "get_rng_state_all": list,
        "set_rng_state_all": lambda states: None,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "reset_peak_memory_stats": lambda *_: None,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "get_device_name": lambda *_: "pretended",
    }
    run_thread = threading.Thread.run

    def run_placed(thread: threading.Thread) -> None:
        with _Placement():  # modes of torch belong to one thread
            run_thread(thread)

    torch._C._ensureCUDADeviceGuardSet()  # one that does nothing, where there is no CUDA
    # Otherwise a moved parameter keeps its class, which cannot compute on the processor.
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # numbers become tensors on the processor first
    try:
        with (
            mock.patch.multiple(torch.cuda, **answers),
            mock.patch.object(Tensor, "pin_memory", lambda self: self),
            mock.patch.object(threading.Thread, "run", run_placed),
            torch.backends.cudnn.flags(enabled=False),  # its operations exist on CUDA only
            _Placement(),
        ):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
