"""Every registered model: its card says what building it gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from psvit_core.zoo.cards import list_models, model_card, shipped_summary
from psvit_core.zoo.registry import build_model

REFERENCE = Path(__file__).parent / "reference" / "manifests"


@pytest.mark.parametrize("name", list_models())
def test_card_is_true_to_the_model(name: str) -> None:
    card = model_card(name)
    with torch.device("meta"):
        model = build_model(card.family, **card.arguments)
    assert sum(p.numel() for p in model.parameters()) == card.parameters
    channels, height, width = model.input_shape
    side = card.transform.crop + 2 * card.transform.pad
    assert (channels, height, width) == (card.transform.channels, side, side)
    for p in card.published:
        assert 50 < p.top1 < 100
        assert p.verified == ("memory" not in p.source and "our reading" not in p.source)
    assert card.paper
    assert card.title


def test_every_published_manifest_is_registered() -> None:
    totals = {model_card(name).parameters for name in list_models()}
    for path in REFERENCE.glob("*.json"):
        if "unpublished" not in path.name:
            assert json.loads(path.read_text())["total_params"] in totals, path.name


def test_shipped_summaries_are_those_of_the_weights(tmp_path: Path) -> None:
    from psvit_core.jobs.tasks import Engine, Subject, summarize_model
    from psvit_core.store import Store

    for name in list_models():
        if model_card(name).weights is not None:
            fresh = summarize_model(Engine(Subject(model=name), Store(tmp_path)))
            assert shipped_summary(name) == fresh


def test_unknown_names_offer_the_nearest() -> None:
    from psvit_core.errors import UnknownNameError

    with pytest.raises(UnknownNameError, match="Did you mean 'meta_spikeformer_15m'"):
        model_card("meta_spikformer_15m")
