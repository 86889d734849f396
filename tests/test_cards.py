"""Every registered model: its card says what building it gives."""

from __future__ import annotations

import dataclasses
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


def test_shipped_summaries_are_those_of_the_weights() -> None:
    from scripts.describe_models import describe

    for name in list_models():
        if model_card(name).weights is None:
            continue
        shipped, fresh = shipped_summary(name), describe(name)
        assert shipped is not None
        assert list(shipped.rankings) == ["l1", "l2", "l2_group", "reconstruction"]
        by_images = shipped.rankings["reconstruction"]  # sums of floats: near ties may change place
        for group, units in fresh.rankings["reconstruction"].items():
            half = len(units) // 2
            assert len({*by_images[group][:half]} & {*units[:half]}) >= 0.9 * half
        same = {**fresh.rankings, "reconstruction": by_images}
        assert shipped == dataclasses.replace(fresh, rankings=same)


def test_unknown_names_offer_the_nearest() -> None:
    from psvit_core.errors import UnknownNameError

    with pytest.raises(UnknownNameError, match="Did you mean 'meta_spikeformer_15m'"):
        model_card("meta_spikformer_15m")


def test_measured_beside_published() -> None:
    """A baseline is compared at the same data, time steps and image size only."""
    from psvit_core.jobs.tasks import compare_published
    from psvit_core.records import Conditions, Interval, Measurement, Size

    card = model_card("sdt_v1_8_512")  # published 74.57 at T = 4, 224 px

    def measured(value: float, data: str = "imagenet:/data", T: int = 4) -> Measurement:
        conditions = Conditions(
            data=data, split="val", n_images=1000, T=T, batch=32, precision="float32",
            device="cpu", transform=card.transform.name,
        )  # fmt: skip
        return Measurement(
            model=card.name, weights_hash="0", conditions=conditions, sops=0, macs_real=0,
            accuracy=Interval(value=value, low=value - 0.02, high=value + 0.02), energy_pj=0,
            size=Size(params=1, bytes=4, macs=1), firing={},
        )  # fmt: skip

    near, far = compare_published(card, measured(0.75)), compare_published(card, measured(0.6))
    assert near is not None
    assert far is not None
    assert near[1]
    assert not far[1]
    assert "published 74.57 % (official README), measured 60.00 % [58.00, 62.00]" in far[0]
    assert compare_published(card, measured(0.75, T=1)) is None
    assert compare_published(card, measured(0.75, data="folder:/data")) is None
    assert compare_published(model_card("sdt_v1_digits"), measured(0.98, data="digits")) is None
