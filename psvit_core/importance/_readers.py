"""Where the units of a group are read, and what is seen there while calibration images run.

A unit's activation is what its readers see: spikes or integer levels behind a neuron, real values
where no neuron stands between. Three kinds of places read units: a layer whose weights the group
lists as readers; the attention product, for queries and keys (``readers`` of such a group is empty,
since the product has no weights); and the sum over queries in Q-K token attention.
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

from psvit_core.importance._base import Calibration, Criterion, Scores, written_filters
from psvit_core.records import ChannelGroup
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import HeadSum, SpikeProduct

Inputs = tuple[Tensor, ...]
Watch = Callable[["Reader", Inputs, Tensor], None]
Sums = dict[str, Tensor]  # float64, added up over calls

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_PATCH_ELEMENTS = 1 << 22  # of unfolded inputs held at once


class Reader(ABC):
    """One place that reads the units of a group.

    Args:
        module: What is called there.
        n_units: Units of the group.
    """

    def __init__(self, module: nn.Module, n_units: int) -> None:
        self.module = module
        self.n_units = n_units

    def values(self, inputs: Inputs) -> Inputs:
        """What carries the units, (rows, n_units, positions); rows are time and batch."""
        return (self._units(inputs[0]),)

    def _units(self, x: Tensor) -> Tensor:
        return wide(x).reshape(x.shape[0], self.n_units, -1)

    @abstractmethod
    def energy(self, inputs: Inputs) -> Tensor:
        """Sum over rows and positions of the squared activations, weighted: (n_units,)."""

    @abstractmethod
    def contributions(self, inputs: Inputs) -> Sums:
        """Sums that ``contribution_variance`` needs, of one call."""

    @abstractmethod
    def contribution_variance(self, sums: Sums) -> Tensor:
        """Variance of what each unit adds to each output channel, (outputs, n_units)."""

    def outputs(self, output: Tensor) -> Tensor:
        """The output as (rows, outputs, positions)."""
        return wide(output).reshape(*output.shape[:2], -1)


class LayerReader(Reader):
    """A convolution or linear layer with the group on its input axis.

    Args:
        module: The layer.
        n_units: Units of the group.
    """

    module: nn.Conv1d | nn.Conv2d | nn.Linear

    @property
    def weight(self) -> Tensor:
        """The layer's weights, (outputs, n_units, taps)."""
        weight = self.module.weight.detach()
        return weight.reshape(weight.shape[0], self.n_units, -1)

    @functools.cached_property
    def norms(self) -> Tensor:
        """Squared norm of the layer's weights on each unit, (n_units,) float64."""
        return self.weight.double().square().sum(dim=(0, 2))

    def energy(self, inputs: Inputs) -> Tensor:
        """Squared activations times the squared norm of the layer's weights on the unit."""
        return squared(self.values(inputs)[0]) * self.norms

    def contributions(self, inputs: Inputs) -> Sums:
        """First and second moments of the taps of each unit, exact at borders and strides."""
        total: Sums = {}
        for patches in self._patches(inputs[0]):  # (n_units, taps, n)
            first = patches.sum(2, dtype=torch.float64)
            second = (patches @ patches.transpose(1, 2)).double()
            added(total, {"first": first, "second": second, "n": _number(patches.shape[2])})
        return total

    def contribution_variance(self, sums: Sums) -> Tensor:
        """``w cov(x) w`` over the taps of each unit, for each output channel."""
        mean = sums["first"] / sums["n"]
        cov = sums["second"] / sums["n"] - mean.unsqueeze(2) * mean.unsqueeze(1)  # (units, k, k)
        weight = self.weight.double()
        return (torch.einsum("ouk,ukm->oum", weight, cov) * weight).sum(2).clamp(min=0)

    def _patches(self, x: Tensor) -> Iterator[Tensor]:
        """What each output position reads of each unit: (n_units, taps, positions of some rows)."""
        layer, taps = self.module, self.weight.shape[2]
        x = wide(x)
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
    """The attention product ``(q k^T) v`` as the reader of queries and keys.

    A channel adds ``q_c k_c^T`` to the scores, and ``q_c (k_c^T v)`` to the output.
    """

    module: SpikeProduct

    def values(self, inputs: Inputs) -> Inputs:
        """Queries and keys."""
        q, k, _ = inputs
        return self._units(q), self._units(k)

    def energy(self, inputs: Inputs) -> Tensor:
        """``||q_c k_c^T||^2``, the product of two squared norms, over the number of tokens.

        The keys are the weights on the queries; the tokens make it a sum over positions.
        """
        q, k = self.values(inputs)
        each = q.square().sum(2, dtype=torch.float64) * k.square().sum(2, dtype=torch.float64)
        return each.sum(0)

    def contributions(self, inputs: Inputs) -> Sums:
        """Moments over rows and tokens of ``q_c (k_c^T v)``, (v channels of the head, n_units)."""
        heads, scale = self.module.heads, self.module.scale
        q, k, v = (wide(x).unflatten(1, (heads, -1)) for x in inputs)  # (rows, heads, d, tokens)
        met = (v @ k.transpose(2, 3)) * scale  # (rows, heads, dv, d)
        first = torch.einsum("rhvd,rhd->hvd", met, q.sum(3)).double()
        second = torch.einsum("rhvd,rhd->hvd", met.square(), q.square().sum(3)).double()
        return {"first": first, "second": second, "n": _number(q.shape[0] * q.shape[3])}

    def contribution_variance(self, sums: Sums) -> Tensor:
        """Per channel of the values; zero for the channels of other heads."""
        mean = sums["first"] / sums["n"]
        var = (sums["second"] / sums["n"] - mean.square()).clamp(min=0)  # (heads, dv, d)
        return torch.block_diag(*var)


class SumReader(Reader):
    """The sum of a head's queries in Q-K token attention: a layer of weights 1."""

    module: HeadSum

    def values(self, inputs: Inputs) -> Inputs:
        """Queries."""
        return (self._units(inputs[0].flatten(0, 1)),)

    def energy(self, inputs: Inputs) -> Tensor:
        """Squared queries."""
        return squared(self.values(inputs)[0])

    def contributions(self, inputs: Inputs) -> Sums:
        """Moments of the queries."""
        [q] = self.values(inputs)
        first = q.sum(dim=(0, 2), dtype=torch.float64)
        return {"first": first, "second": squared(q), "n": _number(q.shape[0] * q.shape[2])}

    def contribution_variance(self, sums: Sums) -> Tensor:
        """Per head; zero for the channels of other heads."""
        var = (sums["second"] / sums["n"] - (sums["first"] / sums["n"]).square()).clamp(min=0)
        return torch.block_diag(*var.view(self.module.heads, 1, -1))

    def outputs(self, output: Tensor) -> Tensor:
        """The sums as (rows, heads, tokens)."""
        return wide(output).flatten(0, 1).flatten(2)


def _pads(conv: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Padding for ``F.pad``: also of ``padding="same"``, where sides may differ."""
    return conv._reversed_padding_repeated_twice


def _number(n: int) -> Tensor:
    return torch.tensor(float(n), dtype=torch.float64)


def added(total: Sums, fresh: Sums) -> None:
    """Add the sums of one call to those of all calls before, in place."""
    for name, value in fresh.items():
        total[name] = total[name] + value if name in total else value


def wide(x: Tensor) -> Tensor:
    """``x`` in single precision at least: sums of half precision would overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def squared(x: Tensor) -> Tensor:
    """Sum of squares over rows and positions of (rows, n_units, positions), float64."""
    return x.square().sum(dim=(0, 2), dtype=torch.float64)


def find_readers(model: SpikingModel) -> dict[str, list[Reader]]:
    """Where each group's units are read; an empty list where no such place is known."""
    found: dict[str, list[Reader]] = {}
    for group in model.channel_groups():
        layers = reading_layers(model, group)
        found[group.group_id] = [LayerReader(layer, group.n_units) for layer in layers]
    for name, module in model.named_modules():
        path = name.rpartition(".")[0]
        if isinstance(module, SpikeProduct) and found.get(f"{path}.qk") == []:
            found[f"{path}.qk"].append(ProductReader(module, model.widths[f"{path}.qk"]))
        elif isinstance(module, HeadSum) and found.get(f"{path}.q") == []:
            found[f"{path}.q"].append(SumReader(module, model.widths[f"{path}.q"]))
    return found


def reading_layers(
    model: SpikingModel, group: ChannelGroup
) -> list[nn.Conv1d | nn.Conv2d | nn.Linear]:
    """Layers whose input axis the group is; a parameter that is only added reads nothing."""
    found = []
    for name, axis in group.readers:
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        if (leaf, axis) == ("weight", 1) and isinstance(module, _LAYERS):
            found.append(module)
    return found


def placed(model: SpikingModel, run: Run) -> SpikingModel:
    """``model`` on the run's device, in its own precision: itself if it is there, else a copy."""
    if next(model.parameters()).device == torch.device(run.device):
        return model
    moved: SpikingModel = copy.deepcopy(model).to(run.device)
    return moved


@contextmanager
def watched(
    model: nn.Module, readers: Mapping[str, Sequence[Reader]], watch: Watch
) -> Iterator[None]:
    """Call ``watch`` at every reader while the block runs ``model``, in evaluation mode.

    Each reader gets its own view of what it reads, so that the gradient of that view is by this
    reader alone, also where several layers and a shortcut share one tensor.
    """

    def own_view(module: nn.Module, inputs: Inputs) -> Inputs:
        return (inputs[0].view_as(inputs[0]), *inputs[1:])

    def hook(reader: Reader, module: nn.Module, inputs: Inputs, output: Tensor) -> None:
        watch(reader, inputs, output)

    handles = []
    for reader in (r for group in readers.values() for r in group):
        handles.append(reader.module.register_forward_pre_hook(own_view))
        handles.append(reader.module.register_forward_hook(functools.partial(hook, reader)))
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
    """A criterion of what a group's readers see; one pass over the images for all groups.

    Only sums are kept, whatever the number of images. A group whose units no known place is seen to
    read (of a user's own model) is scored by the L2 norm of its filters.
    """

    needs_images = True

    @abstractmethod
    def sums(self, reader: Reader, inputs: Inputs, output: Tensor) -> Sums:
        """What to add up of one call of a reader."""

    @abstractmethod
    def score(self, reader: Reader, sums: Sums) -> Tensor:
        """Scores of the units by one reader, (n_units,)."""

    def join(self, scores: Tensor) -> Tensor:
        """Scores of the units by all readers, (readers, n_units) to (n_units,)."""
        return scores.sum(0)

    def all_scores(self, model: SpikingModel, calib: Calibration) -> Scores:
        """Scores of every group."""
        model = placed(model, calib.run)
        readers = find_readers(model)
        totals: dict[Reader, Sums] = {}

        def watch(reader: Reader, inputs: Inputs, output: Tensor) -> None:
            added(totals.setdefault(reader, {}), self.sums(reader, inputs, output))

        with torch.no_grad(), calib.run.autocast, watched(model, readers, watch):
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
                found[group.group_id] = unread(model, group)
        return found


def unread(model: SpikingModel, group: ChannelGroup) -> Tensor:
    """Scores of a group that no known place is seen to read: the L2 norm of its filters."""
    return written_filters(model, group).norm(dim=1).cpu()
