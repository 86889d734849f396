"""Parameters that several layers of a network share.

A shared tensor is stored, counted and pruned as one. PyTorch lists it under the name of every layer
that has it; here the first name stands for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from psvit_core.errors import ModelError


def second_names(module: nn.Module) -> dict[str, str]:
    """Map every further name of a shared parameter or buffer to its first name."""
    first: dict[int, str] = {}
    further: dict[str, str] = {}
    for name, tensor in _named_tensors(module):
        known = first.setdefault(id(tensor), name)
        if known != name:
            further[name] = known
    return further


def sharing_layers(net: nn.Module) -> dict[str, str]:
    """Describe, by path, each layer and parameter that shares a parameter with another layer."""
    owners: dict[int, list[tuple[str, str]]] = {}
    for path, module in net.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((path, leaf))
    found: dict[str, str] = {}
    for places in owners.values():
        for path, leaf in places if len(places) > 1 else ():
            others = ", ".join(other for other, _ in places if other != path)
            for key in (path, f"{path}.{leaf}".lstrip(".")):
                found[key] = f"{path} shares its {leaf} with {others}"
    return found


class SharedTensors(nn.Module):
    """Mixin for a model that saves shared tensors once, under their first name."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state without further names of shared tensors."""
        full = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for name in second_names(self):
            full.pop(f"{prefix}{name}", None)
        return full

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state that may lack the further names of shared tensors, which stay shared."""
        further = second_names(self)
        full = with_second_names(state_dict, further)
        result = super().load_state_dict(full, strict, assign)
        tie_(self, further)
        return result

    def without_second_names(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a file's tensors without further names of shared ones, if their values agree."""
        further = second_names(self)
        differing = set(differing_names(tensors, further))
        return {k: t for k, t in tensors.items() if k not in further or k in differing}


def tie_(module: nn.Module, names: Mapping[str, str]) -> None:
    """Make tensors one, in place.

    Args:
        module: The module.
        names: The name of each tensor to replace, and the name of the tensor that replaces it.
    """
    tensors = dict(_named_tensors(module))
    for name, first in names.items():
        _replace_(module, name, tensors[first])


def untie_(module: nn.Module, paths: Iterable[str]) -> None:
    """Give the layers at these paths copies of the parameters that they share, in place."""
    wanted = tuple(paths)
    tensors = dict(_named_tensors(module))
    for name, first in second_names(module).items():
        if any(f"{n}.".startswith(f"{path}.") for n in (name, first) for path in wanted):
            parameter = tensors[name]
            copied = parameter.detach().clone()
            is_parameter = isinstance(parameter, nn.Parameter)
            _replace_(module, name, nn.Parameter(copied) if is_parameter else copied)


def share_memory_views_(net: nn.Module, name: str) -> None:
    """Make parameters that are different views of the same memory one parameter, in place.

    Args:
        net: The user's module.
        name: Its registered name, for the message.

    Raises:
        ModelError: If two tensors overlap only in part.
    """
    spans: dict[int, list[tuple[int, int, str, Tensor]]] = {}
    same: dict[str, str] = {}
    further = second_names(net)
    for path, tensor in _named_tensors(net):
        if tensor.is_meta or not tensor.numel() or path in further:
            continue
        begin = int(tensor.storage_offset())
        end = (
            begin + 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        )
        known = spans.setdefault(tensor.untyped_storage().data_ptr(), [])
        for first_begin, first_end, first, other in known:
            if end <= first_begin or first_end <= begin:
                continue
            layout = (tensor.dtype, tensor.shape, tensor.stride(), begin)
            if layout != (other.dtype, other.shape, other.stride(), first_begin):
                raise ModelError(
                    f"{name}: {path} and {first} are parts of the same memory. Let them share one "
                    "parameter, or give each its own copy."
                )
            same[path] = first
        known.append((begin, end, path, tensor))
    tie_(net, same)


def with_second_names(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return a file's tensors under every name of a shared one, if the file has any of them."""
    full = dict(tensors)
    for name, first in names.items():
        if name in tensors:
            full.setdefault(first, tensors[name])
    for name, first in names.items():
        if first in full:
            full.setdefault(name, full[first])
    return full


def differing_names(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> list[str]:
    """Return the names of ``tensors`` whose values differ from those of their first name."""
    return [
        name
        for name, first in names.items()
        if name in tensors and not (first in tensors and torch.equal(tensors[name], tensors[first]))
    ]


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _replace_(module: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    kind = owner._parameters if leaf in owner._parameters else owner._buffers
    kind[leaf] = tensor  # type: ignore[assignment]  # one of two dicts
