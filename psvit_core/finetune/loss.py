"""The loss of a training step: forward passes in the training's precision, labels, distillation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core.finetune.augment import Augmentation
from psvit_core.kernels.layers import fast_layers
from psvit_core.records import FinetuneSettings
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, with its graph."""

    model: SpikingModel
    teacher: SpikingModel | None  # to distil from
    settings: FinetuneSettings
    run: Run
    augment: Augmentation

    def __call__(self, x: Tensor, labels: Tensor, step: int) -> Tensor:
        """Return the mean loss of a batch, nats.

        Args:
            x: Images on the run's device.
            labels: Their labels, (B,).
            step: Number of the batch since training began.
        """
        s = self.settings
        x, target = self.augment.mixed(x, labels, step)
        target_logits = None
        with self._precision():
            logits = _wide(self.model(x))
            if self.teacher is not None:
                with torch.no_grad():
                    target_logits = _wide(self.teacher(x))
        soft = 0.0 if target.is_floating_point() else s.label_smoothing  # mixup smooths itself
        loss = F.cross_entropy(logits, target, label_smoothing=soft)
        if target_logits is None:
            return loss
        distilled = distillation(logits, target_logits, s.temperature)
        return (1 - s.alpha) * loss + s.alpha * distilled

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Run forward passes in the block with the training's precision and loops."""
        with ExitStack() as stack:
            stack.enter_context(self.run.autocast)
            if torch.device(self.run.device).type == "cpu":
                stack.enter_context(fast_layers())
                half = self.settings.autocast == "bfloat16"
                stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=half))
            yield


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the distillation loss: KL(teacher || student) of the softened outputs.

    It is the mean over images, in nats, times the temperature squared.

    Source:
        Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return kl * temperature**2


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
