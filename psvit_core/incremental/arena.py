"""Memory that the values of a native program share."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

_ALIGNMENT = 16  # elements: 64 bytes of float32


@dataclass
class Arena:
    """Allocator of offsets in one block of memory that grows as needed.

    Attributes:
        size: Elements that the block must have.
    """

    size: int = 0
    _gaps: list[tuple[int, int]] = field(default_factory=list)  # (offset, length), sorted
    _lengths: dict[int, int] = field(default_factory=dict)  # of what is allocated, by offset

    def allocate(self, n: int) -> int:
        """Return the offset of n free elements: the smallest gap that fits, or new memory."""
        n = -(-n // _ALIGNMENT) * _ALIGNMENT
        fitting = [(length, offset) for offset, length in self._gaps if length >= n]
        if fitting:
            length, offset = min(fitting)
            i = self._gaps.index((offset, length))
            self._gaps[i : i + 1] = [(offset + n, length - n)] if length > n else []
        else:
            offset = self.size
            self.size += n
        self._lengths[offset] = n
        return offset

    def free(self, offset: int) -> None:
        """Release what was allocated at an offset, and merge it with the gaps around it."""
        gaps, gap = self._gaps, (offset, self._lengths.pop(offset))
        insort(gaps, gap)
        i = gaps.index(gap)
        if i + 1 < len(gaps) and sum(gaps[i]) == gaps[i + 1][0]:
            gaps[i : i + 2] = [(gaps[i][0], gaps[i][1] + gaps[i + 1][1])]
        if i > 0 and sum(gaps[i - 1]) == gaps[i][0]:
            gaps[i - 1 : i + 1] = [(gaps[i - 1][0], gaps[i - 1][1] + gaps[i][1])]


class ChangedError(Exception):
    """A node that needs other memory than when its program was first written."""


class FixedArena:
    """Repeats the allocations of an arena, so that every value keeps its place.

    Args:
        allocated: Offset and length of each allocation, in order.
    """

    def __init__(self, allocated: Sequence[tuple[int, int]]) -> None:
        self._remaining = list(reversed(allocated))

    def allocate(self, n: int) -> int:
        """Return the next offset.

        Raises:
            ChangedError: If there is none, or n elements do not fit there.
        """
        if not self._remaining:
            raise ChangedError("there was no such allocation")
        offset, length = self._remaining.pop()
        if n > length:
            raise ChangedError(f"{n} elements instead of {length}")
        return offset

    def free(self, offset: int) -> None:
        """Do nothing: what is allocated later has its place already."""

    def check_complete(self) -> None:
        """Check that every allocation was repeated.

        Raises:
            ChangedError: If one was not.
        """
        if self._remaining:
            raise ChangedError("an allocation is missing")
