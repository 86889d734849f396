"""Memory that the values of a native program share."""

from __future__ import annotations

from dataclasses import dataclass, field

_ALIGNED = 16  # elements: 64 bytes


@dataclass
class Room:
    """Where in the arena values lie; a place is used again when its value is gone."""

    size: int = 0
    _free: list[tuple[int, int]] = field(default_factory=list)  # (offset, length)
    _taken: dict[int, int] = field(default_factory=dict)

    def take(self, n: int) -> int:
        """Offset of room for n elements."""
        n = -(-n // _ALIGNED) * _ALIGNED
        fitting = [(length, at) for at, length in self._free if length >= n]
        if fitting:
            length, at = min(fitting)
            self._free.remove((at, length))
            if length > n:
                self._free.append((at + n, length - n))
        else:
            at = self.size
            self.size += n
        self._taken[at] = n
        return at

    def give_back(self, at: int) -> None:
        """Free the room at an offset."""
        places = sorted([*self._free, (at, self._taken.pop(at))])
        self._free = []
        for start, length in places:
            if self._free and sum(self._free[-1]) == start:
                before, n = self._free.pop()
                start, length = before, n + length
            self._free.append((start, length))
