"""The base class of records, and the rounding rule of prune ratios."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from psvit_core.errors import InvalidRatioError, RecordError
from psvit_core.files import expand, write_text

Axis = tuple[str, int]  # (tensor name, axis)

Kept = tuple[int, ...]  # sorted indices of the remaining units
_NAME = 64  # characters of the longest string that is interned


def check_ratio(prune_ratio: float) -> float:
    """Return ``prune_ratio`` as a float; raise ``InvalidRatioError`` outside [0, 1)."""
    if not (isinstance(prune_ratio, (int, float)) and 0 <= prune_ratio < 1):
        raise InvalidRatioError(
            f"A prune ratio is the fraction removed, in [0, 1); got {prune_ratio!r}. "
            "Use for example 0.25 to remove a quarter of the channels."
        )
    return float(prune_ratio)


def n_pruned(prune_ratio: float, n_units: int, heads: int | None = None, round_to: int = 1) -> int:
    """Return the number of units that a ratio removes from a group.

    This is the only rounding rule: round down to a whole number, then to a multiple of ``heads``
    (every head loses the same number). At least one unit per head remains.

    Args:
        prune_ratio: Fraction removed, in [0, 1).
        n_units: Units in the group.
        heads: Heads that must keep equal counts, or None.
        round_to: Round the remaining width up to a multiple of lcm(round_to, heads). A group
            without such a width is not pruned.

    Raises:
        InvalidRatioError: If the ratio is outside [0, 1).
    """
    step = heads or 1
    removed = math.floor(check_ratio(prune_ratio) * n_units + 1e-9)
    removed = min(removed - removed % step, n_units - step)
    if round_to > 1:
        multiple = math.lcm(round_to, step)
        kept = -(-(n_units - removed) // multiple) * multiple
        removed = n_units - kept if kept <= n_units else 0
    return removed


class Record:
    """Base class of frozen dataclasses that convert to and from JSON, nested and versioned."""

    document: ClassVar[str] = ""
    version: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, with document type and version if the record has them."""
        assert dataclasses.is_dataclass(self)
        body = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        if not self.document:
            return body
        return {"document": self.document, "version": self.version, **body}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Build the record from the data of ``to_dict``.

        Raises:
            RecordError: If ``data`` is not this document and version with exactly its fields.
        """
        if not isinstance(data, Mapping):
            raise RecordError(f"A {cls._title()} is a JSON object, not {_shown(data)}.")
        body = dict(data)
        if cls.document:
            found = (body.pop("document", None), body.pop("version", None))
            if found != (cls.document, cls.version):
                raise RecordError(
                    f"Expected a {cls.document!r} document of version {cls.version}, found "
                    f"{found[0]!r} of version {found[1]!r}."
                )
        hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
        if set(body) - set(hints):
            raise RecordError(
                f"Unknown fields in {cls.__name__}: {sorted(set(body) - set(hints))}."
            )
        try:
            return cls(**{name: _typed(hints[name], value) for name, value in body.items()})
        except (TypeError, ValueError, KeyError, RecursionError) as error:
            raise RecordError(f"Not a valid {cls._title()}: {error}") from error

    @classmethod
    def _title(cls) -> str:
        return cls.document or cls.__name__

    def save(self, path: str | Path) -> Path:
        """Write the record as JSON in one step.

        Raises:
            OutputError: If the path cannot be written.
        """
        return write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a file written by ``save``.

        Raises:
            RecordError: If the file is missing, not JSON or not this record.
        """
        try:
            data = json.loads(expand(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecordError(f"Cannot read {path}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{path} is not a JSON document ({error}).") from error
        return cls.from_dict(data)


def all_finite(data: object) -> bool:
    """Return True if every number in plain JSON data is finite."""
    if isinstance(data, Mapping):
        return all(map(all_finite, data.values()))
    if isinstance(data, (list, tuple)):
        return all(map(all_finite, data))
    return not isinstance(data, float) or math.isfinite(data)


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        if all(type(item) is int for item in value):
            return list(value)  # fast path for kept units, most of a plan
        return [_plain(item) for item in value]
    return value


def _shown(value: object) -> str:
    """Return the start of a value as text, for messages."""
    try:
        return f"{value!r:.40}"
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"


def _typed(hint: Any, value: Any) -> Any:
    """Convert JSON data to the annotated type: tuples, nested records, optional values."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        return _typed_tuple(arguments, value)
    if origin is dict:
        items = dict(value).items()
        return {_shared(str(key)): _typed(arguments[1], item) for key, item in items}
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_dict(value)
    return value if hint is Any else _typed_scalar(hint, value)


def _typed_tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"expected a list, got {_shown(value)}")
    if arguments == (int, ...) and all(type(item) is int for item in value):
        return tuple(value)  # fast path for kept units, most of a plan
    if arguments[-1] is Ellipsis:
        return tuple(_typed(arguments[0], item) for item in value)
    return tuple(_typed(a, item) for a, item in zip(arguments, value, strict=True))


def _typed_scalar(hint: Any, value: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)
    ):
        raise TypeError(f"expected {hint.__name__}, got {_shown(value)}")
    return _shared(value) if type(value) is str else value


def _shared(text: str) -> str:
    """Intern a short string: most stored plans and measurements repeat the same names."""
    return sys.intern(text) if len(text) <= _NAME else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval(Record):
    """A value with its 95 % interval; the field that contains it defines the unit."""

    value: float
    low: float
    high: float
