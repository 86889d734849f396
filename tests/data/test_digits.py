"""Digits: splits, subsets and batches; names of data sets, splits and actions."""

from __future__ import annotations

import hashlib
import os
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from psvit_core.data import SPLITS, EvalSet, UnreadableImageError, load_data
from psvit_core.data.evalset import Source, split_half
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.records import Transform
from psvit_core.runtime import Run

COLOUR = Transform(resize=8, crop=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))
SIZES = {"train": 3500, "calib": 256, "val": 750, "test": 750}
# Stored results refer to these splits: a change invalidates published numbers.
PINNED = {
    "train": "3ffcaad1cb3d0163",
    "calib": "df24a978b6388fa5",
    "val": "03b629a4f50c0ce6",
    "test": "c54994e1740b3b15",
}


def counts(data: EvalSet) -> list[int]:
    return [data.labels.count(label) for label in range(len(data.classes))]


# --- the built-in digits


@pytest.mark.parametrize("split", SPLITS)
def test_split_is_unchanged(split: str) -> None:
    data = load_data("digits", split=split)
    assert (data.spec, data.split, len(data)) == ("digits", split, SIZES[split])
    assert len(data.labels) == len(set(data.ids)) == len(data)
    assert hashlib.sha256("\n".join(data.ids).encode()).hexdigest()[:16] == PINNED[split]


def test_splits_are_disjoint_and_complete() -> None:
    ids = {split: set(load_data("digits", split=split).ids) for split in SPLITS}
    assert not ids["train"] & ids["val"]
    assert not ids["train"] & ids["test"]
    assert not ids["val"] & ids["test"]
    assert len(ids["train"] | ids["val"] | ids["test"]) == 5000
    assert ids["calib"] < ids["train"]


@pytest.mark.parametrize(("split", "each"), [("train", 350), ("val", 75), ("test", 75)])
def test_splits_are_stratified(split: str, each: int) -> None:
    assert counts(load_data("digits", split=split)) == [each] * 10


def test_calib_is_nearly_stratified() -> None:
    assert set(counts(load_data("digits", split="calib"))) == {25, 26}


def test_val_is_the_default() -> None:
    assert load_data("digits").ids == load_data("digits", split="val").ids


def test_digit_is_padded_and_normalised() -> None:
    data = load_data("digits")
    image = data.load(0)
    assert image.shape == (1, 32, 32)
    assert image.dtype == torch.float32
    background = (0 - 0.1307) / 0.3081
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    assert torch.allclose(image[0][border], torch.tensor(background))
    pixels = image * 0.3081 + 0.1307
    assert float(pixels.min()) == pytest.approx(0, abs=1e-6)
    assert 0.9 < float(pixels.max()) <= 1 + 1e-6


def test_digits_look_like_their_labels() -> None:
    # The nearest class mean classifies about 80 % of MNIST; wrong labels would give 10 %.
    train, val = load_data("digits", split="train"), load_data("digits")
    x = torch.cat(list(train.batches(500))).flatten(1)
    y = torch.tensor(train.labels)
    means = torch.stack([x[y == digit].mean(dim=0) for digit in range(10)])
    distances = torch.cdist(torch.cat(list(val.batches(500))).flatten(1), means)
    correct = (distances.argmin(dim=1) == torch.tensor(val.labels)).double().mean()
    assert 0.7 < float(correct) < 0.95


def test_digits_require_a_greyscale_model() -> None:
    with pytest.raises(DataError, match="folder:DIR"):
        load_data("digits", transform=COLOUR)


# --- subsets


def test_limit_is_nested_and_stratified() -> None:
    data = load_data("digits")
    before: set[str] = set()
    for n_images in (1, 7, 10, 55, 200, 749):
        part = data.limit(n_images)
        assert len(part) == n_images
        assert before < set(part.ids) < set(data.ids)
        assert max(counts(part)) - min(counts(part)) <= 1
        assert [data.ids.index(i) for i in part.ids] == sorted(map(data.ids.index, part.ids))
        assert data.limit(n_images).ids == part.ids
        before = set(part.ids)
    assert data.limit(100, seed=1).ids != data.limit(100).ids


@pytest.mark.parametrize("n_images", [None, 750, 10_000])
def test_limit_beyond_the_set_returns_all_images(n_images: int | None) -> None:
    data = load_data("digits")
    assert data.limit(n_images).ids == data.ids


@pytest.mark.parametrize("n_images", [0, -1])
def test_limit_below_one_is_rejected(n_images: int) -> None:
    with pytest.raises(DataError, match=f"got {n_images}"):
        load_data("digits").limit(n_images)


def test_take_keeps_images_with_their_labels() -> None:
    data = load_data("digits")
    part = data.take([5, 0, 700])
    assert part.ids == tuple(data.ids[i] for i in (5, 0, 700))
    assert part.labels == tuple(data.labels[i] for i in (5, 0, 700))
    assert torch.equal(part.load(2), data.load(700))
    nested = part.take([2, 1]).limit(1)
    assert torch.equal(nested.load(0), data.load(data.ids.index(nested.ids[0])))


def test_batches_contain_every_image_once_in_order() -> None:
    data = load_data("digits").take(range(10))
    batches = list(data.batches(4, torch.float64))
    assert [len(b) for b in batches] == [4, 4, 2]
    assert {b.dtype for b in batches} == {torch.float64}
    everything = torch.stack([data.load(i) for i in range(10)]).double()
    assert torch.equal(torch.cat(batches), everything)


# --- batches


class Numbers:
    """Loads images filled with their position; some are unreadable."""

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __call__(self, position: int) -> Tensor:
        if position in self.bad:
            raise UnreadableImageError(f"image {position}", "made so")
        return torch.full((1, 2, 2), float(position))


def ignore(_: Any) -> None:
    """Discard the argument."""


def numbers(n_images: int, *bad: int) -> EvalSet:
    return EvalSet(
        spec="made",
        split="val",
        transform="none",
        ids=tuple(map(str, range(n_images))),
        labels=(0,) * n_images,
        classes=("0",),
        load=Numbers(*bad),
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(workers: int) -> None:
    for data in (numbers(11), load_data("digits").limit(11)):
        state = torch.random.get_rng_state()
        alone = list(data.batches(3, torch.float64))
        parallel = list(data.batches(3, torch.float64, workers=workers))
        assert [len(x) for x in parallel] == [3, 3, 3, 2]
        assert all(torch.equal(x, y) for x, y in zip(alone, parallel, strict=True))
        assert {x.dtype for x in parallel} == {torch.float64}
        assert [x.stride() for x in parallel] == [x.stride() for x in alone]
        assert torch.equal(torch.random.get_rng_state(), state)


def test_images_are_decoded_by_the_workers() -> None:
    data = replace(numbers(4), load=lambda i: torch.tensor([os.getpid()]))
    assert {int(x) for x in torch.cat(list(data.batches(1, torch.int64)))} == {os.getpid()}
    others = {int(x) for x in torch.cat(list(data.batches(1, torch.int64, workers=2)))}
    assert len(others) == 2
    assert os.getpid() not in others


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_and_counted(workers: int) -> None:
    batches = numbers(10, 4, 5, 9).batches(3, workers=workers)
    assert torch.equal(next(batches)[:, 0, 0, 0], torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(DataError) as caught:
        list(batches)
    message = str(caught.value)
    assert message.startswith("image 4 is not a readable image (made so).")
    assert "--bad-images skip" in message
    assert "2 of 6 images" in message
    assert "\n" not in message


def test_unreadable_images_are_skipped() -> None:
    images = Numbers(1, 4)
    source = Source(
        transform="none",
        labels=(0,) * 6,
        classes=("0",),
        identify=str,
        load=images,
        check=lambda i: ignore(images(i)),
    )
    data = source.load_subset("made", "val", None, skip_bad=True)
    assert data.ids == ("0", "2", "3", "5")
    assert data.bad == ("image 1", "image 4")
    assert torch.equal(torch.cat(list(data.batches(3)))[:, 0, 0, 0], torch.tensor([0.0, 2, 3, 5]))
    assert data.take([3, 0]).bad == data.bad
    few = source.take([4, 3]).load_subset("made", "val", None, skip_bad=True)
    assert (few.ids, few.bad) == (("3",), ("image 4",))
    with pytest.raises(DataError, match=r"none of the 2 images can be read\. image 1"):
        source.take([1, 4]).load_subset("made", "val", None, skip_bad=True)
    assert source.load_subset("made", "val", None, skip_bad=False).bad == ()


@pytest.mark.parametrize("workers", [-1, -5])
def test_negative_number_of_workers_is_rejected(workers: int) -> None:
    with pytest.raises(DataError, match=f"got {workers}"):
        list(numbers(3).batches(2, workers=workers))
    with pytest.raises(DataError, match=f"got {workers}"):
        Run(workers=workers)


def die(position: int) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return torch.zeros(1)


def fail(position: int) -> Tensor:
    raise ZeroDivisionError


def test_killed_worker_is_reported() -> None:
    data = replace(numbers(4), load=die)
    with pytest.raises(DataError, match="--workers 0"):
        list(data.batches(1, workers=1))


def test_other_exceptions_are_not_unreadable_images() -> None:
    data = replace(numbers(4), load=fail)
    for workers in (0, 1):
        with pytest.raises(ZeroDivisionError):
            list(data.batches(2, workers=workers))


def test_limit_of_load_data_equals_that_of_the_set() -> None:
    data = load_data("digits", limit=30)
    assert data.ids == load_data("digits").limit(30).ids
    assert torch.equal(data.load(7), load_data("digits").limit(30).load(7))
    with pytest.raises(DataError, match="got 0"):
        load_data("digits", limit=0)


def test_only_selected_images_are_checked() -> None:
    checked: list[int] = []
    source = Source(
        transform="none",
        labels=tuple(range(100)),
        classes=(),
        identify=lambda i: str(i),
        load=Numbers(),
        check=checked.append,
    )
    data = source.load_subset("made", "val", 5, skip_bad=True)
    assert sorted(checked) == list(data.labels)
    assert len(data) == 5


def test_halves_are_unchanged() -> None:
    # published numbers refer to these halves of ImageNet and CIFAR-10
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(12)]
    assert split_half([0] * 12, names, "val") == [1, 3, 4, 9, 10, 11]
    assert split_half([0] * 12, names, "test") == [0, 2, 5, 6, 7, 8]


@pytest.mark.parametrize("split", ["val", "test"])
def test_halves_are_stratified_and_stable(split: str) -> None:
    labels, names = [0] * 7 + [1] * 4 + [2], [f"{i:03}.jpg" for i in range(12)]
    chosen = split_half(labels, names, split)
    other = split_half(labels, names, "test" if split == "val" else "val")
    assert sorted(chosen + other) == list(range(12))
    counted = [sum(labels[i] == k for i in chosen) for k in range(3)]
    assert counted == ([4, 2, 1] if split == "val" else [3, 2, 0])
    order = [11, 3, 5, 7, 1, 9, 0, 2, 4, 6, 8, 10]
    shuffled = split_half([labels[i] for i in order], [names[i] for i in order], split)
    assert sorted(order[i] for i in shuffled) == chosen
    without_first_class = split_half(labels[7:], names[7:], split)
    assert [i + 7 for i in without_first_class] == [i for i in chosen if i >= 7]


# --- names of data sets, splits and actions


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ("digit", "digits"),
        ("digits:x", "digits"),
        ("folder", "folder:DIR"),
        ("npz:", "npz:FILE"),
        ("imagenet", "imagenet:DIR"),
        ("cifar:x", "cifar10"),
    ],
)
def test_unknown_data_set_suggests_the_closest(spec: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean {nearest!r}"):
        load_data(spec)


@pytest.mark.parametrize("spec", ["", ":", "??"])
def test_unknown_data_set_lists_all(spec: str) -> None:
    with pytest.raises(
        UnknownNameError,
        match="cifar10:DIR, digits, digits:distorted, folder:DIR, imagenet:DIR, npz:FILE",
    ):
        load_data(spec)


def test_unknown_bad_image_action_suggests_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'skip'"):
        load_data("digits", on_bad="skipp")


@pytest.mark.parametrize(
    ("split", "nearest"), [("valid", "val"), ("Test", "test"), ("trn", "train")]
)
def test_unknown_split_suggests_the_closest(split: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean {nearest!r}"):
        load_data("digits", split=split)


def test_transform_name_depends_on_all_parameters() -> None:
    variants = [
        COLOUR,
        Transform(resize=9, crop=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0)),
        Transform(resize=8, crop=7, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0)),
        Transform(resize=8, crop=8, pad=1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0)),
        Transform(resize=8, crop=8, mean=(0.5, 0.5, 0.4), std=(0.5, 0.25, 1.0)),
        Transform(resize=8, crop=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.9)),
        Transform(resize=8, crop=8, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5, 0.25, 1)),
        Transform(resize=8, crop=8, channels=1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0)),
    ]
    assert len({v.name for v in variants}) == len(variants)
