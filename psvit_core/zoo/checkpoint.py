"""From files to models: official checkpoints, shipped weights, pruned files; always strict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psvit_core.errors import CheckpointError, PsvitError, RecordError, UnknownNameError
from psvit_core.records import FinetuneReport, PrunePlan, RecoveryReport
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import ModelCard, list_models, model_card
from psvit_core.zoo.registry import build_model
from psvit_core.zoo.tensors import read_metadata, read_tensors

PRUNED_FORMAT = 1
CUSTOM = "custom"  # family of the users' own models
METADATA_KEY = "psvit"
_MAX_ARGUMENT = 100_000  # larger than any width; keeps a hostile header harmless
_MAX_DEPTH, _MAX_SIDE = 1_000, 2_048
_LIMITS = {  # of those by which time and memory grow before any tensor is read
    "depths": _MAX_DEPTH, "T": _MAX_DEPTH, "in_channels": _MAX_DEPTH,
    "img_size_h": _MAX_SIDE, "img_size_w": _MAX_SIDE,
}  # fmt: skip
_ONE_COUNT = ("T", "in_channels", "num_classes", "img_size_h", "img_size_w")


def weights_hash(model: torch.nn.Module) -> str:
    """Hash of all weights and buffers: sorted names, dtypes, shapes, bytes.

    And of the arguments that change the function but no tensor, where they are not the card's:
    other heads make another model of the same weights.
    """
    total = hashlib.blake2b(digest_size=16)
    if unseen := _unseen(model):
        total.update(json.dumps(unseen, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        plain = tensor.detach().cpu().contiguous()
        total.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _unseen(model: torch.nn.Module) -> dict[str, Any]:
    """Arguments that no tensor tells, where they are not those of the card.

    The card is that of the first ancestor, so that a pruned model has one hash in memory and in its
    file; a model without one is compared with its family's defaults.
    """
    if not isinstance(model, SpikingModel):
        return {}
    origin = model.provenance.get("origin", model.name)
    usual = model_card(origin).arguments if origin in list_models() else {}
    return {
        name: model.arguments[name]
        for name, default in model.unseen.items()
        if model.arguments[name] != usual.get(name, default)
    }


def load_model(
    model: str | Path,
    checkpoint: str | Path | None = None,
    *,
    image_size: int | None = None,
    num_heads: int | None = None,
    ema: bool = False,
) -> SpikingModel:
    """A model with weights, in evaluation mode, on the CPU.

    Heads and time steps do not follow from a file's shapes: they are those of the card. The number
    of classes does: a file with another head than the card's is loaded with that many outputs.

    Args:
        model: A registered name, or the path of a pruned ``.safetensors``.
        checkpoint: Weights for a registered name (``.safetensors``, ``.pth``, ``.pt``, ``.tar``);
            the shipped ones when None.
        image_size: Side of the images in pixels where it differs from the card's.
        num_heads: Attention heads where they differ from the card's.
        ema: Take the moving average that the file holds beside the weights.

    Raises:
        UnknownNameError: If ``model`` is neither a registered name nor a file.
        CheckpointError: If the weights are damaged, foreign, or do not fit; the message names the
            missing, unexpected and wrongly shaped keys and the registered models that would fit.
    """
    name = str(model)
    if is_file_name(name):
        if checkpoint or ema or image_size or num_heads:
            raise CheckpointError(
                f"{name} is a model file of its own; leave --checkpoint, --ema, --image-size and "
                "--num-heads away."
            )
        return _load_pruned(Path(name))
    card = model_card(name).at(image_size)
    path = Path(checkpoint) if checkpoint else card.weights
    if card.own and path is None:
        return card.own.load(None, image_size)
    if path is None:
        raise CheckpointError(f"{name} ships without weights. Give its file with --checkpoint.")
    tensors, metadata = read_tensors(path, ema=ema)
    if METADATA_KEY in metadata:
        raise CheckpointError(
            f"{path} is a pruned checkpoint with an architecture of its own. "
            f"Use it in place of the model name {name!r}."
        )
    if card.own:
        return card.own.load(tensors, image_size)
    heads = {} if num_heads is None else {"num_heads": num_heads}
    built = _build_empty(card.family, {**card.arguments, **_classes_of(tensors), **heads}, {})
    _assign(built, tensors, path)
    built.name = name
    return built


def is_file_name(model: str) -> bool:
    """Whether ``model`` means a file and not a registered name."""
    return model not in list_models() and bool(Path(model).suffix or Path(model).exists())


def _classes_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    head = tensors.get("head.weight")
    return {} if head is None or head.dim() != 2 else {"num_classes": head.shape[0]}


def find_card(model: str | Path) -> ModelCard:
    """The card of a registered model, or of the one that a pruned file came from."""
    if not is_file_name(str(model)):
        return model_card(str(model))
    return model_card(_read_header(Path(model))["provenance"]["origin"])


def _build_empty(
    family: str, arguments: Mapping[str, Any], widths: Mapping[str, int]
) -> SpikingModel:
    if family == CUSTOM:
        return model_card(arguments["name"]).own.rebuild(arguments, widths)
    with torch.device("meta"):
        return build_model(family, widths, **arguments)


def _assign(model: SpikingModel, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give ``model`` these weights, strictly."""
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    unexpected = sorted(set(tensors) - set(wanted))
    shaped = [
        f"{k} {tuple(tensors[k].shape)} for {tuple(wanted[k].shape)}"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    if missing or unexpected or shaped:
        parts = (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", shaped))
        told = "; ".join(f"{len(x)} {what} ({', '.join(x[:3])}...)" for what, x in parts if x)
        fitting = [fit.model for fit in compare_models(tensors) if not fit.n_faults]
        raise CheckpointError(
            f"{path} does not fit {model.family} as configured: {told}. "
            + (f"It fits {', '.join(fitting)}." if fitting else "It fits no registered model.")
        )
    for key, tensor in tensors.items():
        floating = wanted[key].is_floating_point()
        if floating != tensor.is_floating_point():
            raise CheckpointError(f"{path}: {key} has type {tensor.dtype}; expected a float.")
        if floating and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {key} holds NaN or infinite values.")
    cast = {k: v.to(wanted[k].dtype).clone() for k, v in tensors.items()}
    model.load_state_dict(cast, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How the tensors of a file stand beside a registered model's."""

    model: str
    missing: tuple[str, ...]  # tensors that the model has and the file has not
    unexpected: tuple[str, ...]  # the other way round
    reshaped: tuple[str, ...]  # in both, with other shapes

    @property
    def n_faults(self) -> int:
        """Tensors that do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)


def compare_models(tensors: Mapping[str, Tensor]) -> list[Fit]:
    """How a file's tensors stand beside every registered model's, the nearest first."""
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    found = []
    for name in list_models():
        card = model_card(name)
        if card.own:
            continue
        empty = _build_empty(card.family, {**card.arguments, **_classes_of(tensors)}, {})
        wanted = {key: tensor.shape for key, tensor in empty.state_dict().items()}
        both = wanted.keys() & shapes.keys()
        fit = Fit(
            model=name,
            missing=tuple(sorted(wanted.keys() - both)),
            unexpected=tuple(sorted(shapes.keys() - both)),
            reshaped=tuple(sorted(key for key in both if wanted[key] != shapes[key])),
        )
        found.append(fit)
    return sorted(found, key=lambda fit: fit.n_faults)


def _read_header(path: Path) -> dict[str, Any]:
    """The architecture, plan and provenance in a pruned file's metadata, checked."""
    metadata = read_metadata(path)
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} carries no architecture, so it was not written by this tool. For an official "
            "checkpoint give the model's name and --checkpoint."
        )
    try:
        header: dict[str, Any] = json.loads(metadata[METADATA_KEY])
        sound = (
            header["format"] == PRUNED_FORMAT
            and isinstance(header["family"], str)
            and all(_small(v, k) for k, v in header["arguments"].items())
            and all(type(v) is int for v in header["widths"].values())
            and _is_provenance(header["provenance"], header["widths"])
        )
    except (
        ValueError, KeyError, TypeError, AttributeError, RecursionError, RecordError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{path}: its metadata is damaged ({error}).") from error
    if not sound:
        raise CheckpointError(
            f"{path}: its metadata is not of format {PRUNED_FORMAT}, or contradicts itself."
        )
    own = header["arguments"].get("name")
    if header["family"] == CUSTOM and (own not in list_models() or not model_card(own).own):
        raise CheckpointError(
            f"{path} was pruned from {own!r}, a model of the user's own that is not registered. "
            "Name the file or module that registers it with --plugin."
        )
    return header


def _small(value: object, name: str) -> bool:
    if name in _ONE_COUNT and not (type(value) is int and value >= 1):
        return False
    values = value if isinstance(value, list) else [value]
    limit = _LIMITS.get(name, _MAX_ARGUMENT)
    return len(values) <= 16 and all(
        isinstance(v, str) or (isinstance(v, int) and 0 <= v <= limit) for v in values
    )


def _is_provenance(told: Mapping[str, Any], widths: Mapping[str, int]) -> bool:
    """Whether a header tells what ``apply_plan`` leaves, so that whoever reads it may rely on it.

    Raises:
        RecordError, KeyError, TypeError, AttributeError: Where a part is something else or missing.
    """
    for kind, records in (
        (PrunePlan, told["plans"]),
        (RecoveryReport, told.get("recoveries", [])),
        (FinetuneReport, told.get("finetunes", [])),
    ):
        for record in records:
            kind.from_dict(record)
    return (
        isinstance(told["origin"], str)
        and isinstance(told["origin_weights_hash"], str)
        and type(told["origin_bytes"]) is int
        and told["origin_bytes"] >= 1
        and len(told["plans"]) >= 1
        and all(
            all(type(unit) is int and unit >= 0 for unit in units)
            and units == sorted(set(units))
            and len(units) == widths[group]
            for group, units in told["kept"].items()
        )
    )


def _load_pruned(path: Path) -> SpikingModel:
    header = _read_header(path)
    try:
        model = _build_empty(header["family"], header["arguments"], header["widths"])
    except UnknownNameError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except PsvitError as error:
        raise CheckpointError(f"{path}: its metadata fits no model: {error}") from error
    tensors, _ = read_tensors(path)
    if all(t.dtype == torch.float64 for t in tensors.values() if t.is_floating_point()):
        model = model.double()  # as it was saved; of another precision it would be another model
    _assign(model, tensors, path)
    model.name = str(path)
    model.provenance = header["provenance"]
    return model
