"""Loads models from shipped weights, checkpoints of any size and pruned files; always strict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from psvit_core.errors import CheckpointError
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import ModelCard, list_models, model_card
from psvit_core.zoo.file_cards import card_for, header_card
from psvit_core.zoo.fitting import build_empty, class_count, load_tensors
from psvit_core.zoo.header import is_pruned_file
from psvit_core.zoo.opening import has_heads, load_as, load_sized
from psvit_core.zoo.pruned import load_pruned
from psvit_core.zoo.sizing import command_option
from psvit_core.zoo.tensors import ReadTensors, read_tensors

#: Families whose hashes do not name them: results were stored before other families had tensors of
#: the same names and shapes.
_UNNAMED_FAMILIES = frozenset(
    {
        "custom",
        "spikformer_imagenet",
        "spikformer_cifar",
        "sdt_v1",
        "sdt_v2",
        "sdt_v3",
        "qkformer_imagenet",
        "qkformer_cifar",
    }
)


def weights_hash(model: torch.nn.Module) -> str:
    """Return a hash of all weights and buffers: sorted names, dtypes, shapes, bytes.

    The family and the arguments that change the function but no tensor are part of it: the same
    weights with another number of heads are another model, and several families may have the same
    tensors.
    """
    total = hashlib.blake2b(digest_size=16)
    if extra := _extra_arguments(model):
        total.update(json.dumps(extra, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        plain = tensor.detach().cpu().contiguous()
        total.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _extra_arguments(model: torch.nn.Module) -> dict[str, Any]:
    """Return what decides a model's function besides its tensors.

    This is the family (not an alias of it) with its ``hashed_arguments``. For the oldest families
    it is only the ``hashed_arguments`` that differ from the card's: the card of the first ancestor,
    so that a pruned model has the same hash in memory and in its file, or else the family's
    defaults.
    """
    if not isinstance(model, SpikingModel):
        return {}
    if model.family not in _UNNAMED_FAMILIES:
        arguments = {name: model.arguments[name] for name in model.hashed_arguments}
        return {**arguments, "family": model.alias_of or model.family}
    origin = model.provenance.get("origin", model.name)
    usual = model_card(origin).arguments if origin in list_models() else {}
    return {
        name: model.arguments[name]
        for name, default in model.hashed_arguments.items()
        if model.arguments[name] != usual.get(name, default)
    }


def load_model(
    model: str | Path,
    checkpoint: str | Path | None = None,
    *,
    image_size: int | None = None,
    num_heads: int | None = None,
    T: int | None = None,
    ema: bool = False,
    entry: str | None = None,
    **arguments: Any,
) -> SpikingModel:
    """Load a model with weights, in evaluation mode, on the CPU.

    Args:
        model: A registered name, a pruned ``.safetensors`` file, or a checkpoint of any size of a
            known family. The size of such a checkpoint is read from its tensors; what they do not
            reveal must be given, unless a registered model has the same shapes.
        checkpoint: Weights for a registered name (``.safetensors``, ``.pth``, ``.pt``, ``.tar``);
            None loads the shipped ones. The number of classes is that of the file.
        image_size: Side of the images in pixels, if it differs from the card's.
        num_heads: Number of attention heads, if it differs from the card's.
        T: Number of time steps, if it differs from the card's.
        ema: Load the exponential moving average of the weights that the file also contains.
        entry: Name of the state dict to load, if the file contains several.
        arguments: Further arguments of a checkpoint's family that no tensor reveals, such as
            ``pooling_stat`` or ``batch_coupled``; ``family`` chooses among families with the same
            tensors.

    Returns:
        The model; its ``notes`` say what was changed while the file was read.

    Raises:
        UnknownNameError: If ``model`` is neither a registered name nor a file.
        CheckpointError: If the weights are damaged, unsafe, or do not fit. The message lists
            missing, unexpected and wrongly shaped keys and the registered models that would fit,
            or what must be given, with the possible values.
    """
    given = {"image_size": image_size, "num_heads": num_heads, "T": T, **arguments}
    given = {name: value for name, value in given.items() if value is not None}
    weights = _Weights(ema=ema, entry=entry)
    if is_file_name(str(model)):
        return _load_file(Path(model), checkpoint, weights, given)
    if further := sorted(set(given) - {"image_size", "num_heads", "T"}):
        raise CheckpointError(
            f"{model} is a registered model, which defines {', '.join(further)}. Omit "
            f"{', '.join(command_option(name) for name in further)}, or give the checkpoint's path "
            "in place of the model's name."
        )
    loaded = _load_registered(str(model), checkpoint, image_size, num_heads, weights)
    if T is not None:
        loaded.set_time_steps(T)
    return loaded


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Which of the weights in a file to load."""

    ema: bool = False
    entry: str | None = None

    @property
    def options(self) -> list[str]:
        """Return the command-line options that chose them."""
        return [*(["--ema"] if self.ema else []), *(["--entry"] if self.entry else [])]

    def read(self, path: Path, expected: Collection[str] | None = None) -> ReadTensors:
        """Read them from a file."""
        return read_tensors(path, ema=self.ema, entry=self.entry, expected=expected)


def _load_file(
    path: Path, checkpoint: str | Path | None, weights: _Weights, given: dict[str, Any]
) -> SpikingModel:
    if checkpoint:
        raise CheckpointError(
            f"{path} is a file that already contains weights. Omit --checkpoint, or give a "
            "registered model's name in place of the file."
        )
    if is_pruned_file(path):
        T = given.pop("T", None)
        if weights.options or given:
            options = [*weights.options, *map(command_option, given)]
            raise CheckpointError(
                f"{path} is a pruned file, which already defines its architecture and weights. "
                f"Omit {', '.join(options)}."
            )
        pruned = load_pruned(path)
        if T is not None:
            pruned.set_time_steps(T)
        return pruned
    read = weights.read(path)
    model = load_sized(path, read.tensors, given)
    model.notes = (*read.notes, *model.notes)
    return model


def _load_registered(
    name: str,
    checkpoint: str | Path | None,
    image_size: int | None,
    num_heads: int | None,
    weights: _Weights,
) -> SpikingModel:
    card = model_card(name).at(image_size)
    path = Path(checkpoint) if checkpoint else card.weights
    if card.builder and num_heads is not None:
        raise _ignored_heads(name)
    if card.builder and path is None:
        return card.builder.load(None, image_size)
    if path is None:
        raise CheckpointError(f"{name} has no shipped weights. Pass a file with --checkpoint.")
    read = weights.read(path, card.builder.tensor_shapes() if card.builder else None)
    if read.is_pruned:
        raise CheckpointError(
            f"{path} is a pruned file with its own architecture. "
            f"Use it in place of the model name {name!r}."
        )
    if card.builder:
        loaded: SpikingModel = card.builder.load(read.tensors, image_size)
    else:
        heads = {} if num_heads is None else {"num_heads": num_heads}
        if heads and not has_heads(card.family, read.tensors):
            raise _ignored_heads(name)
        classes = class_count(read.tensors)
        loaded = build_empty(card.family, {**card.arguments, **classes, **heads}, {})
        load_tensors(loaded, read.tensors, path)
        loaded.name = name
    loaded.notes = (*read.notes, *loaded.notes)
    return loaded


def _ignored_heads(name: str) -> CheckpointError:
    return CheckpointError(
        f"The number of heads of {name} is fixed, so num_heads would be ignored. Omit "
        f"{command_option('num_heads')}."
    )


def load_origin(
    pruned: SpikingModel,
    checkpoint: str | Path | None = None,
    *,
    ema: bool = False,
    entry: str | None = None,
) -> SpikingModel:
    """Load the unpruned model that a pruned model was made from, for images of the same size.

    Args:
        pruned: A model with provenance.
        checkpoint: Weights of a registered origin; None loads the shipped ones.
        ema: Load the moving average of the weights.
        entry: Name of the state dict to load, if the file contains several.

    Raises:
        UnknownNameError, CheckpointError: If the origin's weights are not available.
    """
    origin = str(pruned.provenance["origin"])
    if not is_file_name(origin):
        return load_model(
            origin,
            checkpoint,
            image_size=pruned.input_shape[1],
            num_heads=_chosen_heads(pruned, origin),
            ema=ema,
            entry=entry,
        )
    tensors = read_tensors(Path(origin), ema=ema, entry=entry).tensors
    return load_as(Path(origin), tensors, pruned.family, pruned.arguments)


def _chosen_heads(pruned: SpikingModel, origin: str) -> Any:
    """Return a pruned model's number of heads if it was not its card's."""
    heads = pruned.arguments.get("num_heads")
    return None if heads == model_card(origin).arguments.get("num_heads", heads) else heads


def is_file_name(model: str) -> bool:
    """Return True if ``model`` is the path of a file instead of a registered name."""
    if model in list_models():
        return False
    try:
        return bool(Path(model).suffix or Path(model).exists())
    except OSError:  # too long, or in a folder that may not be searched
        return True


def find_card(model: str | Path) -> ModelCard:
    """Return the card of a registered model, or of the model that a pruned file was made from.

    Raises:
        UnknownNameError: If ``model`` is neither a registered name nor a file.
        CheckpointError: If the file is not a valid pruned file.
    """
    if not is_file_name(str(model)):
        return model_card(str(model))
    return header_card(Path(model))


def card_of(model: SpikingModel) -> ModelCard:
    """Return a loaded model's card: of its registered origin, or derived from its arguments."""
    origin = str(model.provenance.get("origin", model.name))
    return card_for(origin, model.family, model.arguments)
