"""Model families by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psvit_core.errors import ModelError, UnknownNameError
from psvit_core.zoo.base import SpikingModel, plain_value
from psvit_core.zoo.e_spikeformer import ESpikeFormer
from psvit_core.zoo.e_spikeformer_large import (
    ESpikeFormerLarge,
    ESpikeFormerLarge8,
    ESpikeFormerLargeBase,
)
from psvit_core.zoo.maxformer import (
    MaxFormerCifar,
    MaxFormerImageNet,
    MSQKFormerCifar,
    MSQKFormerImageNet,
)
from psvit_core.zoo.meta_spikeformer import MetaSpikeFormer
from psvit_core.zoo.qkformer import QKFormerCifar, QKFormerImageNet
from psvit_core.zoo.sdt import SpikeDrivenTransformer
from psvit_core.zoo.spikformer import SpikformerCifar, SpikformerImageNet
from psvit_core.zoo.spikingformer import (
    SpikingformerCifar,
    SpikingformerCMLCifar,
    SpikingformerCMLImageNet,
    SpikingformerImageNet,
)
from psvit_core.zoo.spikingresformer import SpikingResformer, SpikingResformerCifar
from psvit_core.zoo.statten import STAtten, STAttenCifar

FAMILIES: dict[str, type[SpikingModel]] = {
    family.family: family
    for family in (
        SpikformerImageNet,
        SpikformerCifar,
        SpikeDrivenTransformer,
        MetaSpikeFormer,
        ESpikeFormer,
        QKFormerImageNet,
        QKFormerCifar,
        SpikingformerImageNet,
        SpikingformerCifar,
        SpikingformerCMLImageNet,
        SpikingformerCMLCifar,
        STAtten,
        STAttenCifar,
        MaxFormerImageNet,
        MaxFormerCifar,
        MSQKFormerImageNet,
        MSQKFormerCifar,
        ESpikeFormerLarge,
        ESpikeFormerLargeBase,
        ESpikeFormerLarge8,
        SpikingResformer,
        SpikingResformerCifar,
    )
}


def build_model(
    family: str, widths: Mapping[str, int] | None = None, **arguments: Any
) -> SpikingModel:
    """Build a model with random weights, in evaluation mode.

    Args:
        family: One of ``FAMILIES``.
        widths: Present width of each channel group that is narrower than the original.
        arguments: The family's original constructor arguments; integral floats count as integers.

    Raises:
        UnknownNameError: If the family is unknown.
        ModelError: If no model can be built from the arguments or widths.
    """
    if family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES)
    try:
        plain = {name: plain_value(value) for name, value in arguments.items()}
        return FAMILIES[family](widths=widths, **plain).eval()
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(f"Cannot build {family} from these arguments: {error}.") from error
