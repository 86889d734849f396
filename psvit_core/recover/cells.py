"""Readers' refit for a sweep's cells, from the inputs that layers have in the unpruned network.

``readers`` runs the pruned network to refit it. A sweep has hundreds of cells, each of which prunes
one group. The readers of that group keep the inputs that they have in the unpruned network, less
the removed channels. So the Gram matrix of a reader's unpruned inputs contains the normal equations
of all its cells: the refit of each is a linear solve, and one forward over the calibration images
serves all of them. Penalty and refittable layers are those of ``readers``.

Where the readers of a group follow each other, as on a residual stream, later ones are refitted to
unpruned inputs too; the inputs that they will have are not known before the cell has run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from psvit_core.callbacks import Tick, keep_going
from psvit_core.data import EvalSet
from psvit_core.groups import COMPUTE_LAYERS
from psvit_core.records import ChannelGroup
from psvit_core.recover.lockstep import run_once
from psvit_core.recover.readers import (
    by_group,
    error_reduction,
    input_columns,
    rows_at_once,
    solved_change,
)
from psvit_core.recover.teacher import can_refit
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

#: Memory limit of the Gram matrices, in bytes. Where they take more, the calibration images run
#: several times.
GRAM_MEMORY = 2 << 30

Kept = Mapping[str, Sequence[int]]  # group -> units that stay


@dataclass(frozen=True)
class LayerWeights:
    """New weights of a layer for the input channels that stay.

    Attributes:
        inputs: Which weights of an output have an input that stays, (groups, weights) bool.
        values: Their new values, (number of those, outputs of one group).
        bias: The new bias, or None.
    """

    inputs: Tensor
    values: Tensor
    bias: Tensor | None

    def written_to(self, weight: Tensor, groups: int) -> Tensor:
        """Return a copy of the unpruned weight with the new values; lost inputs keep theirs."""
        by_input = weight.flatten(1).unflatten(0, (groups, -1)).transpose(1, 2).clone()
        by_input[self.inputs] = self.values
        return by_input.transpose(1, 2).reshape(weight.shape)


class CellRefits:
    """Refits of a model's readers for any units that stay.

    Args:
        model: The unpruned model, placed, in evaluation mode; its weights must not change.
        groups: Its channel groups.
        images: Calibration images; an attribute of the same name.
        run: Device, batch, precision; fits are made in float32 where it is reduced.
        memory: Bytes that Gram matrices may take; a single one may take more.
    """

    def __init__(
        self,
        model: SpikingModel,
        groups: Sequence[ChannelGroup],
        images: EvalSet,
        run: Run,
        memory: int = GRAM_MEMORY,
    ) -> None:
        self._model, self.images, self._memory = model, images, memory
        self._run = run.exact
        self._groups = {group.group_id: group for group in groups}
        self._known: dict[str, Tensor] = {}  # Gram matrices, if all fit into the memory

    @cached_property
    def _once(self) -> set[str]:
        """Layers that can be refitted: readers that run once a forward."""
        model, groups = self._model, self._groups.values()
        readers = dict.fromkeys(name for group in groups for name, _ in _readers(model, group))
        return set(run_once(model, list(readers), self.images, self._run))

    def of(
        self, cells: Mapping[str, Kept], tick: Tick = keep_going
    ) -> dict[str, dict[str, LayerWeights]]:
        """Return the layers that change in each cell, with their new weights.

        Layers that run more than once a forward keep their weights, and so do those whose error on
        the calibration images would not fall: nothing changes where the removed units were silent.

        Args:
            cells: Units that stay, by any key.
            tick: Called before each batch and each solve; may raise to stop.
        """
        found: dict[str, dict[str, LayerWeights]] = {key: {} for key in cells}
        lost = {key: self._lost_inputs(kept) for key, kept in cells.items()}
        names = dict.fromkeys(name for layers in lost.values() for name in layers)
        for part in self._parts([name for name in names if name in self._once]):
            grams = self._grams(part, tick)
            for key, layers in lost.items():
                for name in layers.keys() & grams.keys():
                    tick()
                    refit = refitted(self._model.get_submodule(name), grams[name], layers[name])
                    if refit is not None:
                        found[key][name] = refit
        return found

    def tensors(self, layers: Mapping[str, LayerWeights]) -> dict[str, Tensor]:
        """Return new weights as tensors of the unpruned model, by their name in the state dict."""
        tensors: dict[str, Tensor] = {}
        for name, new in layers.items():
            layer = self._model.get_submodule(name)
            assert isinstance(layer, COMPUTE_LAYERS)
            groups = getattr(layer, "groups", 1)
            tensors[f"{name}.weight"] = new.written_to(layer.weight.detach(), groups)
            if new.bias is not None:
                tensors[f"{name}.bias"] = new.bias
        return tensors

    def _lost_inputs(self, kept: Kept) -> dict[str, Tensor]:
        """Return, by reader, which input channels are removed: (groups, channels of one) bool."""
        found: dict[str, Tensor] = {}
        for group_id, units in kept.items():
            group = self._groups[group_id]
            removed = sorted(set(range(group.n_units)) - set(units))
            for name, key in _readers(self._model, group):
                layer = self._model.get_submodule(name)
                n_groups = getattr(layer, "groups", 1)
                shape = (n_groups, _n_inputs(layer))
                mask = found.setdefault(name, torch.zeros(shape, dtype=torch.bool))
                positions = group.maps.get(key, tuple(range(group.n_units)))
                mask.view(-1)[[positions[unit] for unit in removed]] = True
        return {name: mask for name, mask in found.items() if mask.any()}

    def _parts(self, names: Sequence[str]) -> Iterable[list[str]]:
        """Split layers into parts whose Gram matrices fit into the memory."""
        parts: list[list[str]] = [[]]
        used = 0
        for name in names:
            size = _gram_bytes(self._model.get_submodule(name))
            if parts[-1] and used + size > self._memory:
                parts.append([])
                used = 0
            parts[-1].append(name)
            used += size
        return [part for part in parts if part]

    def _grams(self, names: Sequence[str], tick: Tick) -> dict[str, Tensor]:
        """Return the Gram matrices of some layers, from earlier calls if all layers' fit."""
        if not all(name in self._known for name in names):
            every = sorted(self._once)
            together = list(self._parts(every))
            if len(together) > 1:
                return input_grams(self._model, names, self.images, self._run, tick)
            self._known = input_grams(self._model, every, self.images, self._run, tick)
        return {name: self._known[name] for name in names}


def _readers(model: SpikingModel, group: ChannelGroup) -> Iterable[tuple[str, str]]:
    """Yield the layers that read a group and can be refitted, with "tensor:axis"."""
    for tensor, axis in group.readers:
        name, _, leaf = tensor.rpartition(".")
        if leaf == "weight" and axis == 1 and can_refit(model, name):
            yield name, f"{tensor}:{axis}"


def _n_inputs(layer: nn.Module) -> int:
    """Return the number of input channels of each convolution group."""
    assert isinstance(layer, COMPUTE_LAYERS)
    return int(layer.weight.shape[1])


def _gram_width(layer: nn.Module) -> int:
    assert isinstance(layer, COMPUTE_LAYERS)
    return layer.weight[0].numel() + (layer.bias is not None)


def _gram_bytes(layer: nn.Module) -> int:
    return 8 * getattr(layer, "groups", 1) * _gram_width(layer) ** 2


@torch.no_grad()
def input_grams(
    model: SpikingModel, names: Sequence[str], images: EvalSet, run: Run, tick: Tick = keep_going
) -> dict[str, Tensor]:
    """Return the Gram matrices of layers' inputs over some images, in one forward.

    Args:
        model: The model, placed, in evaluation mode.
        names: Layers that run once a forward.
        images: Images; their labels are not used.
        run: Device, batch, precision.
        tick: Called before each batch; may raise to stop.

    Returns:
        By layer, X X^T of its input columns, with a row of ones if it has a bias: (groups, width,
        width), float64. Products are computed in the run's precision, which is exact for spikes.
    """
    layers = {name: model.get_submodule(name) for name in names}
    grams = {
        name: torch.zeros(
            (getattr(layer, "groups", 1), _gram_width(layer), _gram_width(layer)),
            dtype=torch.float64,
            device=run.device,
        )
        for name, layer in layers.items()
    }
    with ExitStack() as hooks:
        for name, layer in layers.items():

            def add(
                layer: nn.Module, inputs: tuple[Tensor, ...], gram: Tensor = grams[name]
            ) -> None:
                _add_inputs(gram, layer, inputs[0])

            hooks.callback(layer.register_forward_pre_hook(add).remove)
        hooks.enter_context(run.autocast)
        for x in images.batches(run.batch, run.dtype, run.workers):
            tick()
            model(x.to(run.device))
    return grams


def _add_inputs(gram: Tensor, layer: nn.Module, x: Tensor) -> None:
    """Add the input of one batch to a layer's Gram matrix, in place."""
    assert isinstance(layer, COMPUTE_LAYERS)
    x = x.to(layer.weight.dtype)
    n_positions = x[0].numel() // (_n_inputs(layer) * getattr(layer, "groups", 1))
    for part in x.split(rows_at_once(layer, n_positions, x.element_size())):
        columns = input_columns(layer, part)
        n_in = columns.shape[1]
        gram[:, :n_in, :n_in] += columns @ columns.mT
        if layer.bias is not None:
            total = columns.sum(2, dtype=torch.float64)
            gram[:, n_in, :n_in] += total
            gram[:, :n_in, n_in] += total
            gram[:, n_in, n_in] += columns.shape[2]


@torch.no_grad()
def refitted(layer: nn.Module, gram: Tensor, lost: Tensor) -> LayerWeights | None:
    """Refit a layer that loses input channels; its target is its own output.

    Args:
        layer: The layer with all inputs.
        gram: Gram matrix of its inputs (``input_grams``).
        lost: Input channels that are removed, (groups, channels of one) bool; every convolution
            group loses equally many.

    Returns:
        The new weights in the layer's type; None if they would not lower the error.
    """
    assert isinstance(layer, COMPUTE_LAYERS)
    weight = by_group(layer, layer.weight.detach().double())  # (groups, outputs, inputs)
    n_groups, n_out, n_all = weight.shape
    lost = lost.repeat_interleave(n_all // lost.shape[1], dim=1).to(gram.device)
    kept = ~lost
    with_bias = torch.nn.functional.pad(kept, (0, gram.shape[1] - n_all), value=True)
    n_kept = int(kept[0].sum())
    own, cross = [], []
    for i in range(n_groups):
        stays = with_bias[i].nonzero()[:, 0]
        goes = lost[i].nonzero()[:, 0]
        own.append(gram[i][stays][:, stays])
        cross.append(weight[i][:, goes] @ gram[i][goes][:, stays])
    grams, crosses = torch.stack(own), torch.stack(cross)
    change = solved_change(grams, crosses, n_kept) if crosses.any() else None
    if change is None:
        return None
    before = weight.transpose(1, 2)[kept].view(n_groups, n_kept, n_out).mT
    new = (before + change[..., :n_kept]).to(layer.weight.dtype)
    rounded = [new.double() - before]
    bias = None
    if layer.bias is not None:
        bias = (layer.bias.double() + change[..., n_kept].flatten()).to(layer.bias.dtype)
        rounded.append((bias.double() - layer.bias.double()).view(n_groups, n_out, 1))
    if error_reduction(torch.cat(rounded, dim=2), grams, crosses) <= 0:
        return None
    return LayerWeights(kept, new.mT.reshape(n_groups * n_kept, n_out), bias)
