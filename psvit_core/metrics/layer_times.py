"""Times the layers of a network, and finds the channel groups whose widths change a layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from psvit_core.callbacks import Tick, keep_going
from psvit_core.zoo.base import SpikingModel

#: Levels of the widths in ``mixed_levels``; a prime.
LEVELS = 5
_NOTHING = (nn.Identity, nn.Dropout)  # modules that do nothing in evaluation


# ---- what a layer depends on -----------------------------------------------------------------


def groups_of_layers(
    model: SpikingModel, smaller: Mapping[str, int], *, tick: Tick = keep_going
) -> dict[str, tuple[str, ...]]:
    """Return the groups that change the shapes which each layer works on.

    A layer is a module that runs and calls no other one. Runs the network on the meta device, once
    for each group.

    Args:
        model: The model.
        smaller: A width below the present one by group; other groups cannot be narrowed.
        tick: Called before each run; may raise to stop.

    Returns:
        The groups by layer, in the order in which layers first run.
    """
    whole = _shapes(model, {})
    groups: dict[str, list[str]] = {name: [] for name in whole}
    for group, width in smaller.items():
        tick()
        narrow = _shapes(model, {group: width})
        for name, shapes in whole.items():
            if narrow.get(name) != shapes:
                groups[name].append(group)
    return {name: tuple(found) for name, found in groups.items()}


def _shapes(model: SpikingModel, changed: Mapping[str, int]) -> dict[str, list[Any]]:
    """Return the shapes of inputs, outputs and parameters by layer of a network without weights."""
    empty = model.resized({**model.widths, **changed})
    shapes: dict[str, list[Any]] = {}
    running: list[str] = []
    callers: set[str] = set()

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            callers.update(running)
            running.append(name)
            shapes.setdefault(name, [tuple(p.shape) for p in module.parameters()])

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            running.pop()
            tensors = (t for t in tree_leaves((inputs, output)) if isinstance(t, Tensor))
            shapes[name] += [tuple(t.shape) for t in tensors]

        return hook

    for name, module in empty.named_modules():
        if not isinstance(module, _NOTHING):
            module.register_forward_pre_hook(before(name))
            module.register_forward_hook(after(name))
    dtype = next(empty.parameters()).dtype
    with torch.no_grad():
        empty(torch.empty(1, *model.input_shape, dtype=dtype, device="meta"))
    return {name: found for name, found in shapes.items() if name not in callers}


def mixed_levels(groups: Sequence[str], layers: Collection[Sequence[str]]) -> list[dict[str, int]]:
    """Return ``LEVELS ** 2`` choices of a level for each group that mix well within layers.

    They are an orthogonal array: two groups of one layer meet at all pairs of levels, as long as
    ``LEVELS + 1`` kinds of groups suffice to keep the groups of each layer apart. All groups are at
    level 0 in the first.

    Args:
        groups: The groups.
        layers: The groups of each layer.
    """
    kinds = _kinds(groups, layers)

    def level(kind: int, i: int, j: int) -> int:
        return j if kind == LEVELS else (i + kind * j) % LEVELS

    pairs = product(range(LEVELS), repeat=2)
    return [{g: level(kinds[g], i, j) for g in groups} for j, i in pairs]


def _kinds(groups: Sequence[str], layers: Collection[Sequence[str]]) -> dict[str, int]:
    """Give groups of one layer different numbers as far as ``LEVELS + 1`` numbers suffice."""
    beside: dict[str, set[str]] = {group: set() for group in groups}
    for layer in layers:
        for group in layer:
            beside[group].update(other for other in layer if other != group)
    kinds: dict[str, int] = {}
    for group in sorted(groups, key=lambda g: -len(beside[g])):
        taken = [kinds[other] for other in beside[group] if other in kinds]
        kinds[group] = min(range(LEVELS + 1), key=lambda kind: (taken.count(kind), kind))
    return kinds


# ---- timing ----------------------------------------------------------------------------------


class LayerTimer:
    """Times modules of a network while it runs in the block; ``ms`` has their milliseconds.

    On an accelerator it waits for each module, which makes the network as a whole slower.

    Args:
        network: The network.
        names: Modules to time, none within another.
    """

    def __init__(self, network: nn.Module, names: Collection[str]) -> None:
        self.ms = dict.fromkeys(names, 0.0)
        self._network = network
        self._hooks = ExitStack()
        self._start = 0.0

    def __enter__(self) -> Self:
        """Begin to time."""
        for name in self.ms:
            module = self._network.get_submodule(name)
            before = module.register_forward_pre_hook(self._begin)
            # The first of the hooks after it: others are not part of the module's time.
            after = module.register_forward_hook(self._end(name), prepend=True)
            self._hooks.callback(before.remove)
            self._hooks.callback(after.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        self._hooks.close()

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        _finish(inputs)
        self._start = time.perf_counter()

    def _end(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            _finish(output)
            self.ms[name] += 1000 * (time.perf_counter() - self._start)

        return hook


def _finish(values: Any) -> None:
    """Wait for an accelerator that computes the values."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and value.device.type == "cuda":
            torch.cuda.synchronize(value.device)
            return


def timed_run(network: nn.Module, x: Tensor) -> float:
    """Return the milliseconds of one forward pass."""
    _finish(x)
    start = time.perf_counter()
    _finish(network(x))
    return 1000 * (time.perf_counter() - start)
