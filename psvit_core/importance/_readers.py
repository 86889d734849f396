"""Readers of a group's units, and criteria from their inputs on calibration images.

A unit's activation is the input of its readers: spikes or integer levels after a neuron, real
values otherwise. There are these kinds of readers: layers whose weights the group lists as readers;
the attention product for queries and keys (it has no weights, so the group's ``readers`` are
empty); the sum over queries in Q-K token attention; and the scores of dual spike self-attention.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.importance._base import Calibration, Criterion, Scores, writer_filters
from psvit_core.records import ChannelGroup
from psvit_core.runtime import Run, device_of
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import HeadSum
from psvit_core.zoo.products import (
    AttentionProduct,
    ChunkProduct,
    PatchScores,
    SpikeProduct,
    first_parts,
)

Inputs = tuple[Tensor, ...]
ReaderHook = Callable[["Reader", Inputs, Tensor], None]  # (reader, inputs, output)
Sums = dict[str, Tensor]  # float64, accumulated over calls

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_PATCH_ELEMENTS = 1 << 22  # of unfolded inputs in memory at a time


class Reader(ABC):
    """A module that reads the units of a group.

    Args:
        module: The module.
        n_units: Units of the group.
    """

    reads_real = False  # True if its inputs are no spikes

    def __init__(self, module: nn.Module, n_units: int) -> None:
        self.module = module
        self.n_units = n_units

    def values(self, inputs: Inputs) -> Inputs:
        """Return the activations (rows, n_units, positions); rows are time steps and images."""
        return (self._units(inputs[0]),)

    def _units(self, x: Tensor) -> Tensor:
        return at_least_float32(x).reshape(x.shape[0], self.n_units, -1)

    @abstractmethod
    def energy(self, inputs: Inputs) -> Tensor:
        """Return the weighted sum of squared activations over rows and positions, (n_units,)."""

    @abstractmethod
    def contributions(self, inputs: Inputs) -> Sums:
        """Return one call's sums for ``contribution_variance``."""

    @abstractmethod
    def contribution_variance(self, sums: Sums) -> Tensor:
        """Return the variance of each unit's part in each output channel, (outputs, n_units)."""

    def outputs(self, output: Tensor) -> Tensor:
        """Reshape the output to (rows, outputs, positions)."""
        return at_least_float32(output).reshape(*output.shape[:2], -1)


class LayerReader(Reader):
    """A convolution or linear layer with the group on its input axis."""

    module: nn.Conv1d | nn.Conv2d | nn.Linear

    @property
    def weight(self) -> Tensor:
        """The layer's weights by group of the convolution: (groups, outputs, inputs, taps)."""
        weight, groups = self.module.weight.detach(), int(getattr(self.module, "groups", 1))
        return weight.reshape(groups, len(weight) // groups, self.n_units // groups, -1)

    @functools.cached_property
    def norms(self) -> Tensor:
        """Squared norm of the layer's weights on each unit, (n_units,) float64."""
        return self.weight.double().square().sum(dim=(1, 3)).flatten()

    def energy(self, inputs: Inputs) -> Tensor:
        """Return squared activations times the squared norm of the layer's weights on the unit."""
        return sum_of_squares(self.values(inputs)[0]) * self.norms

    def contributions(self, inputs: Inputs) -> Sums:
        """Return the moments of each unit's taps, exact at borders and with strides."""
        total: Sums = {}
        for patches in self._patches(inputs[0]):  # (n_units, taps, n)
            first = patches.sum(2, dtype=torch.float64)
            # sums of spikes are exact in float32; those of real values are not
            taps = patches.double() if self.reads_real else patches
            second = (taps @ taps.transpose(1, 2)).double()
            accumulate_(total, {"first": first, "second": second, "n": _scalar(patches.shape[2])})
        return total

    def contribution_variance(self, sums: Sums) -> Tensor:
        """Return ``w cov(x) w`` over each unit's taps, for each output channel."""
        mean = sums["first"] / sums["n"]
        cov = sums["second"] / sums["n"] - mean.unsqueeze(2) * mean.unsqueeze(1)  # (units, k, k)
        weight = self.weight.double()
        cov = cov.unflatten(0, (len(weight), -1))
        variance = (torch.einsum("gouk,gukm->goum", weight, cov) * weight).sum(3).clamp(min=0)
        return torch.block_diag(*variance)

    def _patches(self, x: Tensor) -> Iterator[Tensor]:
        """Yield each unit's inputs at all output positions: (n_units, taps, positions)."""
        layer, taps = self.module, self.weight.shape[3]
        x = at_least_float32(x)
        if isinstance(layer, nn.Linear):
            yield x.reshape(len(x), self.n_units, taps, -1).permute(1, 2, 0, 3).flatten(2)
            return
        if taps == 1 and set(layer.stride) == {1} and not any(map(int, _pads(layer))):
            yield x.flatten(2).transpose(0, 1).flatten(1).unsqueeze(1)
            return
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        at_once = max(1, _PATCH_ELEMENTS // (x[0].numel() * taps))
        size, stride, gap = ((*v, 1)[:2] for v in (layer.kernel_size, layer.stride, layer.dilation))
        for rows in x.split(at_once):
            padded = F.pad(rows, _pads(layer), mode=mode)
            if padded.dim() == 3:
                padded = padded.unsqueeze(3)
            taken = F.unfold(padded, size, dilation=gap, stride=stride)
            yield taken.unflatten(1, (self.n_units, taps)).permute(1, 2, 0, 3).flatten(2)


class ProductReader(Reader):
    """The attention product ``(q k^T) v``, the reader of queries and keys.

    A channel contributes ``q_c k_c^T`` to the scores and ``q_c (k_c^T v)`` to the output.
    """

    module: SpikeProduct

    def values(self, inputs: Inputs) -> Inputs:
        """Return queries and keys."""
        q, k, _ = inputs
        return self._units(q), self._units(k)

    def energy(self, inputs: Inputs) -> Tensor:
        """Return ``||q_c k_c^T||^2``, the product of both squared norms, summed over rows.

        The keys act as weights on the queries.
        """
        q, k = self.values(inputs)
        each = q.square().sum(2, dtype=torch.float64) * k.square().sum(2, dtype=torch.float64)
        return each.sum(0)

    def scale(self, inputs: Inputs) -> float:
        """Return the factor of the product."""
        return self.module.scale

    def contributions(self, inputs: Inputs) -> Sums:
        """Return the moments of ``q_c (k_c^T v)`` over rows and tokens, by head."""
        heads, scale = self.module.heads, self.scale(inputs)
        # (rows, heads, d, tokens)
        q, k, v = (at_least_float32(x).unflatten(1, (heads, -1)) for x in inputs[:3])
        product = (v @ k.transpose(2, 3)) * scale  # (rows, heads, dv, d)
        first = torch.einsum("rhvd,rhd->hvd", product, q.sum(3)).double()
        second = torch.einsum("rhvd,rhd->hvd", product.square(), q.square().sum(3)).double()
        return {"first": first, "second": second, "n": _scalar(q.shape[0] * q.shape[3])}

    def contribution_variance(self, sums: Sums) -> Tensor:
        """Return the variance by value channel; zero between different heads."""
        mean = sums["first"] / sums["n"]
        var = (sums["second"] / sums["n"] - mean.square()).clamp(min=0)  # (heads, dv, d)
        return torch.block_diag(*var)


class ChunkReader(ProductReader):
    """The attention product over chunks of time steps; a chunk's tokens are one sequence."""

    module: ChunkProduct  # type: ignore[assignment]  # has the same heads

    def values(self, inputs: Inputs) -> Inputs:
        """Return queries and keys; a row is a chunk."""
        return self._sequences(inputs[0]), self._sequences(inputs[1])

    def scale(self, inputs: Inputs) -> float:
        """Return 1 / height of the feature map."""
        return 1 / float(inputs[3])

    def contributions(self, inputs: Inputs) -> Sums:
        """Return the moments of ``q_c (k_c^T v)`` over rows and tokens of chunks, by head."""
        return super().contributions((*map(self._sequences, inputs[:3]), inputs[3]))

    def outputs(self, output: Tensor) -> Tensor:
        """Reshape the output to (rows, channels, tokens)."""
        return at_least_float32(output).flatten(0, 1)

    def _sequences(self, x: Tensor) -> Tensor:
        """Reshape (T, B, C, N) to (chunks * B, C, steps * N)."""
        x = at_least_float32(x).unflatten(0, (-1, self.module.chunk_size))
        return x.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 1)


class ScoresReader(Reader):
    """The scores of dual spike self-attention, ``y1^T s``; they read the spikes of the stream.

    A channel contributes ``y1_c s_c`` to the scores of its head.
    """

    module: PatchScores

    def values(self, inputs: Inputs) -> Inputs:
        """Return the spikes."""
        return (self._units(inputs[0]),)

    def energy(self, inputs: Inputs) -> Tensor:
        """Return the squared norm of ``y1_c s_c`` with its head's factor, summed over rows."""
        first, spikes = self._factors(inputs)
        each = first.square().sum(2, dtype=torch.float64)
        each = (each * spikes.square().sum(2, dtype=torch.float64)).sum(0)
        return each * self._head_factor(inputs).square()

    def contributions(self, inputs: Inputs) -> Sums:
        """Return the moments of ``y1_c s_c`` over rows, patches and positions."""
        first, spikes = self._factors(inputs)
        sums, squares = (
            (first.pow(n).sum(2, dtype=torch.float64) * spikes.pow(n).sum(2, dtype=torch.float64))
            for n in (1, 2)
        )
        n_values = len(first) * first.shape[2] * spikes.shape[2]
        factor = self._head_factor(inputs)
        return {
            "first": sums.sum(0) * factor,
            "second": squares.sum(0) * factor.square(),
            "n": _scalar(n_values),
        }

    def contribution_variance(self, sums: Sums) -> Tensor:
        """Return the variance by head; zero between different heads."""
        var = (sums["second"] / sums["n"] - (sums["first"] / sums["n"]).square()).clamp(min=0)
        return torch.block_diag(*var.view(self.module.heads, 1, -1))

    def _head_factor(self, inputs: Inputs) -> Tensor:
        """Return the factor of each unit's head, (n_units,) float64."""
        return inputs[2].double().flatten().repeat_interleave(self.n_units // self.module.heads)

    def _factors(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return y1 (rows, n_units, patches) and the spikes (rows, n_units, positions)."""
        s, y = (at_least_float32(x) for x in inputs[:2])
        heads = self.module.heads
        return first_parts(y, heads, self.n_units // heads).flatten(1, 2), self._units(s)


class SumReader(Reader):
    """The sum of a head's queries in Q-K token attention, a layer with weights 1."""

    module: HeadSum

    def values(self, inputs: Inputs) -> Inputs:
        """Return the queries."""
        return (self._units(inputs[0].flatten(0, 1)),)

    def energy(self, inputs: Inputs) -> Tensor:
        """Return the sum of squared queries."""
        return sum_of_squares(self.values(inputs)[0])

    def contributions(self, inputs: Inputs) -> Sums:
        """Return the moments of the queries."""
        [q] = self.values(inputs)
        first = q.sum(dim=(0, 2), dtype=torch.float64)
        return {"first": first, "second": sum_of_squares(q), "n": _scalar(q.shape[0] * q.shape[2])}

    def contribution_variance(self, sums: Sums) -> Tensor:
        """Return the variance by head; zero between different heads."""
        var = (sums["second"] / sums["n"] - (sums["first"] / sums["n"]).square()).clamp(min=0)
        return torch.block_diag(*var.view(self.module.heads, 1, -1))

    def outputs(self, output: Tensor) -> Tensor:
        """Reshape the output to (rows, heads, tokens)."""
        return at_least_float32(output).flatten(0, 1).flatten(2)


def _pads(conv: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Return the padding for ``F.pad``; with ``padding="same"`` both sides may differ."""
    return conv._reversed_padding_repeated_twice


def _scalar(n: int) -> Tensor:
    return torch.tensor(float(n), dtype=torch.float64)


def accumulate_(total: Sums, new: Sums) -> None:
    """Add the sums of one call to ``total``, in place."""
    for name, value in new.items():
        total[name] = total[name] + value if name in total else value


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, whose sums do not overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sum_of_squares(x: Tensor) -> Tensor:
    """Sum the squares of (rows, n_units, positions) over rows and positions, in float64."""
    return x.square().sum(dim=(0, 2), dtype=torch.float64)


def find_readers(model: SpikingModel) -> dict[str, list[Reader]]:
    """Return the readers of each group; an empty list if none is known."""
    found: dict[str, list[Reader]] = {}
    real = {model.get_submodule(name) for name in model.real_fed()}
    for group in model.channel_groups():
        layers = reading_layers(model, group)
        found[group.group_id] = [LayerReader(layer, group.n_units) for layer in layers]
        for reader in found[group.group_id]:
            reader.reads_real = reader.module in real
    for name, module in model.named_modules():
        path = name.rpartition(".")[0]
        if isinstance(module, PatchScores):
            units = model.widths[module.group_id]
            found[module.group_id].append(ScoresReader(module, units))
        elif isinstance(module, AttentionProduct) and found.get(f"{path}.qk") == []:
            kind = ChunkReader if isinstance(module, ChunkProduct) else ProductReader
            found[f"{path}.qk"].append(kind(module, model.widths[f"{path}.qk"]))
        elif isinstance(module, HeadSum) and found.get(f"{path}.q") == []:
            found[f"{path}.q"].append(SumReader(module, model.widths[f"{path}.q"]))
    return found


def reading_layers(
    model: SpikingModel, group: ChannelGroup
) -> list[nn.Conv1d | nn.Conv2d | nn.Linear]:
    """Return the layers with the group on their input axis; added parameters are no readers."""
    found = []
    for name, axis in group.readers:
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        if (leaf, axis) == ("weight", 1) and isinstance(module, _LAYERS):
            found.append(module)
    return found


def on_device(model: SpikingModel, run: Run) -> SpikingModel:
    """Return the model, or a copy of it on the run's device, in its own precision."""
    if next(model.parameters()).device == device_of(run.device):
        return model
    moved: SpikingModel = copy.deepcopy(model).to(run.device)
    return moved


@contextmanager
def reader_hooks(
    model: nn.Module, readers: Mapping[str, Sequence[Reader]], hook: ReaderHook
) -> Iterator[None]:
    """Set the model to evaluation mode and call ``hook`` after every call of a reader.

    Each reader receives its own view of its input. The gradient of that view belongs to this reader
    alone, even if several layers and a shortcut share the tensor.
    """

    def own_view(module: nn.Module, inputs: Inputs) -> Inputs:
        return (inputs[0].view_as(inputs[0]), *inputs[1:])

    def call_hook(reader: Reader, module: nn.Module, inputs: Inputs, output: Tensor) -> None:
        hook(reader, inputs, output)

    handles = []
    for reader in (r for group in readers.values() for r in group):
        handles.append(reader.module.register_forward_pre_hook(own_view))
        handles.append(reader.module.register_forward_hook(functools.partial(call_hook, reader)))
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for handle in handles:
            handle.remove()


class ReaderCriterion(Criterion):
    """A criterion from the inputs of a group's readers, in one pass over the images.

    Memory does not depend on the number of images because only sums are stored. Groups without a
    known reader (in custom models) are scored by the L2 norm of their filters.
    """

    needs_images = True

    @abstractmethod
    def sums(self, reader: Reader, inputs: Inputs, output: Tensor) -> Sums:
        """Return the sums of one call of a reader."""

    @abstractmethod
    def score(self, reader: Reader, sums: Sums) -> Tensor:
        """Score the units by one reader, (n_units,)."""

    def join(self, scores: Tensor) -> Tensor:
        """Combine the scores of all readers, (readers, n_units) to (n_units,)."""
        return scores.sum(0)

    def all_scores(self, model: SpikingModel, calib: Calibration) -> Scores:
        """Score every group."""
        model = on_device(model, calib.run)
        readers = find_readers(model)
        totals: dict[Reader, Sums] = {}

        def hook(reader: Reader, inputs: Inputs, output: Tensor) -> None:
            accumulate_(totals.setdefault(reader, {}), self.sums(reader, inputs, output))

        with torch.no_grad(), calib.run.autocast, reader_hooks(model, readers, hook):
            for x in calib.batches(model):
                model(x)
        found = {}
        for group in model.channel_groups():
            seen = [r for r in readers[group.group_id] if r in totals]
            if seen:
                found[group.group_id] = self.join(
                    torch.stack([self.score(r, totals[r]) for r in seen])
                ).cpu()
            else:
                found[group.group_id] = filter_norms(model, group)
        return found


def filter_norms(model: SpikingModel, group: ChannelGroup) -> Tensor:
    """Score a group without known readers by the L2 norm of its filters."""
    return writer_filters(model, group).norm(dim=1).cpu()
