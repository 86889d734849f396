"""Models of sizes that no card knows, and what must be given to open their files."""

from __future__ import annotations

from typing import Any

from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.registry import FAMILIES, build_model
from tests.tiny import tiny_model


def square_model(name: str) -> SpikingModel:
    """Return a reference model for square images."""
    model = tiny_model(name)
    if model.input_shape[1] != model.input_shape[2]:
        arguments = {**model.arguments, "img_size_w": model.input_shape[1]}
        square = build_model(model.family, **arguments)
        square.load_state_dict(model.state_dict())
        return square
    return model


def hidden_arguments(model: SpikingModel) -> dict[str, Any]:
    """Return the family and the arguments that the tensors of a model do not reveal."""
    family = FAMILIES[model.family]
    size = family.read_size({k: tuple(t.shape) for k, t in model.state_dict().items()})
    assert size is not None
    given: dict[str, Any] = {"family": family.alias_of or model.family}
    for choice in family.choices(size):
        is_side = choice.argument == "image_size"
        value = model.input_shape[1] if is_side else model.arguments[choice.argument]
        given[choice.argument] = value
    return given
