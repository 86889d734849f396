"""Families by name, and ``build_model``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from psvit_core.errors import ModelError, UnknownNameError
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import DEFAULT_MODEL, ModelCard, list_models, model_card
from psvit_core.zoo.e_spikeformer import ESpikeFormer
from psvit_core.zoo.meta_spikeformer import MetaSpikeFormer
from psvit_core.zoo.qkformer import QKFormerCifar, QKFormerImageNet
from psvit_core.zoo.sdt import SpikeDrivenTransformer
from psvit_core.zoo.spikformer import SpikformerCifar, SpikformerImageNet

FAMILIES: dict[str, Callable[..., SpikingModel]] = {
    family.family: family
    for family in (
        SpikformerImageNet,
        SpikformerCifar,
        SpikeDrivenTransformer,
        MetaSpikeFormer,
        ESpikeFormer,
        QKFormerImageNet,
        QKFormerCifar,
    )
}


def build_model(
    family: str, widths: Mapping[str, int] | None = None, **arguments: Any
) -> SpikingModel:
    """A model of a family with random weights, in evaluation mode.

    Args:
        family: ``spikformer_imagenet``, ``spikformer_cifar``, ``sdt_v1``, ``sdt_v2``, ``sdt_v3``,
            ``qkformer_imagenet`` or ``qkformer_cifar``.
        widths: Present width of channel groups that are narrower than the original.
        arguments: The family's original constructor arguments.

    Raises:
        UnknownNameError: If there is no such family.
        ModelError: If no model can be built from the arguments or widths.
    """
    if family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES)
    try:
        return FAMILIES[family](widths=widths, **arguments).eval()
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(f"{family} cannot be built from these arguments: {error}.") from error


__all__ = ["DEFAULT_MODEL", "ModelCard", "build_model", "list_models", "model_card"]
