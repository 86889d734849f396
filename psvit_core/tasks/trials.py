"""Settings of several trainings of one model, of which the best is kept. No torch."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psvit_core.errors import JobError, UnknownNameError
from psvit_core.records import FinetuneReport, FinetuneSettings

#: Settings that are the same for all trials: these decide what they are compared on.
_COMMON = ("teacher", "teacher_checkpoint", "train_images")
#: Settings that trials may differ in.
VARIED = tuple(
    sorted(f.name for f in dataclasses.fields(FinetuneSettings) if f.name not in _COMMON)
)
MOST_TRIALS = 64


def vary(
    settings: FinetuneSettings, values: Mapping[str, Sequence[Any]]
) -> tuple[FinetuneSettings, ...]:
    """Return the settings of all trials: every combination of the values.

    Args:
        settings: What is not varied.
        values: The values to try, by the name of a setting.

    Raises:
        UnknownNameError: If a name is not one of ``VARIED``.
        JobError: If there are more than ``MOST_TRIALS`` combinations, or a setting has no value.
    """
    for name in values:
        if name not in VARIED:
            raise UnknownNameError("setting to try", name, VARIED)
    distinct = {name: tuple(dict.fromkeys(given)) for name, given in values.items()}
    n_trials = math.prod(len(given) for given in distinct.values())
    if not 1 <= n_trials <= MOST_TRIALS:
        raise JobError(
            f"At least 1 and at most {MOST_TRIALS} combinations of settings can be tried at a time;"
            f" got {n_trials}. Try fewer values, or one setting after the other."
        )
    combinations = itertools.product(*distinct.values())
    return tuple(
        dataclasses.replace(settings, **dict(zip(distinct, chosen, strict=True)))
        for chosen in combinations
    )


def parse_values(text: str) -> tuple[str, tuple[Any, ...]]:
    """Return the setting and the values of a text such as ``lr=0.001,0.0003``.

    Raises:
        UnknownNameError: If the setting is not one of ``VARIED``.
        JobError: If a value cannot be read.
    """
    name, _, rest = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in VARIED:
        raise UnknownNameError("setting to try", name, VARIED)
    hint = typing.get_type_hints(FinetuneSettings)[name]
    kind = next(t for t in (int, float, str) if t is hint or t in typing.get_args(hint))
    try:
        return name, tuple(kind(word.strip()) for word in rest.split(","))
    except ValueError as error:
        what = {int: "whole numbers", float: "numbers"}[kind]
        raise JobError(
            f"The values of {name} are {what}, separated by commas; got {rest!r}. For example "
            "lr=0.001,0.0003."
        ) from error


def trial_text(settings: FinetuneSettings, trials: Iterable[FinetuneSettings]) -> str:
    """Return what is particular to one of several trials, such as ``lr 0.001, seed 1``.

    Args:
        settings: Of the trial.
        trials: Of all trials.
    """
    known = [trial.to_dict() for trial in trials]
    own = settings.to_dict()
    varied = [name for name in VARIED if len({other[name] for other in known}) > 1]
    return ", ".join(f"{name.replace('_', ' ')} {_value_text(own[name])}" for name in varied)


def _value_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def without_equals(
    trials: Sequence[FinetuneSettings], *, has_teacher: bool
) -> tuple[FinetuneSettings, ...]:
    """Return the trials without those that would train the same network as an earlier one.

    Args:
        trials: Settings of all.
        has_teacher: Without one, the settings of distillation have no effect.
    """
    usual = FinetuneSettings()
    distinct: dict[FinetuneSettings, FinetuneSettings] = {}
    for trial in trials:
        alpha = trial.alpha if has_teacher else 0.0
        temperature = trial.temperature if alpha else usual.temperature
        what_counts = dataclasses.replace(trial, alpha=alpha, temperature=temperature)
        distinct.setdefault(what_counts, trial)
    return tuple(distinct.values())


def score(report: FinetuneReport) -> tuple[float, float]:
    """Return what trials are compared by: validation accuracy, then loss, of the best epoch.

    Raises:
        RecordError: If the report, which may come from a file, does not have the accuracy.
    """
    losses = [r.val_loss for r in report.epochs if r.epoch == report.best_epoch]
    return report.best_accuracy.value, max(-math.inf if loss is None else -loss for loss in losses)
