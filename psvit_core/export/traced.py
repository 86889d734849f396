"""A network as one graph of torch operations, which ``torch.export`` traces.

Neurons become those of ``torch_neurons``: a graph that runs elsewhere can contain no native loops.
All time steps are written out, one after the other. The number of images stays open unless it is
given.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from psvit_core.custom.model import CustomModel, run_network
from psvit_core.custom.users_code import one_line
from psvit_core.errors import ExportError, ModelError
from psvit_core.export import torch_neurons
from psvit_core.neurons import LIF, IntegerLIF
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import BNAndPad
from psvit_core.zoo.pruned import check_values

#: Neurons of the traced network: those of the families, and SpikingJelly's of own networks.
_NEURONS = (torch_neurons.LIF, torch_neurons.IntegerLIF, neuron.BaseNode)
#: The node of a LIF neuron that is not written out yet.
SYMBOL_DOMAIN, SYMBOL = "psvit", "LIF"
_SEED = 0
_TRACED_IMAGES = 2  # a batch of one would be a special case


class _OwnNetwork(nn.Module):
    """A user's module as its ``CustomModel`` runs it, without checks of its output.

    Args:
        model: The model; shared.
    """

    def __init__(self, model: CustomModel) -> None:
        super().__init__()
        self.net = model.net
        self.T = model.arguments.get("T")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = run_network(self.net, x, self.T)
        return logits


class SymbolicLIF(torch_neurons.LIF):
    """A LIF neuron that can be traced as one node, which ``onnx_graph`` writes out afterwards.

    Written out, each neuron has 7 operations for each time step. Tracers need seconds for hundreds.

    Args:
        v_threshold: Firing threshold.
        atan: Has no effect without gradients.
    """

    is_symbol = False  # set while it is traced

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes of 0.0 and 1.0 for input currents ``x``, both (T, ...)."""
        if not self.is_symbol:
            return super().forward(x)
        spikes: Tensor = torch.onnx.ops.symbolic(
            f"{SYMBOL_DOMAIN}::{SYMBOL}",
            (x,),
            {"v_threshold": float(self.v_threshold), "steps": int(x.shape[0])},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )
        return spikes


class _BNAndPad(nn.Module):
    """``zoo.layers.BNAndPad`` in evaluation mode, without writing into a tensor.

    Args:
        layer: The layer; its BatchNorm is shared.
    """

    value: Tensor

    def __init__(self, layer: BNAndPad) -> None:
        super().__init__()
        self.bn = bn = layer.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        value = bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)
        self.register_buffer("value", value.detach().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, C, H, W) to (rows, C, H + 2, W + 2)."""
        x = self.bn(x)
        row = self.value.expand(x.shape[0], -1, 1, x.shape[3])
        x = torch.cat([row, x, row], 2)
        column = self.value.expand(x.shape[0], -1, x.shape[2], 1)
        return torch.cat([column, x, column], 3)


class WithSpikes(nn.Module):
    """A network that also returns what goes into its neurons and what comes out of them.

    Args:
        network: From ``plain_network``; shared.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return logits, then input current and spikes of each call of a neuron, in order."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.extend((inputs[0], output))

        neurons = [module for module in self.network.modules() if isinstance(module, _NEURONS)]
        hooks = [module.register_forward_hook(keep) for module in neurons]
        try:
            logits = self.network(x)
        finally:
            for hook in hooks:
                hook.remove()
        return logits, *seen


def plain_network(model: SpikingModel, batch: int | None = None) -> nn.Module:
    """Return a copy of a model that runs torch operations only, without gradients.

    Args:
        model: The model.
        batch: The only number of images that it will get; None: any.

    Raises:
        ModelError: If the images of a batch influence each other, and their number is open.
        CheckpointError: If the model has no usable weights.
    """
    if model.batch_coupled and batch is None:
        raise ModelError(
            f"{model.name} cannot be written as one graph for any number of images: the images of "
            "a batch influence each other, so each batch size has its own graph. --format pt2 with "
            "--batch N writes one for N images, --format torch a file for any number. A QKFormer "
            "that was trained with independent images opens with --no-batch-coupled."
        )
    check_values(model)
    copied = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    copied.__dict__["fault_of_values"] = str  # no fault: checked above, and a graph cannot ask
    network = _OwnNetwork(copied) if isinstance(copied, CustomModel) else copied
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if (plain := _plain_layer(child)) is not None:
                setattr(module, name, plain)
    return network.eval()


def _plain_layer(layer: nn.Module) -> nn.Module | None:
    """Return what stands for a layer in a traced network; None for the layer itself."""
    if isinstance(layer, LIF):
        return SymbolicLIF(layer.v_threshold, atan=layer.atan)
    if isinstance(layer, IntegerLIF):
        return torch_neurons.IntegerLIF(layer.norm, layer.levels, layer.half_up)
    if isinstance(layer, BNAndPad):
        return _BNAndPad(layer)
    return None


@contextmanager
def symbols(network: nn.Module) -> Iterator[None]:
    """Let the LIF neurons of a network be one node each while the block traces it."""
    neurons = [module for module in network.modules() if isinstance(module, SymbolicLIF)]
    for module in neurons:
        module.is_symbol = True
    try:
        yield
    finally:
        for module in neurons:
            module.is_symbol = False


def random_images(model: SpikingModel, n_images: int) -> Tensor:
    """Return seeded images of the model's input size and type, (B, C, H, W), standard normal."""
    random = torch.Generator().manual_seed(_SEED)
    shape = (n_images, *model.input_shape)
    return torch.randn(shape, generator=random).to(next(model.parameters()).dtype)


def whole_batches(images: Tensor, batch: int | None) -> Tensor:
    """Return images so many that they fill batches: repeated up to one, else without a rest.

    Raises:
        ExportError: If a batch has no image.
    """
    if batch is None:
        return images
    if batch < 1:
        raise ExportError(f"A file takes at least 1 image at a time; got batch {batch}.")
    repeats = -(-batch // len(images))
    images = images.repeat(repeats, *[1] * (images.dim() - 1))
    return images[: len(images) // batch * batch]


def traced_program(
    model: SpikingModel, module: nn.Module, images: Tensor, batch: int | None = None
) -> torch.export.ExportedProgram:
    """Trace a module for any number of images, or for ``batch``.

    Args:
        model: What it is made of, for messages.
        module: Takes images only.
        images: Their shape is traced, except for their number.
        batch: The only number of images of the graph; None: any.

    Raises:
        ModelError: If it cannot be traced.
    """
    n_images = batch or _TRACED_IMAGES
    sample = whole_batches(images, n_images)[:n_images].contiguous()
    shapes = ({0: torch.export.Dim("batch")},) if batch is None else None
    with tracing(model):
        return torch.export.export(module, (sample,), dynamic_shapes=shapes, strict=False)


@contextmanager
def tracing(model: SpikingModel) -> Iterator[None]:
    """Trace in the block, without gradients and without notes on stderr.

    Raises:
        ModelError: If anything in the block fails.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),  # torch prints unfinished graphs
        ):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # tracers raise whatever the traced code and they themselves raise
        raise untraceable(model, one_line(error)) from error
    finally:
        logging.disable(before)


def untraceable(model: SpikingModel, reason: str) -> ModelError:
    """Return the error for a network that no graph stands for."""
    return ModelError(
        f"{model.name} cannot be written as one graph: {reason} Usually its forward has "
        "Python code that depends on values, or on the number of images."
    )
