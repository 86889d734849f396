"""Models whose weights have fewer bits: what is quantized, how it is kept, how many bytes it has.

The weights of convolutions and linear layers are quantized. BatchNorms, biases, scales of layers
and parameters of neurons stay float32: together they are a few percent of the bytes, and neurons
compare potentials with thresholds. BatchNorms are not folded into weights. It would change nothing:
a factor per output channel multiplies the channel's scale and leaves its whole numbers as they are.

In memory a quantized model is an ordinary model with the dequantized weights in float32, so that
everything measures, exports and prunes it as any other. ``weights_kind`` says in which form its
weights can be stored without loss: whatever changes them makes it ``float32`` again.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from psvit_core.errors import ModelError, UnknownNameError
from psvit_core.quantize import SCALE, packed, unpacked
from psvit_core.records import STORED_WEIGHTS
from psvit_core.zoo.base import SpikingModel

FLOAT32 = "float32"
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def layer_weights(model: SpikingModel) -> tuple[str, ...]:
    """Return the names of the weights of convolutions and linear layers, in stored order."""
    layers = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _LAYERS)
    }
    return tuple(name for name in model.state_dict() if name in layers)


def quantize_weights(model: SpikingModel, kind: str) -> SpikingModel:
    """Return a copy of a model with weights that are stored in fewer bits.

    It computes exactly what the model computes with these weights in float32. ``model`` stays.

    Args:
        model: A float32 model with weights: pruned, recovered, trained or whole.
        kind: ``int8`` (symmetric, a scale per output channel), ``float16`` or ``bfloat16``.

    Raises:
        UnknownNameError: If there is no such kind.
        ModelError: If the model is not in float32, is quantized already, or has a weight beyond the
            range of float16.
    """
    if kind not in STORED_WEIGHTS:
        raise UnknownNameError("kind of weights", kind, STORED_WEIGHTS)
    if (present := weights_kind(model)) != FLOAT32:
        raise ModelError(
            f"The weights of {model.name} are {present} already. Quantize the float32 file that it "
            "was made from."
        )
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    plain = unpacked(packed(tensors, layer_weights(model), kind))
    small = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in small.state_dict(keep_vars=True).items():
            tensor.copy_(plain[name])
    small.stored_weights = kind
    small.recorded = ()
    if small.provenance:
        before = small.provenance.get("quantized", [])
        small.provenance = {**small.provenance, "quantized": [*before, kind]}
    return small


def weights_kind(model: SpikingModel) -> str:
    """Return in which form a model's weights can be stored without loss.

    It is the form that they were quantized to or read in, and ``float32`` once they were changed.
    """
    kind = model.stored_weights
    if kind == FLOAT32:
        return kind
    tensors = model.state_dict()
    names = layer_weights(model)
    weights = {name: tensors[name] for name in names}
    if any(w.is_meta or w.dtype != torch.float32 for w in weights.values()):
        return FLOAT32
    again = unpacked(packed(weights, names, kind))
    return kind if all(torch.equal(again[n], weights[n]) for n in names) else FLOAT32


def stored_state(model: SpikingModel) -> dict[str, Tensor]:
    """Return a model's state dict as files store it, on the processor."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    kind = weights_kind(model)
    return tensors if kind == FLOAT32 else packed(tensors, layer_weights(model), kind)


def weights_bytes(model: SpikingModel) -> int:
    """Return the bytes that inference reads, in the form in which the weights are stored.

    Parameters and BatchNorm statistics, without counters and unused tensors; for int8 with scales.
    """
    return sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in stored_state(model).items()
        if name.removesuffix(SCALE) not in model.unused and not name.endswith("num_batches_tracked")
    )
