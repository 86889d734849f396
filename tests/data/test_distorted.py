"""Distorted digits: reproducible bytes, the splits of the digits, and other ids."""

from __future__ import annotations

import hashlib

import pytest
import torch

from psvit_core.data import SPLITS, digits_arrays, digits_split, load_data
from psvit_core.data.distorted import distorted_digit
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.records import DIGITS_48_TRANSFORM, Transform

# Stored results refer to these bytes: a change invalidates published numbers.
PINNED = {"val": "516cfd461ef44fbe", "test": "e2686b13e7975e25"}


@pytest.mark.parametrize("split", ["val", "test"])
def test_bytes_are_unchanged(split: str) -> None:
    pixels = torch.stack([distorted_digit(i) for i in digits_split(split)])
    assert pixels.shape == (750, 1, 28, 28)
    assert pixels.dtype == torch.uint8
    assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16] == PINNED[split]


@pytest.mark.parametrize("split", SPLITS)
def test_splits_and_labels_equal_those_of_the_digits(split: str) -> None:
    clean, distorted = load_data("digits", split=split), load_data("digits:distorted", split=split)
    assert distorted.spec == "digits:distorted"
    assert distorted.labels == clean.labels
    assert distorted.classes == clean.classes
    assert [name.partition("/")[2] for name in distorted.ids] == [
        name.partition("/")[2] for name in clean.ids
    ]
    assert not set(distorted.ids) & set(clean.ids)


def test_digits_are_distorted_but_recognisable() -> None:
    clean = digits_arrays()[0]
    for position in range(0, 5000, 97):
        before, after = clean[position].float(), distorted_digit(position).float()
        assert (before - after).abs().mean() > 5
        overlap = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
        assert overlap > 0.4


def test_digits_do_not_depend_on_each_other_or_on_global_seeds() -> None:
    position = digits_split("val")[11]
    torch.manual_seed(1)
    distorted_digit.cache_clear()
    alone = distorted_digit(position)
    distorted_digit.cache_clear()
    data = load_data("digits:distorted", transform=DIGITS_48_TRANSFORM)
    assert data.load(11).shape == (1, 48, 48)
    assert torch.equal(distorted_digit(position), alone)
    limited = load_data("digits:distorted", limit=5)
    assert set(limited.ids) < set(data.ids)


def test_invalid_specs_are_rejected() -> None:
    with pytest.raises(UnknownNameError, match="digits:distorted"):
        load_data("digits:distort")
    colour = Transform(resize=8, crop=8)
    with pytest.raises(DataError, match="grey"):
        load_data("digits:distorted", transform=colour)
