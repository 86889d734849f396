"""What a pruned group changes in a forward pass: which steps must be run again, and from what.

Three things can happen to a value of the tape (``psvit_core.tape``) when units of one group go:
nothing; it loses the group's channels and is else the same (everything between the group's writers
and its readers works channel by channel: BatchNorm, neuron, pooling, depthwise convolution); or it
must be computed anew. So a cell needs only the steps of the third kind, and they start from the
full model's values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core import fused
from psvit_core.metrics.spikes import count_spikes
from psvit_core.records import ChannelGroup
from psvit_core.sensitivity.fold import convolve, fold
from psvit_core.tape import Rows, Step, Tape, TapeError, Weight, record, record_once
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import bn_and_pad

_CONVOLUTIONS = {torch.conv1d, torch.conv2d, F.conv1d, F.conv2d}
_LINEAR = {F.linear, torch._C._nn.linear}
_NORMS = {F.batch_norm, bn_and_pad}
#: Work on each channel for itself, or only move it. Names, since torch has several functions each.
_BY_CHANNEL = {
    "flatten", "unflatten", "reshape", "view", "expand", "unsqueeze", "squeeze", "transpose",
    "permute", "contiguous", "movedim", "add", "sub", "mul", "div", "truediv", "__add__", "__sub__",
    "__mul__", "__truediv__", "__radd__", "__rmul__", "sum", "mean", "clamp", "round", "relu",
    "max_pool2d", "_max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "boolean_dispatch",
    "__get__", "__getitem__",
}  # fmt: skip
_VIEWS = {"flatten", "unflatten", "view", "expand", "unsqueeze", "squeeze", "transpose", "permute",
          "movedim", "__get__"}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A model's forward pass on a tape.

    Attributes:
        tape: Its ``result`` is (logits, {reader: spikes that reach it}).
        narrow: For every value the axes that get shorter when all groups are pruned.
        rigid: Positions of steps with an argument that is some group's width.
    """

    tape: Tape
    narrow: tuple[frozenset[int], ...]
    rigid: frozenset[int]

    @property
    def logits(self) -> int:
        """Index of the logits."""
        return int(self.tape.result[0].index)

    @property
    def readers(self) -> dict[str, int]:
        """Index of every reader's spike count."""
        return {name: value.index for name, value in self.tape.result[1].items()}

    def is_view(self, step: Step) -> bool:
        """Whether a step gives another view of the same memory."""
        return getattr(step.call, "__name__", "") in _VIEWS


def record_network(model: SpikingModel, image_shape: tuple[int, ...]) -> Network:
    """A model's forward pass with its spike counts.

    Args:
        model: The model, in evaluation mode.
        image_shape: Shape of one image or of its frames.

    Raises:
        TapeError: If the pass cannot be written down.
    """
    dtype = next(model.parameters()).dtype
    groups = model.channel_groups()
    whole = record(*_pass(model, {g.group_id: g.n_units for g in groups}), image_shape, dtype)
    halves = {g.group_id: _about_half(g) for g in groups}
    half, batch = record_once(*_pass(model, {**model.widths, **halves}), image_shape, dtype)
    like_half = whole.at(batch)
    if len(whole.steps) != len(half.steps):
        raise TapeError("it takes other steps at other widths")
    rigid = set()
    for position, (a, b) in enumerate(zip(like_half.steps, half.steps, strict=True)):
        if (a.call, a.out) != (b.call, b.out):
            raise TapeError("it takes other steps at other widths")
        if _fixed(a) != _fixed(b):
            rigid.add(position)
    narrow = tuple(
        frozenset(axis for axis, (x, y) in enumerate(zip(s, h, strict=True)) if x != y)
        for s, h in zip(like_half.shapes, half.shapes, strict=True)
    )
    steps = tuple(_with_depthwise_rows(step) for step in whole.steps)
    tape, fixed = fold(dataclasses.replace(whole, steps=steps), frozenset(rigid))
    return Network(tape, narrow, fixed)


def _with_depthwise_rows(step: Step) -> Step:
    """A depthwise convolution has as many groups as its weight has rows, whatever its width."""
    if step.call not in _CONVOLUTIONS or len(step.args) < 7 or step.args[6] == 1:
        return step
    weight = step.args[1]
    if not isinstance(weight, Weight):
        return step
    return dataclasses.replace(step, args=(*step.args[:6], Rows(weight.name)))


def _about_half(group: ChannelGroup) -> int:
    step = group.heads or 1
    return max(step, group.n_units // 2 // step * step)


def _pass(
    model: SpikingModel, widths: Mapping[str, int]
) -> tuple[Callable[[Tensor], Any], dict[str, Tensor]]:
    """A model's forward pass at these widths, with its spike counts, and its tensors."""
    empty = model.resized(widths).to(next(model.parameters()).dtype).eval()

    def run(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with count_spikes(empty, neurons=False) as count:
            logits = empty(x)
        return logits, {name: parts[0] for name, parts in count.reached.items()}

    return run, {**dict(empty.named_parameters()), **dict(empty.named_buffers())}


def _fixed(step: Step) -> object:
    """A step's arguments without the group count of a depthwise convolution."""
    return step.args[:6] if step.call in _CONVOLUTIONS else (step.args, dict(step.kwargs))


@dataclass
class Spread:
    """What pruning one group changes.

    Attributes:
        group: The group.
        counts: Positions of the steps that count spikes of values which only lose channels, in
            order: they must be run again for every image.
        steps: Positions of all other steps that must be run again, in order: they change nothing
            for an image in which no removed unit of a value that they start from was active.
        sliced: Axis of the group's channels in values that only lose them and are read by either.
        same: Values that either reads and that stay as they are.
        shares: For each of ``steps``, on how many axes its weights lose channels, and whether its
            output does: (axes, narrow).
    """

    group: ChannelGroup
    counts: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    sliced: dict[int, int] = field(default_factory=dict)
    same: set[int] = field(default_factory=set)
    shares: dict[int, tuple[int, bool]] = field(default_factory=dict)

    def starts(self, network: Network) -> dict[int, int]:
        """``sliced`` of the values that ``steps`` read."""
        read = {i for position in self.steps for i in network.tape.steps[position].inputs()}
        return {i: axis for i, axis in self.sliced.items() if i in read}

    @property
    def needs(self) -> set[int]:
        """Values of the full model that the steps start from."""
        return self.same | set(self.sliced)


def spread(network: Network, group: ChannelGroup) -> Spread:
    """Follow a group's pruning through the network.

    Raises:
        TapeError: If a step that must be run again has the group's width written into it.
    """
    axes: dict[str, set[int]] = {}
    for name, axis in (*group.writers, *group.readers):
        axes.setdefault(name, set()).add(axis)
    found = Spread(group)
    sliced: dict[int, int] = {}
    anew: set[int] = set()
    narrow: set[int] = set()  # values computed anew that lack the group's channels
    for position, step in enumerate(network.tape.steps):
        inputs = step.inputs()
        touched = {name: axes[name] for name in step.weights() if name in axes}
        if not touched and not any(i in sliced or i in anew for i in inputs):
            continue
        lost = None
        if not any(i in anew for i in inputs):
            lost = _lost_axis(network, step, touched, sliced)
        if lost is not None:
            sliced[step.out] = lost
            continue
        found.steps.append(position)
        anew.update(step.outs())
        n_axes = len(set().union(*touched.values())) if touched else 0
        loses = any(0 in a for a in touched.values()) or (
            not touched and any(i in narrow or i in sliced for i in inputs)
        )
        if loses:
            narrow.update(step.outs())
        if position in network.rigid and any(i in narrow or i in sliced for i in inputs):
            raise TapeError(f"{getattr(step.call, '__name__', step.call)} is told a group's width")
        found.shares[position] = (n_axes, loses)
        for i in inputs:
            if i in sliced:
                found.sliced[i] = sliced[i]
            elif i not in anew:
                found.same.add(i)
    _part_counts(network, found)
    return found


def _part_counts(network: Network, found: Spread) -> None:
    """Move the steps that only count, and start from no value computed anew, to ``counts``."""
    steps = network.tape.steps
    towards_logits: set[int] = {network.logits}
    main = set()
    for position in reversed(found.steps):
        if any(i in towards_logits for i in steps[position].outs()):
            main.add(position)
            towards_logits.update(steps[position].inputs())
    made = {i for position in main for i in steps[position].outs()}
    alone = []
    for position in found.steps:
        if position not in main:
            if any(i in made for i in steps[position].inputs()):
                made.update(steps[position].outs())
            else:
                alone.append(position)
    found.counts = alone
    found.steps = [position for position in found.steps if position not in set(alone)]


def _lost_axis(
    network: Network, step: Step, touched: Mapping[str, set[int]], sliced: Mapping[int, int]
) -> int | None:
    """The axis of the group's channels where the step's output only loses them, else None."""
    tape = network.tape
    inputs = step.inputs()
    if touched:
        if not all(a == {0} for a in touched.values()):
            return None  # a reader
        if step.call is convolve:
            return None if inputs[0] in sliced else 1
        if step.call in _CONVOLUTIONS:
            depthwise = len(step.args) > 6 and step.args[6] != 1
            return 1 if depthwise == (inputs[0] in sliced) else None
        if step.call in _LINEAR:
            return None if inputs[0] in sliced else len(tape.shapes[step.out]) - 1
        return 1 if step.call in _NORMS and inputs[0] in sliced else None
    if step.several is not None or not _works_by_channel(step):
        return None
    lengths = {tape.shapes[i][sliced[i]] for i in inputs if i in sliced}
    if any(i not in sliced and network.narrow[i] for i in inputs):
        return None  # of another group
    changed = network.narrow[step.out]
    if len(lengths) != 1 or len(changed) != 1:
        return None
    (axis,) = changed
    return axis if tape.shapes[step.out][axis] == lengths.pop() else None


def _works_by_channel(step: Step) -> bool:
    if step.call in (fused.lif, fused.integer_lif):
        return True
    return getattr(step.call, "__name__", "") in _BY_CHANNEL
