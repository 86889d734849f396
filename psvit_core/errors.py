"""Errors that a user can cause. Each message gives the rule, the value and a way out.

All derive from ``PsvitError``, whose ``exit_code`` is the exit status of the command line
(2: bad input, 1: failed while running, 130: cancelled). 3 is no error: ``run`` is done, and a
target was missed on the test split.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class PsvitError(Exception):
    """Base class of all errors that psvit_core raises on purpose."""

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle restores the error from, also if it was made from other arguments."""
        return _restored, (type(self), self.args), self.__dict__ or None


def _restored(kind: type[PsvitError], arguments: tuple[Any, ...]) -> PsvitError:
    return kind.__new__(kind, *arguments)


class UnknownNameError(PsvitError):
    """An unknown model, criterion, policy, data set or other name."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        """Build the message with the closest match and all known names.

        Args:
            what: Kind of the name, e.g. ``policy``.
            name: The unknown name.
            known: Names that exist.
        """
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"Unknown {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


class InvalidRatioError(PsvitError):
    """A prune ratio or a target outside its range."""


class InvalidEnergyError(PsvitError):
    """An energy per operation that is negative or not finite."""


class InvalidSizeError(PsvitError):
    """A size of a memory that is no positive number of bytes."""


class InvalidPlanError(PsvitError):
    """A plan or sweep that does not match the model it is used with."""


class RecordError(PsvitError):
    """A JSON document that is not a valid record of the expected type."""


class ConfigError(PsvitError):
    """A configuration file that cannot be used. The message names file, line and field."""


class ModelError(PsvitError):
    """Arguments or widths that do not describe a valid model."""


class CheckpointError(PsvitError):
    """A checkpoint file that is damaged, of another format or made for another model."""


class DataError(PsvitError):
    """A data specification, folder or file without usable images."""


class OutputError(PsvitError):
    """A path that cannot be written."""


class MissingPackageError(PsvitError):
    """An optional package that is not installed. The message says what to install."""


class ExportError(PsvitError):
    """An exported file that computes something else than its network. It is not kept."""

    exit_code = 1


class StoreError(PsvitError):
    """A fault of the store's files. The message names the path and the way out."""

    #: ``full``, ``read-only``, ``locked``, ``damaged`` or ``other``; empty if it is none of these.
    kind = ""
    #: Whether a warning with this text was logged already, so that nobody needs to repeat it.
    said = False

    @property
    def unwritable(self) -> bool:
        """Whether the store can be read, but not written to."""
        return self.kind in ("full", "other")


class TargetError(PsvitError):
    """A target that no plan can reach. The message gives the largest saving that is possible."""


class DeviceError(PsvitError):
    """A device that is not available on this machine."""


class ClusterError(PsvitError):
    """A Ray cluster that cannot be used as asked. Finished parts stay in the store."""


class JobError(PsvitError):
    """A background job that failed."""

    exit_code = 1


class PsvitWarning(UserWarning):
    """Something that a user should know about a result that is still valid."""


class CancelledError(PsvitError):
    """Work cancelled by the user. Finished parts stay in the store."""

    exit_code = 130
