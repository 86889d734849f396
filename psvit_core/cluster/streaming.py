"""Results of a worker's method as a stream, while the method goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

Found = Callable[[Any], None]


def streamed(run: Callable[[Found], None]) -> Iterator[Any]:
    """Yield what a function, in a thread, passes to its argument; raise what it raises."""
    results: SimpleQueue[Any] = SimpleQueue()
    end = object()

    def work() -> None:
        try:
            run(results.put)
        except Exception as error:  # raised below
            results.put(_Failed(error))
        else:
            results.put(end)

    Thread(target=work, daemon=True).start()
    while (result := results.get()) is not end:
        if isinstance(result, _Failed):
            raise result.error
        yield result


@dataclass(frozen=True)
class _Failed:
    error: Exception
