"""Archives in the store: one entry per plan, origin and profile."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

from psvit_core.errors import RecordError, StoreError
from psvit_core.pareto.archive import PREFIX, ParetoArchive
from psvit_core.pareto.points import ParetoPoint, PlanOrigin
from psvit_core.records import Conditions, Measurement
from psvit_core.storage.store import Store, digest

log = logging.getLogger(__name__)

HEAD_PREFIX = "pareto-head/"  # of the keys of archives without points
QUANTIZED_PREFIX = "quantized/"  # of the keys of measured networks with quantized weights

Warn = Callable[[str], None]


def empty_archive(
    model: str, weights_hash: str, conditions: Conditions, *, batch_coupled: bool = False
) -> ParetoArchive:
    """Return the archive of a model under these conditions, without points.

    Args:
        model: Name of the model.
        weights_hash: Hash of the unpruned model's weights.
        conditions: Conditions of its measurements.
        batch_coupled: True if an image's results depend on its batch; each batch size then has its
            own archive.
    """
    c = conditions
    return ParetoArchive(
        model=model,
        weights_hash=weights_hash,
        data=c.data,
        split=c.split,
        transform=c.transform,
        T=c.T,
        precision=c.precision,
        n_images=c.n_images,
        batch=c.batch if batch_coupled else None,
        images=c.images,
        counting=c.counting,
    )


def add_point(
    store: Store,
    measured: Measurement,
    made: PlanOrigin,
    *,
    batch_coupled: bool = False,
    weights_hash: str | None = None,
) -> ParetoPoint:
    """Store a measured plan in its archive; an equal entry is replaced.

    Args:
        store: The store.
        measured: The measurement, with its plan.
        made: How the plan was made.
        batch_coupled: As for ``empty_archive``.
        weights_hash: Hash of the unpruned model's weights if ``measured`` is of a recovered or
            fine-tuned model.
    """
    point = ParetoPoint(measurement=measured, made=(made,))
    archive = empty_archive(
        measured.model,
        weights_hash or measured.weights_hash,
        measured.conditions,
        batch_coupled=batch_coupled,
    )
    # Entries are never changed after they are written, so readers and writers need no lock.
    origin = made.to_dict()
    if not origin["savings"]:  # older entries have no such field, and keep their keys
        del origin["savings"]
    entry = digest([point.point_id, origin, measured.profile is not None])
    store.put(f"{archive.key}/{entry}", point.to_dict())
    store.put(HEAD_PREFIX + archive.key.removeprefix(PREFIX), archive.to_dict())
    return point


def add_quantized(
    store: Store, measured: Measurement, made: PlanOrigin, *, batch_coupled: bool = False
) -> None:
    """Store a measured network with quantized weights; the same one is replaced.

    It is no point of the archive, whose bytes are float32, but has the archive's conditions.

    Args:
        store: The store.
        measured: The measurement, with the plan from the unpruned network.
        made: How the plan was made, and what followed it.
        batch_coupled: As for ``empty_archive``.

    Raises:
        RecordError: If it has no plan, or was not compared with the unpruned network.
    """
    plan, point = measured.plan, ParetoPoint(measurement=measured, made=(made,))
    if plan is None or measured.drop is None:
        raise RecordError("A quantized network is stored with its plan and drop; one is missing.")
    archive = empty_archive(
        plan.model, plan.weights_hash, measured.conditions, batch_coupled=batch_coupled
    )
    key = digest([archive.key, point.point_id, made.to_dict()])
    entry = dataclasses.replace(archive, points=(point,))
    store.put(f"{QUANTIZED_PREFIX}{key}", entry.to_dict())


def list_quantized(store: Store, weights_hash: str) -> list[ParetoArchive]:
    """Return the quantized networks made of a model, each as an archive with one point.

    Args:
        store: The store.
        weights_hash: Hash of the unpruned model's weights.
    """
    found = store.read(QUANTIZED_PREFIX, _read_quantized).values()
    return [entry for entry in found if entry is not None and entry.weights_hash == weights_hash]


def _read_quantized(key: str, data: object) -> ParetoArchive | None:
    try:
        entry = ParetoArchive.from_dict(data)
    except RecordError as error:
        log.warning("skipped %s, which another version wrote: %s", key, error)
        return None
    if len(entry.points) == 1:
        m = entry.points[0].measurement
        if entry.points[0].made and m.plan is not None and m.drop is not None:
            return entry
    log.warning("skipped %s: it is not one measured plan with its drop", key)
    return None


def read_archive(store: Store, empty: ParetoArchive, warn: Warn = log.warning) -> ParetoArchive:
    """Return an archive with all stored points; equal plans become one point with all origins.

    Args:
        store: The store.
        empty: The archive without points (``empty_archive``).
        warn: Called with a message for every damaged entry, which is skipped.
    """
    points: dict[str, ParetoPoint] = {}
    for point in _stored_points(store, empty.key, warn):
        known = points.get(point.point_id)
        points[point.point_id] = _merge(known, point) if known else point
    order = sorted(points.values(), key=lambda p: (p.measurement.size.bytes, p.point_id))
    return dataclasses.replace(empty, points=tuple(order))


def find_archives(store: Store, weights_hash: str, warn: Warn = log.warning) -> list[ParetoArchive]:
    """Return the archives of a model without points: most images first, then newest first.

    Args:
        store: The store.
        weights_hash: Hash of the unpruned model's weights.
        warn: Called with a message for every damaged entry, which is skipped.
    """
    found = []
    changes = store.changes(HEAD_PREFIX)
    for key in sorted(changes, key=lambda key: changes[key], reverse=True):
        try:
            head = ParetoArchive.from_dict(store.get(key))
        except (RecordError, StoreError, ValueError) as error:
            warn(f"Entry {key} in {store.folder} is damaged ({error}). Delete it.")
            continue
        if head.weights_hash == weights_hash:
            found.append(head)
    return sorted(found, key=lambda head: -head.n_images)


def _merge(one: ParetoPoint, other: ParetoPoint) -> ParetoPoint:
    """Join two entries of one plan: all origins, chosen ones first, and the fuller measurement."""
    origins = {digest(origin.to_dict()): origin for origin in (*one.made, *other.made)}
    made = sorted(origins.values(), key=lambda o: (o.tried, o.policy, o.target, o.scope, o.seed))

    def completeness(point: ParetoPoint) -> tuple[bool, bool, bool]:
        m, profile = point.measurement, point.measurement.profile
        return m.drop is not None, bool(profile and profile.latency_ms), profile is not None

    best = one if completeness(one) >= completeness(other) else other
    return ParetoPoint(measurement=best.measurement, made=tuple(made))


def _stored_points(store: Store, key: str, warn: Warn) -> Iterator[ParetoPoint]:
    """Yield the points of an archive; all readers of a store share them."""
    known = store.read(f"{key}/", _parse_point)
    for entry in sorted(store.keys(f"{key}/")):
        try:
            point = known[entry] if entry in known else _parse_point(entry, store.get(entry))
            if isinstance(point, str):
                raise RecordError(point)
        except (RecordError, StoreError) as error:
            warn(
                f"Entry {entry} in {store.folder} is damaged ({error}) and is skipped. Measure its "
                "plan again, or delete the entry."
            )
        else:
            yield point


def _parse_point(entry: str, data: Any) -> ParetoPoint | str:
    """Return the point of a row, or what is wrong with it."""
    try:
        point = ParetoPoint.from_dict(data)
    except (RecordError, ValueError) as error:
        return str(error)
    m = point.measurement
    if m.plan is None or not point.made:
        return "it has no plan or no origin"
    if point.recovery != m.conditions.recovery:  # of an older version
        conditions = dataclasses.replace(m.conditions, recovery=point.recovery)
        return dataclasses.replace(point, measurement=dataclasses.replace(m, conditions=conditions))
    return point
