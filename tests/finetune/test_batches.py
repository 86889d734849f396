"""Augmentation and batches of training: values, seeds, and preparation ahead."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from psvit_core.callbacks import keep_going
from psvit_core.data.ahead import ahead
from psvit_core.finetune import batches as batches_module
from psvit_core.finetune.augment import (
    Augmentation,
    Use,
    affine,
    generator_of,
    random_affine,
    random_crop,
    random_flip,
    seed_of,
)
from psvit_core.finetune.batches import Batches
from psvit_core.records import FinetuneSettings
from psvit_core.runtime import Run
from tests.tiny import build_tiny, tiny_data

SETTINGS = FinetuneSettings(epochs=2, batch=4, augment="crop")


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1


@pytest.mark.parametrize("size", [(28, 28), (20, 31)], ids=str)
def test_affine_is_torchvisions(size: tuple[int, int]) -> None:
    x = pictures(6, 2, *size)
    x[:, :, 0, 0] = 0.0  # black: the fill value
    angle = torch.tensor([0.0, 10.0, -7.0, 3.0, 0.0, 9.0], dtype=torch.float64)
    shear = torch.tensor([0.0, 0.0, 5.0, -4.0, 5.0, 1.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 1.0, 0.9, 1.1, 1.0, 1.05], dtype=torch.float64)
    shift = torch.tensor([[2, -1], [0, 0], [1, 1], [-2, 0], [0, 2], [-1, -2]])
    got = affine(x, angle, shear, scale, shift)
    for i, image in enumerate(x):
        expected = v2.functional.affine(
            image,
            angle=float(angle[i]),
            translate=[float(v) for v in shift[i]],
            scale=float(scale[i]),
            shear=[float(shear[i]), 0.0],
            interpolation=v2.InterpolationMode.NEAREST,
            fill=0.0,
        )
        same = torch.isclose(got[i], expected, atol=1e-6)
        assert float(same.float().mean()) > 0.995  # at ties of two pixels either may be taken
    assert not torch.equal(got[1], x[1])


def test_random_affine_stays_within_its_limits() -> None:
    x = torch.zeros(400, 1, 29, 29)
    x[:, :, 14, 14] = 1.0  # the centre moves by the shift only
    moved = random_affine(x, generator_of(0, Use.DRAWN, 0))
    places = moved.flatten(1).argmax(1)
    offsets = torch.stack([places % 29, places // 29]) - 14
    assert set(offsets.unique().tolist()) == {-2, -1, 0, 1, 2}  # 7 % of 29, in whole pixels


def test_crop_shifts_and_pads_with_black() -> None:
    x = pictures(64, 3, 16, 16)
    x[:, 1] -= 5.0  # black differs between channels
    black = x.amin(dim=(0, 2, 3))
    shifted = random_crop(x, generator_of(0, Use.DRAWN, 1))
    assert shifted.shape == x.shape
    padded = black.view(1, -1, 1, 1).expand(64, 3, 20, 20).clone()
    padded[:, :, 2:-2, 2:-2] = x
    seen = set()
    for image, source in zip(shifted, padded, strict=True):
        fits = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.allclose(source[:, top : top + 16, left : left + 16], image, atol=1e-6)
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 15
    frames = random_crop(pictures(5, 3, 2, 8, 8), generator_of(0, Use.DRAWN, 1))
    assert frames.shape == (5, 3, 2, 8, 8)


def test_flip_mirrors_half_of_the_images() -> None:
    x = pictures(200, 1, 4, 5)
    flipped = random_flip(x, generator_of(0, Use.DRAWN, 2))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, x, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, x, strict=True)]
    assert sum(mirrored) + sum(kept) == 200
    assert 60 < sum(mirrored) < 140


def test_seeds_are_distinct_and_the_global_generators_unused() -> None:
    seeds = {seed_of(seed, use, n) for seed in range(4) for use in Use for n in range(100)}
    assert len(seeds) == 4 * len(Use) * 100
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    random_affine(pictures(2, 1, 8, 8), generator_of(0, Use.DRAWN, 0))
    assert torch.equal(torch.rand(1), expected)


def made(settings: FinetuneSettings = SETTINGS, *, kept: bool = True, workers: int = 0) -> Batches:
    train = dataclasses.replace(tiny_data("sdt_v3", 18), split="train")
    augment = Augmentation(settings, build_tiny("sdt_v3"), train)
    batches = Batches(train, settings, augment, Run(workers=workers))
    if kept:
        batches.keep(keep_going)
    return batches


def values(items: Iterator[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x.clone(), labels) for x, labels in items]


def test_batches_depend_on_their_number_only() -> None:
    whole = values(made().epoch(0, 4))
    assert [len(x) for x, _ in whole] == [4, 4, 4, 4]
    for batches in (made(), made(kept=False)):
        later = values(batches.epoch(2, 2))
        for (x, labels), (y, others) in zip(whole[2:], later, strict=True):
            assert torch.equal(x, y)
            assert torch.equal(labels, others)
    second = values(made().epoch(4, 4))
    assert not torch.equal(torch.cat([x for x, _ in whole]), torch.cat([x for x, _ in second]))
    other = values(made(dataclasses.replace(SETTINGS, seed=1)).epoch(0, 4))
    assert not torch.equal(whole[0][0], other[0][0])


def test_large_data_sets_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made()._kept is not None
    assert made(dataclasses.replace(SETTINGS, epochs=1))._kept is None  # read once anyway
    monkeypatch.setattr(batches_module, "KEPT_BYTES", 1000)
    assert made()._kept is None


def test_ahead_passes_errors_on_and_ends() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("unreadable")

    items = ahead(failing())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="unreadable"):
        next(items)
    produced: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            produced.append(1)
            yield len(produced)

    for item in ahead(endless()):
        if item == 3:
            break
    assert len(produced) <= 5  # no item is produced after the loop has ended
