"""The workers of a cluster as one pool: idle ones, lost ones, new ones, and what they return."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from psvit_core.cluster.runtime import Connection, first_line
from psvit_core.errors import ClusterError, PsvitError
from psvit_core.storage.store import ENGINE_VERSION

log = logging.getLogger(__name__)

Job = TypeVar("Job")

_WAIT_SECONDS = 0.2  # between two looks at the driver's tick
_NO_WORKER_SECONDS = 120  # a node may take long to load torch and a model
_MOST_LOSSES = 3  # of workers by one job
_MOST_FAILED_STARTS = 3  # in a row, before anything has run


_open_pools: list[Any] = []  # of this process


def in_use() -> bool:
    """Return whether this process has workers now; they may occupy the whole cluster."""
    return bool(_open_pools)


@dataclass(frozen=True)
class Event(Generic[Job]):
    """What became of a job: one of its results, its end, or the loss of its worker.

    Attributes:
        job: The job.
        result: The result, if it is one.
        is_result: Whether it is.
        is_lost: Whether the worker ended, so that the job has to be done again.
        node_lived: Whether its node is still there: the job itself may have ended the worker.
    """

    job: Job
    result: Any = None
    is_result: bool = False
    is_lost: bool = False
    node_lived: bool = False


@dataclass
class Pool(Generic[Job]):
    """Workers of one kind, one job each; a lost worker is replaced, and its job reported.

    Args:
        connection: The cluster.
        kind: Class of the workers.
        device: Their device.
        share: What each takes once: it goes into the object store.
        most: Workers at most: there are no more jobs.
    """

    connection: Connection
    kind: type
    device: str
    share: Any
    most: int | None = None
    _starting: dict[Any, Any] = field(default_factory=dict)  # reference -> worker
    _idle: list[Any] = field(default_factory=list)
    _running: dict[Any, tuple[Any, Job]] = field(default_factory=dict)  # results -> worker, job
    _nodes: dict[Any, str] = field(default_factory=dict)  # worker -> its node
    _failed_starts: int = 0

    def __post_init__(self) -> None:
        n_workers = self.connection.n_workers(self.device)
        self.size = min(n_workers, self.most or n_workers)
        self._seen = time.monotonic()
        self._shared = [self.connection.ray.put(self.share)]
        _open_pools.append(self._shared)
        for _ in range(self.size):
            self._start()

    def _start(self) -> None:
        worker = self.connection.start(self.kind, self.device)
        self._starting[worker.load.remote(ENGINE_VERSION, self._shared)] = worker

    @property
    def n_idle(self) -> int:
        """Workers that could take a job now."""
        return len(self._idle)

    @property
    def is_busy(self) -> bool:
        """Whether a job runs."""
        return bool(self._running)

    def run(self, job: Job, start: Callable[[Any], Any]) -> None:
        """Give a job to an idle worker; ``start`` calls the worker's streaming method."""
        worker = self._idle.pop()
        self._running[start(worker)] = (worker, job)

    def events(self) -> Iterator[Event[Job]]:
        """Wait a little while for workers, and yield what they have for us.

        Raises:
            ClusterError: If no worker has been there for long, or none can start.
            PsvitError: If a worker reports it.
        """
        waiting, ready = [*self._running, *self._starting], []
        if waiting:
            wait = self.connection.ray.wait
            wait(waiting, num_returns=1, timeout=_WAIT_SECONDS)
            ready, _ = wait(waiting, num_returns=len(waiting), timeout=0)  # of all, in turn
        if self._running or self._idle:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _NO_WORKER_SECONDS:
            raise ClusterError(
                f"No worker of the Ray cluster has been ready for {_NO_WORKER_SECONDS} seconds. "
                "Are its nodes up and free (ray status)? What is finished is stored: start again "
                "to go on."
            )
        for reference in ready:
            if reference in self._starting:
                self._started(reference)
            else:
                yield self._event(reference)

    def _started(self, reference: Any) -> None:
        worker = self._starting.pop(reference)
        try:
            self._nodes[worker] = self._got(reference)
        except _LostError as lost:
            self._failed_starts += 1
            if self._failed_starts > max(_MOST_FAILED_STARTS, self.size):
                raise ClusterError(
                    f"Workers of the Ray cluster end before they are ready ({lost}). Is the same "
                    "version of psvit-explorer installed on every node, with memory for the model?"
                ) from lost
            self._start()
        else:
            self._failed_starts = 0
            self._idle.append(worker)

    def _event(self, reference: Any) -> Event[Job]:
        worker, job = self._running[reference]
        try:
            result = self._got(next(reference))
        except StopIteration:
            del self._running[reference]
            self._idle.append(worker)
            return Event(job)
        except _LostError:
            del self._running[reference]
            self._replace(worker)
            alive = self.connection.nodes()
            for idle in [w for w in self._idle if self._nodes[w] not in alive]:
                self._idle.remove(idle)
                self._replace(idle)
            return Event(job, is_lost=True, node_lived=self._nodes[worker] in alive)
        return Event(job, result, is_result=True)

    def _replace(self, worker: Any) -> None:
        self.connection.ray.kill(worker)  # if only its last result is lost
        self._start()

    def _got(self, reference: Any) -> Any:
        exceptions = self.connection.ray.exceptions
        try:
            return self.connection.ray.get(reference)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, PsvitError):
                raise error.cause from error
            log.error("%s", error)
            raise ClusterError(
                f"A worker of the Ray cluster failed ({first_line(error.cause or error)}). Is the "
                "same version of psvit-explorer installed on every node? --engine local runs the "
                "work here."
            ) from error
        except exceptions.RayError as error:
            raise _LostError(first_line(error)) from error

    def close(self) -> None:
        """End all workers."""
        _open_pools[:] = [shared for shared in _open_pools if shared is not self._shared]
        running = [worker for worker, _ in self._running.values()]
        for worker in [*self._starting.values(), *self._idle, *running]:
            self.connection.ray.kill(worker)
        self._starting.clear()
        self._idle.clear()
        self._running.clear()


class _LostError(Exception):
    """A worker that ended."""


def streaming(method: Any) -> Any:
    """Return what calls a worker's method, whose results arrive one by one."""
    return method.options(num_returns="streaming").remote


def check_losses(n_lost: int, what: str) -> None:
    """Raise ``ClusterError`` if too many workers ended while they did the same job, ``what``."""
    if n_lost > _MOST_LOSSES:
        raise ClusterError(
            f"{n_lost} workers ended one after the other while they worked on {what}. Have the "
            "nodes enough memory? Use a smaller --batch, or --engine local."
        )
