"""Processes that serve the app on a store: idle workers end when there is none."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from psvit_core.errors import PsvitError
from psvit_core.jobs import client, workers
from psvit_core.storage.leftovers import tidy
from psvit_core.storage.processes import is_same_process, process_started
from psvit_core.storage.store import Store

log = logging.getLogger(__name__)
_SERVER_PREFIX = "server/"
_LOOK_SECONDS = 5.0  # between two looks for jobs that wait without a worker


def register_server(store: Store) -> None:
    """Note that this process serves the app; idle workers end when no such process lives."""
    for key in list(store.keys(_SERVER_PREFIX)):
        if not _server_lives(store, key):
            store.delete(key, durable=False)
    store.put(_server_key(), process_started(os.getpid()), durable=False)


def unregister_server(store: Store) -> None:
    """Note that this process serves the app no more."""
    with store.optional():
        store.delete(_server_key(), durable=False)


def server_lives(store: Store) -> bool:
    """Return whether a process serves the app on this store."""
    return any(_server_lives(store, key) for key in list(store.keys(_SERVER_PREFIX)))


def _server_lives(store: Store, key: str) -> bool:
    return is_same_process(int(key.removeprefix(_SERVER_PREFIX)), store.get(key))


def _server_key() -> str:
    return f"{_SERVER_PREFIX}{os.getpid()}"


@contextmanager
def jobs_have_workers(
    store: Store, seconds: float = _LOOK_SECONDS, *, serves: bool = False
) -> Iterator[None]:
    """Start workers for waiting jobs that have none during the block; forget those that ended.

    A worker may be killed while others of its jobs wait.

    Args:
        store: The store of the jobs.
        seconds: Between two looks; the first one is at once.
        serves: Whether to note that this process serves the app (``register_server``); on a full
            disk, as soon as there is space.
    """
    ended = threading.Event()

    def look() -> None:
        said = ""
        while True:
            workers.reap()
            try:
                if serves and not _server_lives(store, _server_key()):
                    register_server(store)
                    tidy(store)
                client.reconcile(store)
            except PsvitError as error:  # a full disk or no memory, for example
                if str(error) != said:
                    said = str(error)
                    log.warning("cannot look for waiting jobs: %s", error)
            if ended.wait(seconds):
                return

    thread = threading.Thread(target=look, name="jobs-have-workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
