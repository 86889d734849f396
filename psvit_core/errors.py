"""Every error that a user can cause, each with the rule, the value and the way out.

All derive from ``PsvitError``; its ``exit_code`` is what the command line ends with
(2: bad input, 1: failed while running, 130: cancelled).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PsvitError(Exception):
    """Base of every error that psvit_core raises on purpose."""

    exit_code = 2


class UnknownNameError(PsvitError):
    """A model, criterion, policy or data set that is not registered."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        """Name what was asked for and offer the nearest known names."""
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"No {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


class InvalidRatioError(PsvitError):
    """A prune ratio or a target outside its range."""


class InvalidEnergyError(PsvitError):
    """An energy constant that is no amount of energy."""


class InvalidPlanError(PsvitError):
    """A plan, or a sweep to plan from, that does not fit what it is used on."""


class RecordError(PsvitError):
    """A JSON document that is not the record it is read as."""


class ModelError(PsvitError):
    """Arguments or widths that no model can be built from."""


class CheckpointError(PsvitError):
    """A checkpoint file that is damaged, foreign or does not fit."""


class DataError(PsvitError):
    """A data specification, folder or file without usable images."""


class OutputError(PsvitError):
    """A place that cannot be written to."""


class StoreError(PsvitError):
    """A damaged entry of the store; the message names the path to delete."""


class TargetError(PsvitError):
    """A target that no plan on the given grid reaches; the message says the most."""


class DeviceError(PsvitError):
    """A device that this machine does not have."""


class JobError(PsvitError):
    """Background work that failed."""

    exit_code = 1


class CancelledError(PsvitError):
    """Work that the user cancelled; what was finished is kept."""

    exit_code = 130
