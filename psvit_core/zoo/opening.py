"""Opens files that no card describes: the tensors reveal family and size, the rest is given.

What no tensor reveals (heads, time steps, image size, ...) comes from a registered model if its
shapes are the file's. Otherwise it must be given; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psvit_core.errors import CheckpointError, PsvitError
from psvit_core.records import Choice, Option, Sizing
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import ModelCard, list_models, model_card
from psvit_core.zoo.fitting import (
    Fit,
    build_empty,
    compare_layout,
    compare_models,
    load_tensors,
    rank_fit,
    shapes_of,
)
from psvit_core.zoo.registry import FAMILIES, build_model
from psvit_core.zoo.renaming import adapt_names, layout_of, renaming_note
from psvit_core.zoo.sizing import Shapes, choice_text, option_name

#: Families whose files are told apart; others have the same function at other defaults.
_READ_FAMILIES = tuple(name for name, family in FAMILIES.items() if not family.alias_of)
#: Arguments that may differ from a registered model's.
_CARD_ARGUMENTS = frozenset({"family", "image_size", "num_heads", "T"})
_NAMED = 3  # tensors of each kind that a message names


def find_sizings(tensors: Mapping[str, Tensor]) -> list[Sizing]:
    """Return the families that all of a file's tensors fit, with the size read from the shapes.

    Several families may have the same tensors (Spikingformer with and without CML); then the file
    does not show which one it is.
    """
    shapes = shapes_of(tensors)
    if any(0 in shape for shape in shapes.values()):
        return []  # no layer has zero channels
    found = []
    for family in _READ_FAMILIES:
        size = _read_size(family, shapes)
        model = None if size is None else _build(family, size)
        if size is None or model is None:
            continue
        layout = layout_of(model)
        named = adapt_names(layout, tensors)
        if layout.shapes == shapes_of(named):
            found.append(_sizing(model, size, renaming_note(tensors, named)))
    return found


def find_nearest(tensors: Mapping[str, Tensor]) -> Fit:
    """Return the comparison with the model that shares the most tensors with a file.

    It is a registered model, or a family at the size that the file's tensors show.
    """
    fits = compare_models(tensors)
    shapes = shapes_of(tensors)
    for family in _READ_FAMILIES:
        size = _read_size(family, shapes)
        model = None if size is None else _build(family, size)
        if model is not None:
            name = f"{model.title or family} of the size in the file"
            fits.append(compare_layout(name, layout_of(model), tensors))
    return min(fits, key=rank_fit)


def _read_size(family: str, shapes: Shapes) -> dict[str, Any] | None:
    try:
        return FAMILIES[family].read_size(shapes)
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError):
        return None  # tensors of these names, but of other ranks


def _build(family: str, size: Mapping[str, Any]) -> SpikingModel | None:
    """Build a family at a size, with the first option for everything else; None if impossible."""
    chosen = {c.argument: c.options[0].value for c in FAMILIES[family].choices(size) if c.options}
    try:
        with torch.device("meta"):
            return build_model(family, **constructor_arguments(family, {**size, **chosen}))
    except PsvitError:
        return None


def _sizing(model: SpikingModel, size: dict[str, Any], note: str) -> Sizing:
    family = type(model)
    return Sizing(
        family=model.family,
        title=family.title or model.family,
        size=size,
        parameters=sum(p.numel() for p in model.parameters()),
        n_groups=len(model.channel_groups()),
        cards=tuple(card.name for card in _cards_of(model.family, size)),
        choices=family.choices(size),
        cautions=(*family.cautions(size), *([f"{note}."] if note else [])),
    )


def has_heads(family: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return True if a file of this family has a number of heads that a user can choose."""
    size = _read_size(family, shapes_of(tensors))
    if size is None:
        return True  # the file does not fit the family, which loading it reports
    choices = FAMILIES[family].choices(size)
    return "num_heads" in size or any(choice.argument == "num_heads" for choice in choices)


def constructor_arguments(family: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return constructor arguments, with ``image_size`` replaced by the family's own names."""
    rest = {name: value for name, value in arguments.items() if name != "image_size"}
    if "image_size" not in arguments:
        return rest
    return {**rest, **FAMILIES[family].image_arguments(arguments["image_size"])}


@lru_cache(maxsize=256)
def _arguments_of(card_name: str) -> Mapping[str, Any]:
    """Return all constructor arguments of a registered model, those of its family included."""
    card = model_card(card_name)
    return build_empty(card.family, card.arguments, {}).arguments


def _cards_of(family: str, size: Mapping[str, Any]) -> list[ModelCard]:
    """Return the cards of a family, or of its other names, whose arguments have this size."""
    cards = [model_card(name) for name in list_models()]
    return [
        card
        for card in cards
        if card.family in FAMILIES
        and (FAMILIES[card.family].alias_of or card.family) == family
        and all(_plain(_arguments_of(card.name).get(n)) == v for n, v in size.items())
    ]


def _plain(value: Any) -> Any:
    """Return tuples as lists, also inside others, as sizes that were read have them."""
    return list(map(_plain, value)) if isinstance(value, (tuple, list)) else value


# ---- what must be given ----------------------------------------------------------------------


def load_sized(path: Path, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> SpikingModel:
    """Load an unpruned file of any size.

    Args:
        path: The file, for messages; it becomes the model's name.
        tensors: Its complete state dict.
        given: Arguments that no tensor reveals, by the family's own names; ``family`` chooses
            among families with the same tensors, ``image_size`` is the side in pixels.

    Raises:
        CheckpointError: If the tensors fit no family, or an argument is missing, unknown or
            contradicts the tensors. The message lists what must be given, with possible values.
    """
    sizing = _choose_family(path, find_sizings(tensors), tensors, given)
    card = _only_card(sizing, given)
    if card is not None and set(given) <= _CARD_ARGUMENTS:
        return _load_registered(path, tensors, card, sizing, given)
    arguments = {**from_cards(sizing), **_checked(path, sizing, given)}
    missing = [choice for choice in sizing.choices if choice.argument not in arguments]
    if missing:
        raise CheckpointError(_missing_text(path, sizing, missing))
    arguments = constructor_arguments(sizing.family, {**sizing.size, **arguments})
    return load_as(path, tensors, sizing.family, arguments)


def _only_card(sizing: Sizing, given: Mapping[str, Any]) -> ModelCard | None:
    """Return the registered model with a file's shapes: of several, the one with the given T."""
    cards = [model_card(name) for name in sizing.cards]
    if len(cards) > 1:
        cards = [c for c in cards if _card_value(c, "T") == given.get("T")]
    return cards[0] if len(cards) == 1 else None


def _load_registered(
    path: Path,
    tensors: Mapping[str, Tensor],
    card: ModelCard,
    sizing: Sizing,
    given: Mapping[str, Any],
) -> SpikingModel:
    """Load a file whose shapes are those of one registered model as that model."""
    if "num_heads" in given and not has_heads(card.family, tensors):
        raise CheckpointError(
            f"{path} is {card.name}, whose number of heads is fixed, so num_heads would be "
            f"ignored. Omit {option_name('num_heads')}."
        )
    _checked(path, sizing, given)
    changed = {name: given[name] for name in ("num_heads", "T") if name in given}
    arguments = {**card.at(given.get("image_size")).arguments, **changed}
    model = load_as(path, tensors, card.family, arguments)
    model.name = card.name
    return model


def load_as(
    path: Path, tensors: Mapping[str, Tensor], family: str, arguments: Mapping[str, Any]
) -> SpikingModel:
    """Load an unpruned file with complete constructor arguments; as ``load_sized`` otherwise."""
    with torch.device("meta"):
        model = build_model(family, **arguments)
    load_tensors(model, tensors, path)
    model.name = str(path)
    return model


def from_cards(sizing: Sizing) -> dict[str, Any]:
    """Return what the registered models with these shapes agree on, by argument."""
    cards = [model_card(name) for name in sizing.cards]
    found = {}
    for choice in sizing.choices:
        values = [_card_value(card, choice.argument) for card in cards]
        if values and all(value == values[0] for value in values):
            found[choice.argument] = values[0]
    return found


def _card_value(card: ModelCard, argument: str) -> Any:
    if argument == "image_size":
        return card.transform.crop + 2 * card.transform.pad
    return _arguments_of(card.name).get(argument)


def _choose_family(
    path: Path, sizings: Sequence[Sizing], tensors: Mapping[str, Tensor], given: Mapping[str, Any]
) -> Sizing:
    if not sizings:
        raise CheckpointError(_no_family_text(path, tensors))
    names = [sizing.family for sizing in sizings]
    family = given.get("family")
    if family in FAMILIES:
        family = FAMILIES[family].alias_of or family
    if family is None and len(sizings) == 1:
        return sizings[0]
    if family in names:
        return sizings[names.index(family)]
    options = tuple(Option(s.family, s.title) for s in sizings)
    choice = choice_text(Choice("family", options))
    if family is not None:
        raise CheckpointError(f"{path} does not fit the family {family!r}. Possible: {choice}.")
    raise CheckpointError(
        f"The tensors of {path} fit {len(sizings)} families, which compute different functions. "
        f"Give {choice}."
    )


def _checked(path: Path, sizing: Sizing, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given arguments without the family, checked against the file."""
    choices = {choice.argument: choice for choice in sizing.choices}
    for name, value in given.items():
        if name == "family":
            continue
        if name in sizing.size:
            if _plain(value) != sizing.size[name]:
                raise CheckpointError(
                    f"The tensors of {path} have {name}={sizing.size[name]!r}; got {value!r}. "
                    f"Omit {option_name(name)}."
                )
        elif name not in choices:
            raise CheckpointError(
                f"{sizing.title} has no argument {name!r}, so it would be ignored. "
                f"Omit {option_name(name)}."
            )
        elif not is_possible(choices[name], value):
            raise CheckpointError(
                f"{path} cannot have {name}={value!r}. Possible: {choice_text(choices[name])}."
            )
    return {name: value for name, value in given.items() if name in choices}


def is_possible(choice: Choice, value: Any) -> bool:
    """Return True if ``value`` is a possible value of the argument."""
    if choice.open_ended:
        return type(value) is int and value >= 1
    return any(type(o.value) is type(value) and o.value == value for o in choice.options)


def _missing_text(path: Path, sizing: Sizing, missing: Sequence[Choice]) -> str:
    size = ", ".join(f"{name}={value}" for name, value in sizing.size.items())
    listed = "\n".join(f"  {choice_text(choice)}" for choice in missing)
    return (
        f"{path} is {sizing.title} with {size}. Its tensors do not reveal these "
        f"arguments. Set each of them:\n{listed}"
    )


def _no_family_text(path: Path, tensors: Mapping[str, Tensor]) -> str:
    near = find_nearest(tensors)
    if not near.n_matching:
        some = ", ".join([*tensors][:_NAMED])
        return (
            f"{path} fits no known family at any size: none of its {len(tensors)} tensors "
            f"({some}{', ...' if len(tensors) > _NAMED else ''}) matches a registered model in "
            "name and shape. To use a network of another kind, register it with --plugin."
        )
    kinds = (
        ("missing", near.missing),
        ("unexpected", near.unexpected),
        ("wrongly shaped", near.reshaped),
    )
    details = "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for kind, names in kinds
        if names
    )
    details = "; ".join(filter(None, (details, near.by_position)))
    return (
        f"{path} fits no known family at any size. The nearest is {near.model}: "
        f"{near.n_matching} of the file's {len(tensors)} tensors match; {details}. To use "
        "a network of another kind, register it with --plugin."
    )
