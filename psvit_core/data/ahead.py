"""Images prepared in a thread while the device computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

from psvit_core.data.evalset import EvalSet
from psvit_core.runtime import Run, channels_last, device_of

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items of an iterator, each produced in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


def batches_of(data: EvalSet, run: Run) -> Iterator[Tensor]:
    """Yield the batches of a run, on the processor; on accelerators prepared ahead."""
    items = (prepared(x, run) for x in data.batches(run.batch, run.dtype, run.workers))
    return ahead(items) if run.is_accelerated else items


def prepared(x: Tensor, run: Run) -> Tensor:
    """Lay images out for a run; for CUDA, in memory that it can copy from meanwhile."""
    laid_out = channels_last(x)
    return laid_out.pin_memory() if device_of(run.device).type == "cuda" else laid_out


def placed(x: Tensor, run: Run) -> Tensor:
    """Return prepared images on the run's device."""
    return x.to(run.device, non_blocking=True)


class Upcoming:
    """The images of batches that run one after the other, in the sweep's own sizes.

    On accelerators, the following batch is prepared while one runs.

    Args:
        data: Images.
        run: Device, precision and decoding processes.
    """

    def __init__(self, data: EvalSet, run: Run) -> None:
        self._data, self._run = data, run
        self._pool = ThreadPoolExecutor(1) if run.is_accelerated else None
        self._following: tuple[list[int], Future[Tensor]] | None = None

    def images(self, positions: Sequence[int], following: Sequence[int] = ()) -> Tensor:
        """Return the images at ``positions``, prepared.

        Args:
            positions: Positions in the data.
            following: Positions of the batch that is probably asked for next.
        """
        wanted, upcoming, known = list(positions), list(following), self._following
        if known and known[0] == wanted:
            self._following, x = None, known[1].result()
        else:
            x = self._load(wanted)
        if self._pool and upcoming and self._following is None:
            self._following = (upcoming, self._pool.submit(self._load, upcoming))
        return x

    def close(self) -> None:
        """Drop what nobody asked for."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _load(self, positions: list[int]) -> Tensor:
        part = self._data.take(positions)
        (x,) = part.batches(len(part), self._run.dtype, self._run.workers)
        return prepared(x, self._run)
