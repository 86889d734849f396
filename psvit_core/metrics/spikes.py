"""Counting spikes while a model runs: firing rates and synaptic operations (SOPs).

A SOP is one accumulate that a spike triggers. For every layer that reads spikes: the spikes at its
input (an integer level k counts k) times the outputs that each really reaches - at image borders
and under strides exactly, not on average. Attention: a query spike meets every key token, a value
spike every attention row; SDSA accumulates where key and value spike together, Q-K attention the
queries of a head. Layers that read real values instead of spikes (the first convolution, run once
for a static image) are multiply-accumulates and not counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.groups import COMPUTE_LAYERS, axis_groups
from psvit_core.neurons import NEURONS, IntegerLIF, spikes_per_unit
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import SpikeProduct, SpikeSum


@dataclass
class SpikeCount:
    """What the hooks of ``count_spikes`` gather, batch by batch."""

    # Reader -> one (B,) float64 a batch: spikes at its input x output positions that each reaches.
    reached: dict[str, list[Tensor]] = field(default_factory=dict)
    fan_out: dict[str, int] = field(default_factory=dict)  # reader -> output channels of a spike
    fired: dict[str, float] = field(default_factory=dict)  # neuron layer -> sum of spike values
    seen: dict[str, float] = field(default_factory=dict)  # neuron layer -> neurons x steps x images
    batches: list[int] = field(default_factory=list)  # images of each

    @property
    def sops(self) -> list[Tensor]:
        """Synaptic operations per image, one (B,) float64 a batch; 0 where nothing reads spikes."""
        if not self.reached:
            return [torch.zeros(n_images, dtype=torch.float64) for n_images in self.batches]
        scaled = ([t * self.fan_out[n] for t in parts] for n, parts in self.reached.items())
        return [torch.stack(batch).sum(0) for batch in zip(*scaled, strict=True)]

    def firing_rates(self) -> dict[str, float]:
        """Mean spike value per neuron and time step, by neuron layer."""
        return {name: self.fired[name] / self.seen[name] for name in self.fired}


@contextmanager
def count_spikes(
    model: SpikingModel, widths: Mapping[str, int] | None = None, *, neurons: bool = True
) -> Iterator[SpikeCount]:
    """Count while the block runs ``model``; hooks are removed at its end.

    Args:
        model: The model that runs.
        widths: Group widths that fan-outs are counted at, where ``model`` is a full model that
            stands for a pruned one (``surgery.silenced``).
        neurons: Whether firing rates are counted too.
    """
    counter = _Counter(model, widths)
    handles = []
    for name, module in model.named_modules():
        hook = counter.hook_for(name, module, neurons)
        if hook is not None:
            handles.append(module.register_forward_hook(hook))
    handles.append(model.register_forward_pre_hook(counter.start_batch))
    try:
        yield counter.count
    finally:
        for handle in handles:
            handle.remove()


def fan_out(model: SpikingModel, reader: str, widths: Mapping[str, int] | None = None) -> int:
    """Output channels that a spike reaches at a layer.

    Args:
        model: The model, unpruned where ``widths`` are given.
        reader: A layer, as in ``SpikeCount.reached``.
        widths: Group widths of what stands for a pruned model; absent groups are whole.
    """
    module = model.get_submodule(reader)
    if not isinstance(module, COMPUTE_LAYERS) or getattr(module, "groups", 1) > 1:
        return 1  # sums and products count whole operations; depthwise
    owner = axis_groups(model.channel_groups()).get((f"{reader}.weight", 0), "")
    return (widths or {}).get(owner, module.weight.shape[0])


_Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


class _Counter:
    def __init__(self, model: SpikingModel, widths: Mapping[str, int] | None) -> None:
        self.count = SpikeCount()
        self._model = model
        self._widths = widths
        self._real_fed = model.real_fed()
        self._covers: dict[tuple[str, torch.Size], Tensor] = {}
        self._summed: tuple[Tensor, Tensor] | None = None  # the last tensor and its row sums
        self._images = 0

    def start_batch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._images = inputs[0].shape[0]
        self.count.batches.append(self._images)

    def hook_for(self, name: str, module: nn.Module, neurons: bool) -> _Hook | None:
        if isinstance(module, NEURONS):
            return self._on_neuron(name) if neurons else None
        hook = self._counting(name, module)
        if hook is not None:
            self.count.fan_out[name] = fan_out(self._model, name, self._widths)
        return hook

    def _counting(self, name: str, module: nn.Module) -> _Hook | None:
        if isinstance(module, SpikeSum):
            return self._on_sum(name)
        if isinstance(module, SpikeProduct):
            return self._on_product(name)
        if isinstance(module, COMPUTE_LAYERS) and name not in self._real_fed:
            return self._on_layer(name)
        return None

    def _add(self, name: str, per_row: Tensor) -> None:
        """Add counts, (T * B,) merged time-major or (B,), to their images."""
        per_image = per_row.double().view(-1, self._images).sum(0)
        batches = self.count.reached.setdefault(name, [])
        if len(batches) < len(self.count.batches):
            batches.append(per_image)
        else:  # a layer that runs more than once
            batches[-1] = batches[-1] + per_image

    def _row_sums(self, x: Tensor) -> Tensor:
        """Sum of each row of (rows, ...), float32: exact for spike counts below 2^22.

        Several layers read the same spikes, so the last result is kept (with its tensor, so that
        the memory cannot be another tensor's by then).
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
            timeless = isinstance(module, IntegerLIF)  # (B, ...); all others (T, B, ...)
            merged = output if timeless else output.flatten(0, 1)
            value = float(self._row_sums(merged).double().sum()) * spikes_per_unit(module)
            count.fired[name] = count.fired.get(name, 0.0) + value
            count.seen[name] = count.seen.get(name, 0.0) + output.numel()

        return hook

    def _on_sum(self, name: str) -> _Hook:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._add(name, _sum_of_each(output.flatten(0, 1)))

        return hook

    def _on_product(self, name: str) -> _Hook:
        unit = self._model.spike_unit(name)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            q, _, v = inputs
            tokens = q.shape[-1]
            self._add(name, (_sum_of_each(q) + _sum_of_each(v)) * (unit * tokens))

        return hook

    def _on_layer(self, name: str) -> _Hook:
        unit = self._model.spike_unit(name)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0]
            if isinstance(module, nn.Conv2d) and max(*module.kernel_size, *module.stride) > 1:
                cover = self._cover(name, module, x, output)
                self._add(name, _sum_of_each(x.sum(1) * cover) * unit)
            else:
                self._add(name, self._row_sums(x) * unit)

        return hook

    def _cover(self, name: str, conv: nn.Conv2d, x: Tensor, output: Tensor) -> Tensor:
        """How many output positions each input position reaches, (H, W)."""
        key = (name, x.shape[2:])
        if key not in self._covers:
            ones = torch.ones(1, 1, *output.shape[2:], dtype=x.dtype, device=x.device)
            kernel = torch.ones(1, 1, *conv.kernel_size, dtype=x.dtype, device=x.device)
            pads = [int(p) for p in conv.padding]
            # Inputs after the last window's crop are reached too: they need output padding.
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
    """Sum of each row, (rows,); in the order of memory, so that nothing is copied."""
    return x.sum(dim=tuple(range(1, x.dim())))
