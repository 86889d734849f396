"""The registered models as data: cards, without torch.

A card says all that shapes do not: time steps, transform, where weights come from, what was
measured or published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from psvit_core.errors import UnknownNameError
from psvit_core.records import DIGITS_TRANSFORM, ModelSummary, Transform

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_MODEL = "sdt_v1_digits"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A registered model."""

    name: str
    title: str
    family: str
    arguments: Mapping[str, Any]
    transform: Transform
    data: str  # what it was trained for; the default of --data
    paper: str
    weights: Path | None  # shipped weights, or None: give a checkpoint
    training: Mapping[str, Any] = field(default_factory=dict)


def _demo(name: str, title: str, paper: str) -> ModelCard:
    record = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return ModelCard(
        name=name,
        title=title,
        family=record["family"],
        arguments=record["arguments"],
        transform=DIGITS_TRANSFORM,
        data="digits",
        paper=paper,
        weights=WEIGHTS / f"{name}.safetensors",
        training=record["training"],
    )


@cache
def _cards() -> dict[str, ModelCard]:
    cards = (
        _demo(
            "sdt_v1_digits",
            "Spike-driven Transformer v1, digits",
            "Yao et al. 2023, arXiv 2307.01694",
        ),
        _demo("e_spikeformer_digits", "E-SpikeFormer (SDT v3), digits", "Yao et al. 2025, TPAMI"),
    )
    return {card.name: card for card in cards}


def list_models() -> list[str]:
    """Names of the registered models."""
    return list(_cards())


def model_card(name: str) -> ModelCard:
    """The card of a registered model; ``UnknownNameError`` with the nearest name otherwise."""
    if name not in _cards():
        raise UnknownNameError("model", name, list_models())
    return _cards()[name]


@cache
def shipped_summary(name: str) -> ModelSummary | None:
    """The summary that ships with a model's weights, or None (``scripts/describe_models.py``)."""
    path = WEIGHTS / f"{name}.summary.json"
    return ModelSummary.load(path) if name in _cards() and path.exists() else None
