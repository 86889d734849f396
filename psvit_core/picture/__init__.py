"""A picture of a network: its channel groups as bars, residual streams as rails beside them."""

from psvit_core.picture.model_explorer import node_data, readers_of
from psvit_core.picture.svg import THEMES, network_svg
from psvit_core.picture.values import (
    GroupValues,
    bytes_values,
    coupled_layers,
    firing_rates,
    firing_values,
    sensitivity_values,
)

__all__ = [
    "THEMES",
    "GroupValues",
    "bytes_values",
    "coupled_layers",
    "firing_rates",
    "firing_values",
    "network_svg",
    "node_data",
    "readers_of",
    "sensitivity_values",
]
