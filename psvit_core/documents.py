"""Read YAML files written by hand, with the line of every value, in bounded time and memory.

Only plain data is read: mappings, lists, text, numbers, true, false and null, as in YAML 1.2. The
parser's events are read one by one, so that a deep or large file is refused before it is built.
JSON is read, too: it is YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psvit_core.errors import ConfigError
from psvit_core.files import expand

if TYPE_CHECKING:
    from yaml.events import ScalarEvent

MAX_BYTES = 64_000
MAX_DEPTH = 8
_MAX_DIGITS = 40  # of a number; converting longer ones takes time
_SHOWN = 60  # characters of foreign text in a message

Path_ = tuple[str | int, ...]  # keys and list positions from the root to a value

#: Plain text with another meaning: the core schema of YAML 1.2, where ``off`` is text and ``1e-3``
#: is a number. PyYAML's own rules are those of YAML 1.1.
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Document:
    """The data of a file, and where it is."""

    path: str
    data: Any
    lines: Mapping[Path_, int] = field(repr=False)  # of a key, or of an element of a list

    def line_of(self, place: Path_) -> int:
        """Return the line of a value; that of what contains it if it is missing."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)

    def error(self, place: Path_, text: str) -> ConfigError:
        """Return the error of a value.

        Args:
            place: Keys from the root to the value.
            text: What is wrong and what to do, as a sentence.
        """
        name = ".".join(map(str, place))
        return ConfigError(
            f"{self.path}, line {self.line_of(place)}: {name}{': ' if name else ''}{text}"
        )


def read_yaml(path: str | Path) -> Document:
    """Read a YAML or JSON file.

    Raises:
        ConfigError: If the file cannot be read, is too large or too deep, is not YAML, or uses what
            a configuration does not need: aliases, tags, repeated keys, several documents. The
            message names the line.
    """
    text = _text_of(path)
    return _Reader(str(path)).read(text)


def _text_of(path: str | Path) -> str:
    try:
        with expand(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"Cannot read {path!s:.200}: {reason}.") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path} is larger than {MAX_BYTES:,} bytes, so it is no configuration. Give a "
            "configuration file."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text. Save it as UTF-8.") from error


class _Reader:
    """Builds the data of one file from the parser's events.

    Args:
        path: The file, for messages.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lines: dict[Path_, int] = {}

    def read(self, text: str) -> Document:
        import yaml

        try:
            events = yaml.parse(text, Loader=yaml.SafeLoader)
            return Document(self._path, self._build(events), self._lines)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise self._error(line, f"not YAML: {_short(error.problem or error)}.") from error
        except yaml.YAMLError as error:  # a character that may not stand in a file
            position = getattr(error, "position", 0)
            line = text.count("\n", 0, position) + 1
            raise self._error(line, "a character that YAML does not allow.") from error

    def _build(self, events: Any) -> Any:
        import yaml

        open_: list[_Collection] = []
        root: list[Any] = []
        for event in events:
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent) and root:
                raise self._error(line, "a second document. Keep one in a file.")
            if isinstance(event, yaml.NodeEvent):
                self._check_plain(event, line)
            if isinstance(event, yaml.CollectionEndEvent):
                open_.pop()
            elif isinstance(event, yaml.ScalarEvent):
                self._add(open_, root, self._value(event, open_, line), line)
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(open_) == MAX_DEPTH:
                    raise self._error(
                        line, f"nested deeper than {MAX_DEPTH} levels. No field of it is."
                    )
                data: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
                place = self._add(open_, root, data, line)
                open_.append(_Collection(data, place))
        return root[0] if root else None

    def _check_plain(self, event: Any, line: int) -> None:
        """Refuse aliases, and tags such as ``!!python/object``."""
        if event.anchor is not None:
            raise self._error(
                line, f"an anchor or alias ({_short(event.anchor)}). Write the value out."
            )
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            raise self._error(line, f"a tag ({_short(tag)}). Write the value without it.")

    def _value(self, event: ScalarEvent, open_: list[_Collection], line: int) -> Any:
        """Return a scalar's value; keys are text."""
        text = event.value
        if not event.implicit[0] or (open_ and open_[-1].waits_for_key):
            return text
        if text in _WORDS:
            return _WORDS[text]
        if len(text) > _MAX_DIGITS:
            return text
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        return text

    def _add(self, open_: list[_Collection], root: list[Any], value: Any, line: int) -> Path_:
        """Add a key or a value to the innermost open collection, and return its place."""
        if not open_:
            root.append(value)
            self._lines[()] = line
            return ()
        inner = open_[-1]
        if isinstance(inner.data, list):
            place = (*inner.place, len(inner.data))
            inner.data.append(value)
            self._lines[place] = line
            return place
        if not inner.waits_for_key:
            assert inner.key is not None
            place = (*inner.place, inner.key)
            inner.data[inner.key], inner.key = value, None
            return place
        if not isinstance(value, str):
            raise self._error(line, "a list or mapping as a key. Keys are text.")
        place = (*inner.place, value)
        if place in self._lines:
            raise self._error(
                line,
                f"{_short('.'.join(map(str, place)))} is given a second time, first in line "
                f"{self._lines[place]}. Keep one.",
            )
        self._lines[place] = line
        inner.key = value
        return place

    def _error(self, line: int, text: str) -> ConfigError:
        return ConfigError(f"{self._path}, line {line}: {text}")


@dataclass
class _Collection:
    """A mapping or list whose end was not read yet."""

    data: dict[str, Any] | list[Any]
    place: Path_
    key: str | None = None  # of a mapping, whose value follows

    @property
    def waits_for_key(self) -> bool:
        return isinstance(self.data, dict) and self.key is None


def _short(text: object) -> str:
    """Return foreign text on one line, shortened."""
    line = " ".join(str(text).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."
