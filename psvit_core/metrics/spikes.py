"""Spike counts of a running model: firing rates and synaptic operations (SOPs).

A SOP is one accumulate that a spike triggers. A layer that reads spikes performs its input spikes
(an integer level k counts as k) times the outputs that each spike reaches, counted exactly at image
borders and with strides. Attention is counted in the order of the published model: in
``(q k^T) v``, a query spike meets every key token and a value spike every attention row; in
``q (k^T v)``, key and query spikes meet the value channels of their head. SDSA accumulates where
key and value spike together, Q-K attention the queries of a head. Layers that read real values (the
first convolution, run once for a static image) perform multiply-accumulates and are not counted
here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.groups import COMPUTE_LAYERS, axis_groups
from psvit_core.neurons import NEURONS, IntegerLIF, spikes_per_unit
from psvit_core.records import axis_width
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import SpikeSum, wide_sum
from psvit_core.zoo.products import AttentionProduct


@dataclass
class SpikeCount:
    """Counts that the hooks of ``count_spikes`` collect, batch by batch."""

    # Reader -> one (B,) float64 per batch: input spikes x output positions that each reaches.
    reached: dict[str, list[Tensor]] = field(default_factory=dict)
    fan_out: dict[str, int] = field(default_factory=dict)  # reader -> output channels per spike
    # Neuron layer -> one (B,) float64 per batch: sum of spike values.
    fired: dict[str, list[Tensor]] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)  # neuron layer -> neurons x steps x images
    batches: list[int] = field(default_factory=list)  # images per batch
    _paused: bool = False

    @property
    def sops(self) -> list[Tensor]:
        """Synaptic operations per image: one (B,) float64 per batch; 0 without spike readers."""
        if not self.reached:
            return [torch.zeros(n_images, dtype=torch.float64) for n_images in self.batches]
        scaled = ([t * self.fan_out[n] for t in parts] for n, parts in self.reached.items())
        return [torch.stack(batch).sum(0) for batch in zip(*scaled, strict=True)]

    def sops_by_reader(self) -> dict[str, float]:
        """Return the synaptic operations by reader: the mean over images, all time steps."""
        images = sum(self.batches)
        sums = {
            name: sum(float(part.sum()) for part in parts) for name, parts in self.reached.items()
        }
        return {name: total * self.fan_out[name] / images for name, total in sums.items()}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing during the block, in which the model may run for something else."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @contextmanager
    def whole_batches(self) -> Iterator[None]:
        """Forget what was counted in the block if it fails, as after a lack of memory."""
        n_batches, seen = len(self.batches), dict(self.seen)
        try:
            yield
        except BaseException:
            del self.batches[n_batches:]
            for parts in (*self.reached.values(), *self.fired.values()):
                del parts[n_batches:]
            self.seen = seen
            raise

    @property
    def is_paused(self) -> bool:
        """Whether the model runs for something else."""
        return self._paused

    def firing_rates(self) -> dict[str, float]:
        """Return the mean spike value per neuron and time step, by neuron layer."""
        sums = {
            name: sum(float(part.sum()) for part in parts) for name, parts in self.fired.items()
        }
        return {name: total / self.seen[name] for name, total in sums.items()}


@contextmanager
def count_spikes(
    model: SpikingModel, widths: Mapping[str, int] | None = None, *, neurons: bool = True
) -> Iterator[SpikeCount]:
    """Count the spikes of ``model`` inside the ``with`` block, by hooks that are then removed.

    Args:
        model: The model to count.
        widths: Group widths for the fan-outs of a silenced model (``surgery.silenced``): those of
            the pruned model that it emulates.
        neurons: Also count firing rates.
    """
    counter = _Counter(model, widths)
    handles = []
    for name, module in model.named_modules():
        hook = counter.hook_for(name, module, neurons)
        if hook is not None:
            handles.append(module.register_forward_hook(_unless_paused(counter.count, hook)))
    handles.append(model.register_forward_pre_hook(counter.start_batch))
    try:
        yield counter.count
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class FanOut:
    """Number of output channels that a spike reaches at a reader, at any group widths."""

    owner: str = ""  # groups whose width it is, as ``records.axis_owners`` reads them; or
    width: int = 1  # a constant
    divisor: int = 1  # heads, or groups of a convolution

    def at(self, widths: Mapping[str, int]) -> int:
        """Return the number at these widths of all groups."""
        return (axis_width(self.owner, widths) if self.owner else self.width) // self.divisor


def fan_outs(model: SpikingModel) -> Callable[[str], FanOut]:
    """Return a function that returns the fan-out of a reader, as in ``SpikeCount.reached``."""
    owners = axis_groups(model.channel_groups())
    return functools.cache(lambda name: _fan_out(model.get_submodule(name), name, owners))


def _fan_out(module: nn.Module, name: str, owners: Mapping[tuple[str, int], str]) -> FanOut:
    if isinstance(module, AttentionProduct):
        group_id = module.fan_out_group(name)
        return FanOut(group_id, divisor=module.heads) if group_id else FanOut()
    if not isinstance(module, COMPUTE_LAYERS):
        return FanOut()  # sums count whole operations
    n_groups = int(getattr(module, "groups", 1))
    if n_groups > 1 and tuple(module.weight.shape[:2]) == (n_groups, 1):
        return FanOut()  # depthwise
    owner = owners.get((f"{name}.weight", 0), "")
    return FanOut(owner, module.weight.shape[0], n_groups)


_Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


def _unless_paused(count: SpikeCount, hook: _Hook) -> _Hook:
    def guarded(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not count.is_paused:
            hook(module, inputs, output)

    return guarded


class _Counter:
    def __init__(self, model: SpikingModel, widths: Mapping[str, int] | None) -> None:
        self.count = SpikeCount()
        self._model = model
        self._widths = {**model.widths, **(widths or {})}
        self._fan_outs = fan_outs(model)
        self._real_fed = model.real_fed()
        self._covers: dict[tuple[str, torch.Size], Tensor] = {}
        self._summed: tuple[Tensor, Tensor] | None = None  # the last input and its row sums
        self._images = 0

    def start_batch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.count.is_paused:
            return
        self._images = inputs[0].shape[0]
        self.count.batches.append(self._images)

    def hook_for(self, name: str, module: nn.Module, neurons: bool) -> _Hook | None:
        if isinstance(module, NEURONS):
            return self._on_neuron(name) if neurons else None
        hook = self._counting(name, module)
        if hook is not None:
            self.count.fan_out[name] = self._fan_outs(name).at(self._widths)
        return hook

    def _counting(self, name: str, module: nn.Module) -> _Hook | None:
        if isinstance(module, SpikeSum):
            return self._on_sum(name)
        if isinstance(module, AttentionProduct):
            return self._on_product(name)
        if isinstance(module, COMPUTE_LAYERS) and name not in self._real_fed:
            return self._on_layer(name)
        return None

    def _add(self, name: str, per_row: Tensor, into: dict[str, list[Tensor]] | None = None) -> None:
        """Add counts, (B,) or time-major (T * B,), to their images."""
        per_image = per_row.double().view(-1, self._images).sum(0)
        batches = (self.count.reached if into is None else into).setdefault(name, [])
        if len(batches) < len(self.count.batches):
            batches.append(per_image)
        else:  # a layer that runs more than once
            batches[-1] = batches[-1] + per_image

    def _row_sums(self, x: Tensor) -> Tensor:
        """Return the sum of each row of (rows, ...) in float32: exact for counts below 2^22.

        Several layers read the same spikes, so the last result is cached. The cache keeps the
        tensor alive, so that no other tensor can reuse its memory.
        """
        if self._summed is not None and not x.is_meta:
            last, sums = self._summed
            if last.data_ptr() == x.data_ptr() and last.numel() == x.numel():
                return sums.view(x.shape[0], -1).sum(1)
        sums = _sum_of_each(x)
        self._summed = (x, sums)
        return sums

    def _on_neuron(self, name: str) -> _Hook:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            count = self.count
            timeless = isinstance(module, IntegerLIF)  # (B, ...); other neurons (T, B, ...)
            merged = output if timeless else output.flatten(0, 1)
            self._add(name, self._row_sums(merged) * spikes_per_unit(module), count.fired)
            count.seen[name] = count.seen.get(name, 0.0) + output.numel()

        return hook

    def _on_sum(self, name: str) -> _Hook:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._add(name, _sum_of_each(output.flatten(0, 1)))

        return hook

    def _on_product(self, name: str) -> _Hook:
        unit = self._model.spike_unit(name)

        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._add(name, module.reached(inputs) * unit)

        return hook

    def _on_layer(self, name: str) -> _Hook:
        unit = self._model.spike_unit(name)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0]
            if isinstance(module, nn.Conv2d) and max(*module.kernel_size, *module.stride) > 1:
                cover = self._cover(name, module, x, output)
                self._add(name, _sum_of_each(wide_sum(x, (1,)) * cover) * unit)
            else:
                self._add(name, self._row_sums(x) * unit)

        return hook

    def _cover(self, name: str, conv: nn.Conv2d, x: Tensor, output: Tensor) -> Tensor:
        """Return the number of output positions that each input position reaches, (H, W)."""
        key = (name, x.shape[2:])
        if key not in self._covers:
            ones = torch.ones(1, 1, *output.shape[2:], dtype=x.dtype, device=x.device)
            kernel = torch.ones(1, 1, *conv.kernel_size, dtype=x.dtype, device=x.device)
            pads = [int(p) for p in conv.padding]
            # Inputs after the last full window are covered too: they need output padding.
            extra = [
                size - ((out - 1) * stride - 2 * pad + k)
                for size, out, stride, pad, k in zip(
                    x.shape[2:], output.shape[2:], conv.stride, pads, conv.kernel_size, strict=True
                )
            ]
            self._covers[key] = F.conv_transpose2d(
                ones, kernel, stride=conv.stride, padding=pads, output_padding=extra
            )[0, 0]
        return self._covers[key]


def _sum_of_each(x: Tensor) -> Tensor:
    """Return the sum of each row, (rows,), in memory order, so that nothing is copied."""
    return wide_sum(x, tuple(range(1, x.dim())))
