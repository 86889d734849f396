"""Requests to prepare for a model before its first job; no torch."""

from __future__ import annotations

from psvit_core.errors import RecordError
from psvit_core.records import Subject
from psvit_core.storage.store import Store

_PREFIX = "warm-up/"  # of the keys, one per device


def request_warm_up(store: Store, subject: Subject, device: str = "cpu") -> None:
    """Ask a device's worker to load and compile for a subject while no job waits.

    A newer request replaces one that the worker has not taken yet. Without a worker, the next one
    takes it.
    """
    with store.optional():
        store.put(_PREFIX + device, subject.to_dict(), durable=False)


def take_warm_up(store: Store, device: str) -> Subject | None:
    """Return the subject to warm up for, and delete the request; None without one.

    None also if it cannot be deleted: it would be taken again and again.
    """
    data = store.get(_PREFIX + device)
    if data is None:
        return None
    taken = False
    with store.optional():
        store.delete(_PREFIX + device, durable=False)
        taken = True
    if not taken:
        return None
    try:
        return Subject.from_dict(data)
    except RecordError:  # of another version
        return None
