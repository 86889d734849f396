"""Registered models: each card agrees with the model that it describes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from psvit_core.records import Subject, Transform
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session, summarize_model
from psvit_core.zoo.cards import list_models, model_card, shipped_summary
from psvit_core.zoo.cards.resizing import RESIZE_RULES
from psvit_core.zoo.registry import build_model

REFERENCE = Path(__file__).parents[1] / "reference" / "manifests"


@pytest.mark.parametrize("name", list_models())
def test_card_agrees_with_the_model(name: str) -> None:
    card = model_card(name)
    with torch.device("meta"):
        model = build_model(card.family, **card.arguments)
    assert sum(p.numel() for p in model.parameters()) == card.parameters
    channels, height, width = model.input_shape
    side = card.transform.crop + 2 * card.transform.pad
    assert (channels, height, width) == (card.transform.channels, side, side)
    for p in card.published:
        assert 50 < p.top1 < 100
        assert p.verified == (bool(p.source) and "assumed" not in p.source)
        assert p.label.endswith("unverified") == (not p.verified)
    assert card.paper
    assert card.title
    if card.weights is None:
        assert re.search(r"\(\d{4}-\d{2}[,)]", card.available), "where weights are, with a date"
        assert "file" in card.licence or "official repository" in card.licence


#: Constructor arguments that a manifest and a card may state differently.
SAME = ("depths", "embed_dims", "embed_dim", "num_heads", "num_classes", "planes", "kd", "choice")


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.json")), ids=lambda path: path.stem)
def test_every_manifest_is_registered(path: Path) -> None:
    manifest = json.loads(path.read_text())
    cards = [model_card(name) for name in list_models()]
    cards = [card for card in cards if card.parameters == manifest["total_params"]]
    family = path.stem.partition("__")[0]
    cards = [card for card in cards if family.startswith(card.family.removesuffix("_base"))]
    assert cards
    given = manifest["constructor"]

    def agrees(arguments: Mapping[str, Any]) -> bool:
        return all(arguments[n] == given[n] for n in SAME if n in arguments and n in given)

    assert any(agrees(card.arguments) for card in cards)


#: Cards that the papers or official configuration files define, next to those with manifests.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("spikformer_cifar10_4_256", 4_159_274),
        ("spikformer_cifar10_2_384", 5_768_122),
        ("sdt_v1_cifar10_2_256", 2_567_082),
        ("meta_spikeformer_8_768", 123_741_160),
        ("e_spikeformer_t", 2_702_048),
    ],
)
def test_further_sizes(name: str, parameters: int) -> None:
    assert model_card(name).parameters == parameters


@pytest.mark.parametrize(
    ("family", "licence"),
    [
        *[(family, "MIT") for family in ("spikformer_imagenet", "spikformer_cifar")],
        *[(family, "MIT") for family in ("statten", "spikingresformer", "spikingresformer_cifar")],
        ("sdt_v1", "Apache-2.0"),
        *[(f"spikingformer_{x}", "Apache-2.0") for x in ("imagenet", "cifar", "cml_imagenet")],
        *[(family, "no licence file") for family in ("sdt_v2", "sdt_v3", "sdt_v3_large")],
        *[(family, "no licence file") for family in ("qkformer_imagenet", "qkformer_cifar")],
        *[(family, "no licence file") for family in ("max_former_imagenet", "ms_qkformer_cifar")],
    ],
)
def test_licences(family: str, licence: str) -> None:
    cards = [c for c in map(model_card, list_models()) if c.family == family and not c.weights]
    assert cards
    assert all(card.licence.startswith(licence) for card in cards)


def test_links_that_were_removed() -> None:
    assert "removed the links in April 2026" in model_card("qkformer_10_768").available
    assert "github.com/bic-L/MaxFormer/releases" in model_card("max_former_10_768").available


#: Model -> image side -> (resized shorter side, interpolation), from the official scripts.
RESIZED: dict[str, dict[int, Any]] = {
    "spikformer_8_512": {160: 160, 224: 224, 288: 288},
    "sdt_v1_8_512": {192: 202, 224: 235, 288: (320, "bilinear"), 384: 404, 448: 471},
    "meta_spikeformer_55m": {128: 146, 160: 182, 224: 256, 288: 288, 384: 384},
    "e_spikeformer_19m": {64: 66, 160: 165, 224: 232, 288: 288, 384: 384},
    "qkformer_10_512": {160: 182, 192: 219, 224: 256, 288: 288, 384: 384},
    "spikingformer_8_512": {160: 160, 224: 224, 288: 288},
    "spikingformer_cml_8_768": {224: 224, 288: 288},
    "statten_8_768": {192: 202, 224: 235, 288: (320, "bilinear"), 384: 404},
    "max_former_10_512": {160: 182, 224: 256, 288: 288},
    "ms_qkformer_10_512": {160: 182, 224: 256, 384: 384},
    "e_spikeformer_large_173m": {160: 165, 224: 232, 384: 384},
    "e_spikeformer_large_83m": {224: 232, 288: 288},
    "e_spikeformer_large_173m_1x8": {224: 232, 384: 384},
    "spikingresformer_l": {128: 134, 224: 235, 288: 303},
    "sdt_v1_cifar10_2_512": {32: 32, 64: 64, 224: 224},
    "spikingresformer_cifar10_ti": {32: 32, 64: 64},
    "meta_spikeformer_digits": {48: 48, 64: 64},
}


@pytest.mark.parametrize(
    ("name", "px", "expected"),
    [(name, px, expected) for name, sizes in RESIZED.items() for px, expected in sizes.items()],
)
def test_transforms_of_other_sizes(name: str, px: int, expected: int | tuple[int, str]) -> None:
    card = model_card(name)
    usual = card.transform
    resize, interpolation = expected if isinstance(expected, tuple) else (expected, None)
    transform = card.at(px).transform
    assert (transform.resize, transform.crop) == (resize, px)
    assert transform.interpolation == (interpolation or usual.interpolation)
    assert card.at(px).at(usual.crop).transform == usual  # and back
    with torch.device("meta"):
        model = build_model(card.family, **card.at(px).arguments)
    assert model.input_shape[1:] == (px, px)


def test_own_transforms_keep_their_ratio() -> None:
    card = model_card("sdt_v1_digits")
    own = dataclasses.replace(card, transform=Transform(resize=250, crop=200), rule=None)
    assert [own.at(px).transform.resize for px in (100, 99, 400)] == [125, 123, 500]
    padded = dataclasses.replace(card, transform=Transform(resize=28, crop=28, pad=2))
    assert (padded.at(48).transform.resize, padded.at(48).transform.crop) == (44, 44)


def test_every_imagenet_family_has_a_rule() -> None:
    for card in map(model_card, list_models()):
        assert (card.rule is not None) == (card.data == "imagenet"), card.name
        if card.rule:
            assert card.rule is RESIZE_RULES[card.family]


@pytest.mark.slow
def test_shipped_summaries_match_the_weights(tmp_path: Path) -> None:
    from scripts.describe_models import describe

    for name in list_models():
        if model_card(name).weights is None:
            continue
        shipped = shipped_summary(name)
        assert shipped is not None
        if not model_card(name).images_included:  # the ranking by images cannot be made here
            fresh = summarize_model(Session(Subject(model=name), Store(tmp_path)))
            rest = {k: v for k, v in shipped.rankings.items() if k != "reconstruction"}
            assert dataclasses.replace(shipped, rankings=rest) == fresh
            continue
        fresh = describe(name, None)
        assert list(shipped.rankings) == ["l1", "l2", "l2_group", "reconstruction"]
        by_images = shipped.rankings["reconstruction"]  # sums of floats: near ties may swap
        for group, units in fresh.rankings["reconstruction"].items():
            half = len(units) // 2
            assert len({*by_images[group][:half]} & {*units[:half]}) >= 0.9 * half
        same = {**fresh.rankings, "reconstruction": by_images}
        assert shipped == dataclasses.replace(fresh, rankings=same)


def test_unknown_names_suggest_the_nearest() -> None:
    from psvit_core.errors import UnknownNameError

    with pytest.raises(UnknownNameError, match="Did you mean 'meta_spikeformer_15m'"):
        model_card("meta_spikformer_15m")


def test_measured_compared_with_published() -> None:
    """A baseline is compared only for the same data, time steps and image size."""
    from psvit_core.records import Conditions, Interval, Measurement, Size
    from psvit_core.tasks.evaluate import compare_published

    card = model_card("sdt_v1_8_512")  # published 74.57 at T = 4, 224 px

    def measured(value: float, data: str = "imagenet:/data", T: int = 4) -> Measurement:
        conditions = Conditions(
            data=data,
            split="val",
            n_images=1000,
            T=T,
            batch=32,
            precision="float32",
            device="cpu",
            transform=card.transform.name,
        )
        return Measurement(
            model=card.name,
            weights_hash="0",
            conditions=conditions,
            sops=0,
            macs_real=0,
            accuracy=Interval(value=value, low=value - 0.02, high=value + 0.02),
            energy_pj=0,
            size=Size(params=1, bytes=4, macs=1),
            firing={},
        )

    near, far = compare_published(card, measured(0.75)), compare_published(card, measured(0.6))
    assert near is not None
    assert far is not None
    assert near[1]
    assert not far[1]
    assert "published 74.57 % (official README), measured 60.00 % [58.00, 62.00]" in far[0]
    assert compare_published(card, measured(0.75, T=1)) is None
    assert compare_published(card, measured(0.75, data="folder:/data")) is None
    assert compare_published(model_card("sdt_v1_digits"), measured(0.98, data="digits")) is None
