"""Conditions on the network that a user's ``build`` returns, each refused with its cause."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from spikingjelly.activation_based import base, neuron
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from psvit_core.custom.sharing import (
    differing_names,
    second_names,
    share_memory_views_,
    with_second_names,
)
from psvit_core.custom.users_code import one_line, users_code
from psvit_core.errors import CheckpointError, ModelError
from psvit_core.neurons import NEURONS

_TENSORS = ("weight", "bias")


def prepare_network(net: nn.Module, name: str) -> nn.Module:
    """Return a copy of a user's network that this package owns.

    Raises:
        ModelError: If the network cannot be copied, has masks, or has tensors that overlap.
        CheckpointError: If weights are not finite.
    """
    _refuse_masks(net, name)
    _detach_computed_(net)
    share_memory_views_(net, name)
    check_finite(net, name)
    try:
        return copy.deepcopy(net)
    except Exception as error:  # of any attribute of the user's modules
        raise ModelError(f"{name} cannot be copied: {_uncopyable(net, error)}") from error


def load_weights_(net: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load a file's tensors into a user's network, in place.

    Raises:
        CheckpointError: If they do not fit, or give layers that share a parameter different values.
    """
    further = second_names(net)
    tensors = with_second_names(tensors, further)
    if differing := differing_names(tensors, further):
        first = further[differing[0]]
        raise CheckpointError(
            f"The file does not fit {name}: {differing[0]} and {first} are one shared parameter of "
            "the network, but differ in the file."
        )
    try:
        net.load_state_dict(dict(tensors), strict=True)
    except Exception as error:  # the user's module may override the method
        details = " ".join(str(error).split())[:300]
        raise CheckpointError(f"The file does not fit {name}: {details}") from error
    check_finite(net, name)


def check_finite(net: nn.Module, name: str) -> None:
    """Raise ``CheckpointError`` if a saved tensor contains NaN or infinite values."""
    with users_code(f"{name} has no readable state"):
        state = net.state_dict()
    for key, tensor in state.items():
        is_float = isinstance(tensor, Tensor) and tensor.is_floating_point()
        if is_float and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name}: {key} contains NaN or infinite values.")


# ---- computed weights ------------------------------------------------------------------------


def computed_by(layer: nn.Module) -> str:
    """Return how a layer computes its weight or bias from others, or '' if they are parameters."""
    for leaf in _TENSORS:
        if parametrize.is_parametrized(layer, leaf):
            rules: Any = layer.parametrizations
            rule = type(rules[leaf][0]).__name__.lstrip("_")
            return f"computes its {leaf} by the parametrization {rule}"
        for hook in layer._forward_pre_hooks.values():
            if _hooked_tensor(hook) == leaf:
                return f"computes its {leaf} by the hook {type(hook).__name__}"
    return ""


def _hooked_tensor(hook: Any) -> str:
    """Return the name of the tensor that a hook of ``torch.nn.utils`` computes, or ''."""
    is_torchs = type(hook).__module__.startswith("torch.nn.utils.")
    return str(getattr(hook, "name", getattr(hook, "_tensor_name", ""))) if is_torchs else ""


def _detach_computed_(net: nn.Module) -> None:
    """Detach weights that hooks compute before each forward, so that they can be copied."""
    for module in net.modules():
        for hook in module._forward_pre_hooks.values():
            leaf = _hooked_tensor(hook)
            if isinstance(tensor := vars(module).get(leaf), Tensor):
                setattr(module, leaf, tensor.detach())


def _refuse_masks(net: nn.Module, name: str) -> None:
    for path, module in net.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                leaf = _hooked_tensor(hook)
                raise ModelError(
                    f"{name}: {path}.{leaf} has a mask of torch.nn.utils.prune. Make it permanent "
                    f"in the build function: torch.nn.utils.prune.remove(layer, {leaf!r})."
                )


# ---- attributes that cannot be copied --------------------------------------------------------


def _uncopyable(net: nn.Module, error: Exception) -> str:
    """Return the attribute that cannot be copied, the reason, and the way out."""
    for path, module in net.named_modules():
        for key, value in vars(module).items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value)
            except Exception as fault:
                place = f"{path}.{key}".lstrip(".")
                if any(t.grad_fn is not None for t in _tensors_in(value)):
                    return (
                        f"its attribute {place} keeps an activation with its gradient. Set it to "
                        "None before build returns, or run the network under torch.no_grad()."
                    )
                return (
                    f"its attribute {place} cannot be copied ({one_line(fault)}). Keep it outside "
                    "the network."
                )
    return one_line(error)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _tensors_in(item)


# ---- neurons ---------------------------------------------------------------------------------

_NEURON_PACKAGE = neuron.__name__


def is_unsupported_neuron(module: nn.Module) -> bool:
    """Return True for a spiking neuron whose silence the check of groups cannot rely on.

    These are SpikingJelly's neurons that are not derived from ``BaseNode`` (PSN, GatedLIFNode,
    ...), and modules with a state and no layers inside. Non-spiking output neurons are not
    included.
    """
    if isinstance(module, (neuron.BaseNode, *NEURONS)):
        return False
    classes = [cls for cls in type(module).__mro__ if cls.__module__.startswith(_NEURON_PACKAGE)]
    if classes:
        return not any("NonSpiking" in cls.__name__ for cls in classes)
    own = not type(module).__module__.startswith("spikingjelly.")
    return own and isinstance(module, base.MemoryModule) and not list(module.children())


def unsupported_neurons(net: nn.Module) -> str:
    """Return the kinds of a network's unsupported neurons, separated by commas."""
    return ", ".join(sorted({type(m).__name__ for m in net.modules() if is_unsupported_neuron(m)}))


def own_time_steps(net: nn.Module, name: str) -> int:
    """Return the number of time steps that a network runs itself: its attribute ``T``, or 1.

    Raises:
        ModelError: If the attribute is no number of time steps.
    """
    own: Any = getattr(net, "T", 1)
    try:
        if int(own) == own and own >= 1:
            return int(own)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: of a tensor
        pass
    raise ModelError(
        f"{name}: the network's attribute T must be its number of time steps, a whole number; got "
        f"{own!r}. Set it, or delete it if the network has one step."
    )
