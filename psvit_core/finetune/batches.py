"""Training batches: loaded, augmented and laid out ahead of the step that uses them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from psvit_core.callbacks import Tick
from psvit_core.data import EvalSet
from psvit_core.data.ahead import ahead
from psvit_core.finetune.augment import Augmentation, Use, generator_of
from psvit_core.records import FinetuneSettings
from psvit_core.runtime import Run, channels_last

KEPT_BYTES = 1 << 30  # decoded images that are kept in memory


def steps_per_epoch(train: EvalSet, settings: FinetuneSettings) -> int:
    """Return the number of batches in one pass over the training images."""
    return max(1, len(train) // settings.batch)


def n_steps(train: EvalSet, settings: FinetuneSettings) -> int:
    """Return the number of batches of a whole training."""
    return max(1, round(settings.epochs * steps_per_epoch(train, settings)))


class Batches:
    """The batches of a training, epoch by epoch.

    Images that fit into ``KEPT_BYTES`` are decoded once and kept; others are decoded for each
    batch. A batch depends on the seed and its number only, so a training can go on anywhere.

    Args:
        train: Training images.
        settings: Batch size and seed.
        augment: Augmentation.
        run: Precision and decoding processes.
    """

    def __init__(
        self, train: EvalSet, settings: FinetuneSettings, augment: Augmentation, run: Run
    ) -> None:
        self.train, self.settings, self.augment, self.run = train, settings, augment, run
        self.per_epoch = steps_per_epoch(train, settings)
        self._kept: Tensor | None = None
        self._labels = torch.tensor(train.labels)

    def keep(self, tick: Tick) -> None:
        """Decode all images once if they fit into memory and are needed more than once."""
        if self._kept is not None or self.settings.epochs <= 1:
            return
        bytes_each = self.train.load(0).numel() * self.run.dtype.itemsize
        if bytes_each * len(self.train) > KEPT_BYTES:
            return
        parts: list[Tensor] = []
        for part in self.train.batches(self.settings.batch, self.run.dtype, self.run.workers):
            tick()
            parts.append(part)
        self._kept = torch.cat(parts)

    def epoch(self, step: int, n_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``n_steps`` batches of the epoch that contains a step, from that step on.

        Args:
            step: Number of the first batch since training began.
            n_steps: Number of batches, at most to the end of the epoch.

        Yields:
            (augmented images, labels); images of shape (B, C, H, W) have channels last.
        """
        number, first = divmod(step, self.per_epoch)
        generator = generator_of(self.settings.seed, Use.ORDER, number)
        order = torch.randperm(len(self.train), generator=generator)
        size = self.settings.batch
        chosen = order[first * size : (first + n_steps) * size]
        return ahead(self._prepared(chosen, step))

    def _prepared(self, chosen: Tensor, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number, x in enumerate(self._images(chosen)):
            part = chosen[number * self.settings.batch :][: len(x)]
            yield channels_last(self.augment.drawn(x, step + number)), self._labels[part]

    def _images(self, chosen: Tensor) -> Iterator[Tensor]:
        if self._kept is None:
            part = self.train.take(chosen.tolist())
            return part.batches(self.settings.batch, self.run.dtype, self.run.workers)
        kept = self._kept
        return (kept[part] for part in chosen.split(self.settings.batch))
