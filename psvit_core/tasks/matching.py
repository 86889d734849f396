"""Match stored results to a subject: same model, same images, same way of running."""

from __future__ import annotations

import dataclasses

from psvit_core.files import data_set_name
from psvit_core.image_folders import READING, is_read_anew
from psvit_core.pareto import ParetoArchive
from psvit_core.records import Conditions, ModelSummary, Subject
from psvit_core.records.jobs import FileStamps
from psvit_core.tasks.fingerprints import data_stamp, model_stamp
from psvit_core.zoo.cards import ModelCard, list_models, model_card, shipped_summary

#: Fields of a subject that define the model; the others define the images and how they are run.
_MODEL_FIELDS = (
    "model",
    "checkpoint",
    "plugin",
    "image_size",
    "num_heads",
    "time_steps",
    "ema",
    "entry",
    "arguments",
)


def same_model_fields(one: Subject, other: Subject) -> bool:
    """Return whether two subjects define the same model, on whatever images."""
    return all(getattr(one, f) == getattr(other, f) for f in _MODEL_FIELDS)


class Matcher:
    """Decides which stored results apply to a subject.

    Args:
        subject: The subject that results are sought for.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        registered = subject.model in list_models()
        self._read_anew: dict[str, bool] = {}
        self.card: ModelCard | None = model_card(subject.model) if registered else None

    def shipped_summary(self) -> ModelSummary | None:
        """Return the summary shipped with the weights; None if the subject changes the model."""
        s, shipped = self.subject, shipped_summary(self.subject.model)
        if shipped is None or self.card is None or s.checkpoint is not None:
            return None
        same_heads = s.num_heads in (None, self.card.arguments["num_heads"])
        return shipped if same_heads and s.image_size in (None, shipped.input_shape[1]) else None

    def same_model(self, other: Subject | None, stamps: FileStamps | None) -> bool:
        """Return whether a job ran this model, on whatever images.

        Args:
            other: The job's subject; None never matches.
            stamps: Of its files at submission; jobs of old versions have none and match.
        """
        return (
            other is not None
            and same_model_fields(other, self.subject)
            and (stamps is None or stamps.model == tuple(model_stamp(other)))
        )

    def same_numbers(self, other: Subject | None, stamps: FileStamps | None) -> bool:
        """Return whether a job's numbers hold for this subject: same model, images and run.

        The recovery may differ: a measurement after it contains the one before it.

        Args:
            other: As for ``same_model``.
            stamps: As for ``same_model``.
        """
        return (
            other is not None
            and other.model == self.subject.model
            and self._resolved(other) == self._resolved(self.subject)
            and (
                stamps is None
                or (stamps.model, stamps.data)
                == (tuple(model_stamp(other)), tuple(data_stamp(other.data)))
            )
        )

    def same_run(
        self, c: Conditions | ParetoArchive, batch: int | None, T: int, split: str | None = None
    ) -> bool:
        """Return whether numbers were measured as this subject measures, except for the limit.

        Args:
            c: Conditions of the numbers.
            batch: Their batch size where it changes numbers, else None.
            T: The model's own time steps; event frames bring their own.
            split: Split to match instead of the subject's.
        """
        s = self._resolved(self.subject)
        frames = c.transform.startswith("frames")
        transform = self.card.at(s.image_size).transform.name if self.card else c.transform
        return (
            (c.split, c.precision) == (split or s.split, s.precision)
            and data_set_name(c.data) == data_set_name(s.data or c.data)
            and c.images.startswith(READING) == self._is_read_anew(split or s.split)
            and (frames or c.transform == transform)
            and ((s.time_steps or T) == c.T or (frames and s.time_steps is None))
            and (s.batch is None or batch in (None, s.batch))
        )

    def _is_read_anew(self, split: str) -> bool:
        """Return whether versions up to 0.2 read other images or labels for a split."""
        if split not in self._read_anew:
            spec = self._resolved(self.subject).data or ""
            self._read_anew[split] = is_read_anew(spec, split)
        return self._read_anew[split]

    def _resolved(self, subject: Subject) -> Subject:
        """Return a subject with the card's defaults filled in and irrelevant fields reset."""
        data, batch = subject.data, subject.batch
        if self.card is not None:
            data, batch = data or self.card.data, batch or self.card.batch
        return dataclasses.replace(subject, data=data, batch=batch, workers=0, recovery="none")
