"""What is left of a folder after a power cut, from a record of all changes (``shim.c``).

Content that was not synced, and names whose folder was not synced, may be on the disk or not. Three
ways are tried: none of it is (``synced``); all names are, but no content (``names``), as on systems
that keep the order of names only; and an arbitrary part of both is (``part``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

WAYS = ("synced", "names", "part")


@dataclass(frozen=True)
class Change:
    """One change: ``create``, ``write``, ``truncate``, ``sync``, ``rename``, ``unlink``, ``mkdir``.

    A sync is of a file or of the names in a folder.
    """

    kind: str
    path: str
    other: str  # the new name
    offset: int  # of a write; the size of a truncate
    data: bytes


def read_changes(log: Path) -> list[Change]:
    """Return the changes that a program made, in their order."""
    return list(_changes(log.read_bytes()))


def _changes(content: bytes) -> Iterator[Change]:
    at = 0
    while at < len(content):
        end = content.index(b"\n", at)
        kind, *numbers = content[at:end].split()
        offset, n_data, n_path, n_other = map(int, numbers)
        cuts = [end + 1, end + 1 + n_path, end + 1 + n_path + n_other]
        at = cuts[2] + n_data
        path, other = (content[a:b].decode() for a, b in pairwise(cuts))
        yield Change(kind.decode(), path, other, offset, content[cuts[2] : at])


@dataclass
class _File:
    synced: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    later: list[Change] = field(default_factory=list)  # since the last sync

    def change(self, change: Change) -> None:
        self.later.append(change)
        _apply(self.content, change)

    def sync(self) -> None:
        self.synced, self.later = bytes(self.content), []


def _apply(content: bytearray, change: Change) -> None:
    if change.kind == "truncate":
        del content[change.offset :]
        content.extend(bytes(max(0, change.offset - len(content))))
        return
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.data)] = change.data


class Disk:
    """A folder in memory and on the disk.

    Args:
        root: The folder, empty at first and on the disk.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._now: dict[str, _File | None] = {}  # None: a folder
        self._synced: dict[str, _File | None] = {}

    def apply(self, change: Change) -> None:
        """Apply a change."""
        path = change.path
        if change.kind == "create":
            self._now[path] = _File()
        elif change.kind == "mkdir":
            self._now[path] = None
        elif change.kind == "rename":
            self._now[change.other] = self._now.pop(path)
        elif change.kind == "unlink":
            self._now.pop(path, None)
        elif change.kind == "sync":
            self._sync(path)
        else:
            file = self._now[path]
            assert file is not None
            file.change(change)

    def _sync(self, path: str) -> None:
        file = self._now.get(path)
        if file is not None:
            file.sync()
            return
        for name in _names_in(path, self._synced):
            del self._synced[name]
        self._synced |= {name: self._now[name] for name in _names_in(path, self._now)}

    def after_power_cut(self, way: str, target: Path, random: Random) -> Path:
        """Write what is left to a new folder; return it."""
        target.mkdir(parents=True)
        for path, file in sorted(self._left(way, random).items()):
            place = target / Path(path).relative_to(self._root)
            if not place.parent.is_dir():
                continue  # its folder is not on the disk
            if file is None:
                place.mkdir()
            else:
                place.write_bytes(_content(file, way, random))
        return target

    def _left(self, way: str, random: Random) -> dict[str, _File | None]:
        if way == "synced":
            return self._synced
        if way == "names":
            return self._now
        left: dict[str, _File | None] = {}
        for folder in {str(Path(path).parent) for path in {*self._now, *self._synced}}:
            found = random.choice([self._now, self._synced])
            left |= {name: found[name] for name in _names_in(folder, found)}
        return left


def _names_in(folder: str, names: dict[str, _File | None]) -> list[str]:
    return [name for name in names if name.rpartition("/")[0] == folder]


def _content(file: _File, way: str, random: Random) -> bytes:
    content = bytearray(file.synced)
    for change in file.later if way == "part" else ():
        if random.random() < 0.5:
            _apply(content, change)
    return bytes(content)
