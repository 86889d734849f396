"""Warnings about numbers that are probably wrong: other classes than outputs, accuracy at chance.

Both are the usual signs of labels in another order than the model's outputs. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from psvit_core.records import LEAST_AGREEMENT, Interval, Measurement, PrecisionCheck

CHANCE_SIGN = "no better than guessing"  # in every warning about chance, and in no other
_NAMED = 3  # classes that a warning names


def class_warning(spec: str, n_classes: int, model: str, n_outputs: int) -> str | None:
    """Return a warning if data and model have different numbers of classes, else None.

    Args:
        spec: The data.
        n_classes: Its number of classes, over all splits.
        model: Name of the model.
        n_outputs: The model's number of classes.
    """
    if n_classes == n_outputs:
        return None
    advice = (
        "Create a folder for every class that the model was trained on, even if it has no images."
        if spec.startswith("folder:")
        else "Check that each label is the number of the model's output for its class."
    )
    return (
        f"{spec} has {_count(n_classes, 'class', 'classes')}, but {model} has "
        f"{_count(n_outputs, 'output', 'outputs')}: labels and outputs may refer to "
        f"different classes. {advice}"
    )


def empty_class_warning(split: str, counts: Sequence[int], classes: Sequence[str]) -> str | None:
    """Return a warning if a split has no images of some classes, else None.

    Args:
        split: The split.
        counts: Its number of images of each class.
        classes: Names of the classes.
    """
    empty = [classes[label] for label, count in enumerate(counts) if not count]
    if not empty or len(empty) == len(counts):
        return None
    more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
    return (
        f"{split} has no images of {len(empty)} of {len(counts)} classes: "
        f"{', '.join(empty[:_NAMED])}{more}."
    )


def chance_warning(accuracy: Interval, n_outputs: int) -> str | None:
    """Return a warning if a model, before any pruning, is no better than guessing, else None.

    Args:
        accuracy: Its accuracy, a fraction with its interval.
        n_outputs: Its number of classes.
    """
    if n_outputs < 2 or accuracy.low > 1 / n_outputs:
        return None
    return (
        f"The baseline accuracy, {accuracy.value:.2%} [{accuracy.low:.2%}, "
        f"{accuracy.high:.2%}], is {CHANCE_SIGN} among {n_outputs} classes "
        f"({1 / n_outputs:.2%}). Before you trust a sweep, check the weights, the image size, "
        "and that the labels are in the order of the model's outputs."
    )


def precision_warning(check: PrecisionCheck | None, precision: str) -> str | None:
    """Return a warning if predictions in a reduced precision are often not those of float32.

    Args:
        check: The comparison; None if there was none.
        precision: The reduced precision.
    """
    if check is None or check.is_enough:
        return None
    return (
        f"In {precision}, {check.text}, less than {LEAST_AGREEMENT:.0%}. Use --precision float32, "
        "or compare only numbers of this precision with each other."
    )


def with_warnings(
    measured: Measurement, warnings: Sequence[str], n_outputs: int
) -> tuple[Measurement, str | None]:
    """Return a measurement with its warnings, and the one about chance if there is one.

    Args:
        measured: The measurement of the unpruned model, or of a plan with its baseline.
        warnings: Warnings about the images.
        n_outputs: The model's number of classes.
    """
    chance = chance_warning(measured.baseline_accuracy or measured.accuracy, n_outputs)
    others = tuple(text for text in warnings if text != chance)
    of_precision = precision_warning(measured.precision_check, measured.conditions.precision)
    own = tuple(text for text in (chance, of_precision) if text)
    found = dataclasses.replace(measured, warnings=(*others, *own))
    return found, chance


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
