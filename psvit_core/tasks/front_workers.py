"""Plans of a front measured on a Ray cluster, one by one.

A worker chooses and measures a plan as this process would (``pareto.measure_cell``), in a store of
its own, and returns what it stored. This process adds that to its store and goes through the same
steps, for which nothing is left to measure. So points, order and numbers are those of a local run.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from psvit_core.callbacks import Tick, ignore_progress, keep_going
from psvit_core.cluster.actors import taken
from psvit_core.cluster.images import in_memory
from psvit_core.cluster.pool import Pool, check_losses, streaming
from psvit_core.cluster.runtime import Connection, current_node, worker_folder
from psvit_core.data import EvalSet
from psvit_core.errors import TargetError
from psvit_core.records import ParetoSettings, PlanSettings, SensitivityTable, Subject
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session, loaded_session

if TYPE_CHECKING:
    from psvit_core.zoo.base import SpikingModel

#: Beginnings of the keys that hold measurements; the rest is made again from them.
_PREFIXES = ("measurement/", "recovered/", "precision/")

Rows = dict[str, Any]  # JSON values by key
MeasureCell = Callable[..., None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """What every worker gets, once a node, through the object store."""

    subject: Subject
    model: SpikingModel
    data: EvalSet
    calib: dict[tuple[int, int], EvalSet]
    settings: ParetoSettings
    table: SensitivityTable
    known: Rows  # measurements that the driver has
    measure: MeasureCell


class FrontWorker:
    """Measures plans of one front; runs as a Ray actor, with a store for as long as it lives."""

    def load(self, engine_version: int, shared: Sequence[Any]) -> str:
        """Take model, images and table from the object store, as ``taken``; return the node."""
        share: Share = taken(engine_version, shared)
        self._running = ExitStack()
        self._store = Store(self._running.enter_context(worker_folder()) / "store")
        for key, value in share.known.items():
            self._store.put(key, value, durable=False)
        self._given = set(share.known)
        self._session = loaded_session(
            share.subject, self._store, share.model, share.data, share.calib
        )
        self._measure = partial(share.measure, self._session, share.settings, share.table)
        return current_node()

    def measure(self, cell: PlanSettings) -> Iterator[Rows]:
        """Measure one plan and its recoveries; yield the new rows of the store."""
        with suppress(TargetError):  # the driver finds the same, and says so
            self._measure(cell, ignore_progress, keep_going)
        new = [key for key in measured_keys(self._store) if key not in self._given]
        self._given.update(new)
        yield {key: self._store.get(key) for key in new}


def measured_keys(store: Store) -> list[str]:
    """Return the keys of all measurements in a store."""
    return [key for prefix in _PREFIXES for key in store.keys(prefix)]


def measured_on_cluster(
    session: Session,
    settings: ParetoSettings,
    table: SensitivityTable,
    cells: Sequence[PlanSettings],
    measure: MeasureCell,
    tick: Tick,
) -> Iterator[PlanSettings]:
    """Measure the plans of a front on the session's cluster, each as soon as a worker is idle.

    Args:
        session: The model and its images.
        settings: The front's settings.
        table: The sweep.
        cells: Its plans.
        measure: Measures one of them; a module-level function, as workers import it.
        tick: Called several times a second; may raise to stop.

    Yields:
        Each plan, in order, once its measurements are in the session's store.

    Raises:
        MissingPackageError: If ray is not installed.
        ClusterError: If the cluster cannot be used.
    """
    share = _share(session, settings, table, measure)
    with closing(Connection(session.engine)) as connection:
        pool: Pool[int] = Pool(connection, FrontWorker, session.run.device, share, most=len(cells))
        with closing(pool):
            yield from _done(pool, cells, session.store, tick)


def _share(
    session: Session, settings: ParetoSettings, table: SensitivityTable, measure: MeasureCell
) -> Share:
    wanted = [session.recovery, *settings.recovery_settings()]
    workers = session.run.workers
    calib = {
        (r.n_images, r.seed): in_memory(session.calib(r.n_images, r.seed), workers)
        for r in wanted
        if r.method != "none"
    }
    hashed, store = session.description.weights_hash, session.store
    return Share(
        subject=session.subject,
        model=session.model,
        data=in_memory(session.data, workers),
        calib=calib,
        settings=dataclasses.replace(settings, profile=False),  # times are those of this machine
        table=table,
        known=_known(store, hashed),
        measure=measure,
    )


def _known(store: Store, weights_hash: str) -> Rows:
    """Return the measurements of a model that a store has."""
    found = {}
    for key in measured_keys(store):
        row = store.get(key)
        measured = row.get("measurement", row) if isinstance(row, Mapping) else {}
        if measured.get("weights_hash") == weights_hash:
            found[key] = row
    return found


def _done(
    pool: Pool[int], cells: Sequence[PlanSettings], store: Store, tick: Tick
) -> Iterator[PlanSettings]:
    waiting, losses = deque(range(len(cells))), [0] * len(cells)
    finished: set[int] = set()
    upcoming = 0  # in the order of a local run, so that archives are equal
    while upcoming < len(cells):
        tick()
        while waiting and pool.n_idle:
            number = waiting.popleft()
            pool.run(number, partial(_start, cells[number]))
        for event in pool.events():
            if event.is_result:
                for key, value in event.result.items():
                    store.put(key, value)
            elif event.is_lost:
                losses[event.job] += event.node_lived
                check_losses(losses[event.job], f"plan {event.job + 1}")
                waiting.appendleft(event.job)
            else:
                finished.add(event.job)
        while upcoming in finished:
            yield cells[upcoming]
            upcoming += 1


def _start(cell: PlanSettings, worker: Any) -> Any:
    return streaming(worker.measure)(cell)
