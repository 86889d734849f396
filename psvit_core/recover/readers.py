"""Least-squares refit of the layers that lost inputs.

Each layer that reads a pruned group gets new weights, fitted on calibration images. Its inputs are
those in the pruned network, whose earlier layers are already refitted; its target is its output in
the unpruned network. A ridge penalty keeps the weights close to the current ones.

Source:
    He et al. 2017, Channel Pruning for Accelerating Very Deep Neural Networks, arXiv 1707.06168.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.callbacks import Tick
from psvit_core.groups import COMPUTE_LAYERS
from psvit_core.records import ChannelGroup, LayerRefit, PrunePlan
from psvit_core.recover.lockstep import Halt
from psvit_core.recover.teacher import Teacher, is_pointwise
from psvit_core.selection import remaining_positions
from psvit_core.zoo.base import SpikingModel

RIDGE = 3e-2  # as a multiple of the mean diagonal of the Gram matrix
_CHUNK_BYTES = 32 << 20  # memory limit of the columns in one product


@dataclass(frozen=True)
class Refits:
    """Result of ``refit_readers``: the report of each layer, and the peak memory in bytes."""

    layers: tuple[LayerRefit, ...]
    statistics_bytes: int
    held_bytes: int


def pruned_readers(groups: Sequence[ChannelGroup], plan: PrunePlan) -> set[str]:
    """Return the layers whose input channels ``plan`` prunes.

    Excludes depthwise layers, where each channel reads only itself, and the readers of queries and
    keys, which are products without weights.
    """
    found = set()
    for group in groups:
        if len(plan.kept.get(group.group_id, range(group.n_units))) == group.n_units:
            continue
        for tensor, axis in group.readers:
            name, _, leaf = tensor.rpartition(".")
            if leaf == "weight" and axis == 1:
                found.add(name)
    return found


@torch.no_grad()
def refit_readers(
    small: SpikingModel, teacher: Teacher, plan: PrunePlan, *, memory: int, tick: Tick
) -> Refits:
    """Refit ``small``'s readers in place, in network order, with one forward of each model.

    A layer keeps its weights unless the refit lowers its squared error over the images.

    Args:
        small: The pruned model of ``plan``, placed, in evaluation mode.
        teacher: The unpruned model and the images.
        plan: The plan.
        memory: Memory limit of halted batches, in bytes.
        tick: Called before each step of a batch; may raise to stop.
    """
    readers = pruned_readers(teacher.groups, plan)
    names = [name for name in teacher.layers if name in readers]
    layers: list[LayerRefit] = []
    statistics = held = 0
    with closing(teacher.together(small, names, memory, tick)) as steps:
        for met in steps:
            name = met[0][0].name
            rows = remaining_positions(f"{name}.weight", 0, teacher.groups, plan)
            fit = Fit(met[0][0].layer)
            for ours, theirs in met:
                fit.add(ours, selected(theirs.output, rows, channel_axis(theirs.layer)))
                tick()
            layers.append(fit.solve(name))
            for ours, _ in met:
                ours.recompute = layers[-1].kept
            statistics = max(statistics, fit.bytes)
            held = max(held, sum(h.held_bytes for halts in met for h in halts))
    return Refits(tuple(layers), statistics, held)


def selected(x: Tensor, rows: Tensor | None, axis: int = 1) -> Tensor:
    """Return these channels of a layer's output; all of them if None."""
    return x if rows is None else x.index_select(axis, rows.to(x.device))


class Fit:
    """Normal equations for one layer's weight change.

    X is the matrix of input columns, with a row of ones if the outputs may be shifted. R is the
    target minus the current output. ``gram`` = X X^T, ``cross`` = R X^T, ``error`` = sum R^2. The
    first axis of all matrices is the convolution's group: each is a fit of its own.

    Products of a chunk have the precision of the run, their sum is float64. ``gram`` is exact for
    spikes, whose products are whole numbers (or sixteenths) that float32 represents.

    Args:
        layer: The layer.
        free_mean: Whether a BatchNorm behind the layer will take up any shift of its outputs.
    """

    def __init__(self, layer: nn.Module, *, free_mean: bool = False) -> None:
        assert isinstance(layer, COMPUTE_LAYERS)
        self.layer = layer
        weight = layer.weight.detach().double()
        self.weight = by_group(layer, weight)  # (groups, outputs, inputs)
        self.n_groups, n_out, n_in = self.weight.shape
        self.shifts = layer.bias is not None or free_mean
        width = n_in + self.shifts
        self.gram = weight.new_zeros(self.n_groups, width, width)
        self.cross = weight.new_zeros(self.n_groups, n_out, width)
        self.error = self.energy = 0.0

    @property
    def bytes(self) -> int:
        """Memory of the statistics, in bytes."""
        return self.gram.nbytes + self.cross.nbytes

    def add(self, halt: Halt, target: Tensor) -> None:
        """Add one batch: the layer's input and output, and its target output."""
        axis, wide = channel_axis(self.layer), torch.promote_types(target.dtype, torch.float32)
        expected, output = (x.to(wide).movedim(axis, 1) for x in (target, halt.output))
        expected = expected.flatten(2) if target.dim() > 2 else expected[..., None]
        residual = expected - output.reshape(expected.shape)  # (rows, out, positions)
        self.error += float(residual.square().sum())
        self.energy += float(expected.square().sum())
        n_in = self.weight.shape[2]
        n_rows = rows_at_once(self.layer, expected.shape[2], halt.input.element_size())
        for x, rest in zip(halt.input.split(n_rows), residual.split(n_rows), strict=True):
            columns = input_columns(self.layer, x.to(wide))
            missing = _group_columns(rest, self.n_groups)
            self.gram[:, :n_in, :n_in] += columns @ columns.mT
            self.cross[..., :n_in] += missing @ columns.mT
            if self.shifts:
                sums = columns.sum(2)
                self.gram[:, n_in, :n_in] += sums
                self.gram[:, :n_in, n_in] += sums
                self.gram[:, n_in, n_in] += columns.shape[2]
                self.cross[..., n_in] += missing.sum(2)

    def solve(self, name: str) -> LayerRefit:
        """Update the layer's weights if that lowers the error. Return the errors."""
        change = solved_change(self.gram, self.cross, self.weight.shape[2])
        after = self.error if change is None else self._apply(change)
        unit = self.energy or 1.0
        return LayerRefit(
            layer=name, before=self.error / unit, after=after / unit, kept=after < self.error
        )

    def _apply(self, change: Tensor) -> float:
        """Set the new weights, rounded to the layer's type, if that lowers the error.

        Returns:
            The layer's squared error afterwards.
        """
        layer, n_in = self.layer, self.weight.shape[2]
        weight = (self.weight + change[..., :n_in]).reshape(layer.weight.shape).to(layer.weight)
        rounded = [weight.double().view_as(self.weight) - self.weight]
        bias = None
        if layer.bias is not None:
            bias = (layer.bias.double() + change[..., n_in].flatten()).to(layer.bias)
            rounded.append((bias.double() - layer.bias.double()).view(self.n_groups, -1, 1))
        elif self.shifts:
            rounded.append(change[..., n_in:])
        gain = error_reduction(torch.cat(rounded, dim=2), self.gram, self.cross)
        if gain <= 0:
            return self.error
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
        return self.error - gain


def solved_change(gram: Tensor, cross: Tensor, n_in: int) -> Tensor | None:
    """Solve the normal equations of a layer's weight change, with the ridge penalty.

    Args:
        gram: X X^T, (groups, width, width), float64.
        cross: R X^T, (groups, outputs, width), float64.
        n_in: Weights of an output; ``width`` has one entry more if the layer has a bias.

    Returns:
        (groups, outputs, width); None if all inputs are zero.
    """
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2)[:, :n_in].mean()
    if not ridge > 0:
        return None
    penalty = torch.full_like(gram[0, 0], float(ridge))
    penalty[n_in:] *= 1e-6  # the bias is nearly free
    factor = torch.linalg.cholesky(gram + penalty.diag())
    return torch.cholesky_solve(cross.mT, factor).mT


def error_reduction(change: Tensor, gram: Tensor, cross: Tensor) -> float:
    """Return by how much a change of the weights lowers the squared error."""
    return float(2 * (change * cross).sum() - (change @ gram * change).sum())


def channel_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's input and output that has the channels."""
    return -1 if type(layer) is nn.Linear else 1  # subclasses have the channels of a convolution


def by_group(layer: nn.Module, weight: Tensor) -> Tensor:
    """Reshape a layer's weight to (convolution groups, outputs of one, weights of an output)."""
    return weight.flatten(1).unflatten(0, (getattr(layer, "groups", 1), -1))


def rows_at_once(layer: nn.Module, n_positions: int, itemsize: int) -> int:
    """Return how many rows of a layer's input have columns that fit into the memory limit."""
    assert isinstance(layer, COMPUTE_LAYERS)
    width = layer.weight[0].numel() * getattr(layer, "groups", 1)
    return max(1, _CHUNK_BYTES // (itemsize * width * n_positions))


def input_columns(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs of each output position, (groups, weights of an output, positions).

    Args:
        layer: The layer.
        x: Its input, (rows, channels, ...), of a linear layer (rows, ..., channels).
    """
    columns = _columns(layer, x.movedim(channel_axis(layer), 1))
    return columns.unflatten(0, (getattr(layer, "groups", 1), -1))


def _group_columns(x: Tensor, n_groups: int) -> Tensor:
    """Reshape (rows, channels, positions) to (groups, channels of one, rows * positions)."""
    return x.transpose(0, 1).flatten(1).unflatten(0, (n_groups, -1))


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs of each output position: (weights of an output, rows * positions).

    With several groups, the inputs of all groups follow each other.
    """
    channels = x.transpose(0, 1)
    if not isinstance(layer, nn.Conv2d) or is_pointwise(layer):
        return channels.flatten(1)
    assert not isinstance(layer.padding, str)
    (down, right), kernel, gap = layer.padding, layer.kernel_size, layer.dilation
    x = F.pad(channels, (right, right, down, down)).contiguous()  # (channels, rows, H, W)
    size = [
        (n - d * (k - 1) - 1) // step + 1
        for n, k, d, step in zip(x.shape[2:], kernel, gap, layer.stride, strict=True)
    ]
    channel, row, y, z = x.stride()
    windows = x.as_strided(
        (len(x), *kernel, x.shape[1], *size),
        (channel, y * gap[0], z * gap[1], row, y * layer.stride[0], z * layer.stride[1]),
    )
    return windows.reshape(len(x) * kernel[0] * kernel[1], -1)
