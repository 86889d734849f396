"""Least-squares refit of the layers that lost inputs.

A layer that reads a pruned group gets the weights with which it comes nearest, over calibration
images, to the current that it gave in the unpruned network, from what it now reads in the pruned
one, whose earlier layers are refitted already. A ridge pulls towards the present weights.

Source:
    He et al. 2017, Channel Pruning for Accelerating Very Deep Neural Networks, arXiv 1707.06168.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.data import EvalSet
from psvit_core.groups import COMPUTE_LAYERS, axis_groups, find_groups
from psvit_core.records import LayerRefit, PrunePlan
from psvit_core.recover.lockstep import Halt, lockstep, run_once
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

RIDGE = 3e-2  # times the mean of the Gram matrix's diagonal
_CHUNK_BYTES = 64 << 20  # of the columns that are multiplied at a time


@dataclass(frozen=True)
class Refits:
    """What ``refit_readers`` did: per layer, and the most memory that it took, in bytes."""

    layers: tuple[LayerRefit, ...]
    statistics_bytes: int
    held_bytes: int


def pruned_readers(original: SpikingModel, plan: PrunePlan) -> list[str]:
    """Layers whose input channels ``plan`` prunes and whose weights can be refitted.

    Depthwise layers read nothing but their own channel; queries and keys are read by a product
    without weights.
    """
    found = []
    for group in find_groups(original):
        if len(plan.kept.get(group.group_id, range(group.n_units))) == group.n_units:
            continue
        for tensor, axis in group.readers:
            name, _, leaf = tensor.rpartition(".")
            if leaf == "weight" and axis == 1 and _can_refit(original, name):
                found.append(name)
    return found


def _can_refit(model: SpikingModel, name: str) -> bool:
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Linear) or _is_pointwise(layer):
        return True
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _is_pointwise(layer: nn.Module) -> bool:
    """Whether a convolution reads every input position for one output position."""
    return (
        isinstance(layer, (nn.Conv1d, nn.Conv2d))
        and layer.groups == 1
        and {*layer.kernel_size, *layer.stride} == {1}
        and not any(layer.padding)
    )


@torch.no_grad()
def refit_readers(
    small: SpikingModel,
    original: SpikingModel,
    plan: PrunePlan,
    data: EvalSet,
    run: Run,
    *,
    memory: int,
    tick: Callable[[], None],
) -> Refits:
    """Refit ``small``'s readers in place, in the order of the network; one forward of each model.

    Where the squared error over the images does not fall, a layer keeps its weights.

    Args:
        small: What ``plan`` makes of ``original``, placed, in evaluation mode.
        original: The unpruned model, placed, in evaluation mode.
        plan: The plan.
        data: Calibration images.
        run: Device, batch, precision.
        memory: Bytes that halted batches may hold.
        tick: Called before each step of a batch; may raise to stop.
    """
    owners = axis_groups(find_groups(original))
    names = run_once(original, pruned_readers(original, plan), data, run)
    layers: list[LayerRefit] = []
    statistics = held = 0
    steps = lockstep((small, original), names, data, run, memory=memory, tick=tick)
    with closing(steps):
        for met in steps:
            name = met[0][0].name
            kept = plan.kept.get(owners.get((f"{name}.weight", 0), ""))
            fit = _Fit(met[0][0].layer)
            for ours, theirs in met:
                target = theirs.output
                if kept is not None:
                    rows = torch.tensor(kept, device=target.device)
                    target = target.index_select(1, rows)
                fit.add(ours, target)
                tick()
            layers.append(fit.solve(name))
            for ours, _ in met:
                ours.again = layers[-1].kept
            statistics = max(statistics, fit.bytes)
            held = max(held, sum(h.held_bytes for halts in met for h in halts))
    return Refits(tuple(layers), statistics, held)


class _Fit:
    """Normal equations of one layer's change of weights, in float64: exact where spikes come in.

    With X the columns that the layer reads (a row of ones added where it has a bias), R what its
    present output lacks to the target: ``gram`` = X X^T, ``cross`` = R X^T, ``error`` = sum R^2.
    """

    def __init__(self, layer: nn.Module) -> None:
        assert isinstance(layer, COMPUTE_LAYERS)
        self.layer = layer
        self.weight = layer.weight.detach().double().flatten(1)
        n_out, n_in = self.weight.shape
        width = n_in + (layer.bias is not None)
        self.gram = self.weight.new_zeros(width, width)
        self.cross = self.weight.new_zeros(n_out, width)
        self.error = self.energy = 0.0

    @property
    def bytes(self) -> int:
        """Of the statistics."""
        return self.gram.nbytes + self.cross.nbytes

    def add(self, halt: Halt, target: Tensor) -> None:
        """Take in one batch: the layer's input and output, and the output wished for."""
        wanted = target.double().flatten(2) if target.dim() > 2 else target.double()[..., None]
        lacking = wanted - halt.output.double().view_as(wanted)  # (rows, out, positions)
        self.error += float(lacking.square().sum())
        self.energy += float(wanted.square().sum())
        width = 8 * len(self.gram) * wanted.shape[2]
        at_a_time = max(1, _CHUNK_BYTES // width)
        for x, rest in zip(halt.input.split(at_a_time), lacking.split(at_a_time), strict=True):
            columns = _columns(self.layer, x).double().transpose(0, 1).flatten(1)
            if self.layer.bias is not None:
                columns = torch.cat([columns, torch.ones_like(columns[:1])])
            self.gram.addmm_(columns, columns.T)
            self.cross.addmm_(rest.transpose(0, 1).flatten(1), columns.T)

    def solve(self, name: str) -> LayerRefit:
        """Change the layer's weights where that lowers the error; how it went."""
        n_in = self.weight.shape[1]
        ridge = RIDGE * self.gram.diagonal()[:n_in].mean()
        after = self.error
        if ridge > 0:  # else nothing ever came in
            penalty = torch.full_like(self.gram[0], float(ridge))
            penalty[n_in:] *= 1e-6  # a bias moves freely
            factor = torch.linalg.cholesky(self.gram + penalty.diag())
            change = torch.cholesky_solve(self.cross.T, factor).T
            after = self._take(change)
        unit = self.energy or 1.0
        return LayerRefit(
            layer=name, before=self.error / unit, after=after / unit, kept=after < self.error
        )

    def _take(self, change: Tensor) -> float:
        """Take over new weights, as they are stored, if that lowers the error; the error then."""
        layer, n_in = self.layer, self.weight.shape[1]
        weight = (self.weight + change[:, :n_in]).view(layer.weight.shape).to(layer.weight)
        stored = [weight.double().flatten(1) - self.weight]
        bias = None
        if layer.bias is not None:
            bias = (layer.bias.double() + change[:, n_in]).to(layer.bias)
            stored.append((bias.double() - layer.bias.double())[:, None])
        moved = torch.cat(stored, dim=1)
        gain = 2 * (moved * self.cross).sum() - (moved @ self.gram * moved).sum()
        if gain <= 0:
            return self.error
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
        return self.error - float(gain)


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output position reads: (rows, weights of an output, positions)."""
    if x.dim() == 2:
        return x[..., None]
    if not isinstance(layer, nn.Conv2d) or _is_pointwise(layer):
        return x.flatten(2)
    return F.unfold(
        x, layer.kernel_size, dilation=layer.dilation, padding=_pair(layer.padding),
        stride=layer.stride,
    )  # fmt: skip


def _pair(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    assert not isinstance(padding, str)
    return padding
