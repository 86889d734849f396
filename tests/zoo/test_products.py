"""Attention: the order that is computed is the cheaper one, the order that is counted is published.

The published order of each family was read in its repository.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from psvit_core.groups import shape_table
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.products import Heads, SpikeProduct
from psvit_core.zoo.registry import build_model
from tests.tiny import NAMES, tiny_model

#: Families whose published attention computes ``q (k^T v)``; the others ``(q k^T) v``.
KEYS_FIRST = (
    *("spikformer_imagenet", "sdt_v2", "qkformer_imagenet", "qkformer_cifar"),
    *("spikingformer_imagenet", "spikingformer_cml_imagenet"),
    *("max_former_imagenet", "max_former_cifar", "ms_qkformer_imagenet", "ms_qkformer_cifar"),
    *("sdt_v3_large", "sdt_v3_large_base", "sdt_v3_large_d8"),
)


@pytest.mark.parametrize("name", NAMES)
def test_counted_order_is_the_published_one(name: str) -> None:
    model = tiny_model(name)
    products = [m for m in model.modules() if isinstance(m, SpikeProduct)]
    assert {product.keys_first for product in products} <= {model.family in KEYS_FIRST}
    assert products or model.family.startswith(("sdt_v1", "statten", "spikingresformer"))


#: Channels of a head's queries and values, tokens.
SHAPES = [(8, 8, 64), (64, 64, 16), (16, 64, 100), (16, 64, 40), (16, 64, 30), (8, 8, 8)]


@pytest.mark.parametrize(("qk", "v", "n_tokens"), SHAPES)
@pytest.mark.parametrize("scale", [0.125, 45**-0.5 * 2])
def test_cheaper_order_gives_the_same_bits(qk: int, v: int, n_tokens: int, scale: float) -> None:
    heads, generator = 3, torch.Generator().manual_seed(n_tokens)
    product = SpikeProduct(Heads(heads, v, qk_width=qk), scale)

    def spikes(width: int) -> torch.Tensor:
        drawn = torch.randint(0, 5, (2, heads * width, n_tokens), generator=generator)
        return drawn / 4  # levels of integer neurons

    inputs = spikes(qk), spikes(qk), spikes(v)
    with FlopCounterMode(display=False) as counter:
        output = product(*inputs)
    q, k, values = (x.unflatten(1, (heads, -1)).transpose(2, 3) for x in inputs)
    left, right = (q @ k.mT) @ values * scale, q @ (k.mT @ values) * scale
    for expected in (left, right):
        assert torch.equal(output, expected.transpose(2, 3).flatten(1, 2))
    macs = counter.get_total_flops() // 2 // (2 * heads)
    assert macs == min(n_tokens * n_tokens * (qk + v), 2 * n_tokens * qk * v)


def test_integer_levels_know_the_width_of_queries() -> None:
    model = build_model("sdt_v3", embed_dim=[16, 24, 32, 48], num_heads=4)
    layout = next(m for m in model.modules() if isinstance(m, SpikeProduct)).layout
    assert (layout.count, layout.qk_width, layout.width) == (4, 8, 32)


@pytest.mark.parametrize(
    ("name", "n_blocks", "per_block"),
    [
        # Two products of tokens x head width x head width in every head.
        ("spikformer_8_512", 8, 2 * 8 * 196 * 64 * 64),
        ("qkformer_10_512", 7, 2 * 8 * 196 * 64 * 64),
        ("meta_spikeformer_55m", 6, 2 * 8 * 196 * 64 * 64),  # stage 3
        # Two products of tokens x tokens x width.
        ("spikformer_cifar10_4_384", 4, 2 * 64 * 64 * 384),
        ("e_spikeformer_19m", 6, 196 * 196 * (256 + 4 * 256)),  # stage 3
    ],
)
def test_macs_of_attention(name: str, n_blocks: int, per_block: int) -> None:
    card = model_card(name)
    with torch.device("meta"):
        model = build_model(card.family, **card.arguments)
    terms = [
        term
        for term in shape_table(model).terms
        if ".product." in term.layer and term.layer.startswith(("block.", "block3.", "stage3."))
    ]
    counted = sum(t.factor * math.prod(model.widths[group] for group in t.groups) for t in terms)
    assert counted == n_blocks * per_block
