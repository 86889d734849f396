"""The command ``cache``: what the store holds, whether it is whole, and freeing its space."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from psvit_core.errors import JobError, StoreError
from psvit_core.jobs import client
from psvit_core.storage.bound import LIMIT_ENV, over_text, size_limit
from psvit_core.storage.inventory import PARTS, clear_results, find_faults, list_parts
from psvit_core.storage.store import Store, running_work

Result = dict[str, Any]


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument(
        "action",
        choices=("info", "verify", "clear"),
        metavar="ACTION",
        help="info: sizes; verify: read everything; clear: remove results that can be computed "
        "again, never plans, checkpoints, uploads, jobs and measured fronts",
    )
    command.add_argument(
        "--damaged", action="store_true", help="clear only results that cannot be read"
    )
    command.add_argument(
        "--trainings",
        action="store_true",
        help="clear the states of stopped trainings, too, which then begin anew",
    )


def cache(options: argparse.Namespace) -> tuple[Result, str]:
    """Describe, check or clear the store."""
    store = Store()
    actions = {"info": _info, "verify": _verify, "clear": _clear}
    result, text = actions[options.action](store, options)
    return {"folder": str(store.folder), **result}, text


def _info(store: Store, options: argparse.Namespace) -> tuple[Result, str]:
    parts = list_parts(store)
    total = sum(part.n_bytes for part in parts)
    lines = [f"{store.folder}: {total / 1e6:,.1f} MB"]
    lines += [
        f"{part.name:9} {part.n_bytes / 1e6:12,.1f} MB  {part.n_files:7,} files  "
        f"{PARTS.get(part.name, '')}".rstrip()
        for part in parts
    ]
    limit = size_limit()
    lines.append(_bound_line(limit))
    over = total - sum(part.n_bytes for part in parts if part.name == "arrays") - (limit or total)
    if over > 0:
        lines.append(over_text(store.folder, limit or 0, over))
    found = {"parts": [dataclasses.asdict(part) for part in parts], "limit_bytes": limit}
    return found, "\n".join(lines)


def _bound_line(limit: int | None) -> str:
    if limit is None:
        return f"bound     none ({LIMIT_ENV})"
    return (
        f"bound     {limit / 1e6:12,.1f} MB  ({LIMIT_ENV}); beyond it, results by image that were "
        "not used for the longest time are removed"
    )


def _verify(store: Store, options: argparse.Namespace) -> tuple[Result, str]:
    faults = [{"place": place, "fault": fault} for place, fault in find_faults(store)]
    if not faults:
        return {"faults": []}, f"{store.folder}: everything can be read"
    count = f"{len(faults)} part{'s' if len(faults) > 1 else ''} cannot be read"
    return {"faults": faults}, "\n".join([count, *(fault["fault"] for fault in faults)])


def _can_write(store: Store) -> bool:
    """Return whether jobs can write results: on a full disk, nobody can even cancel them."""
    try:
        store.check_writable()
    except StoreError as error:
        if not error.unwritable:
            raise
        return False
    return True


def _clear(store: Store, options: argparse.Namespace) -> tuple[Result, str]:
    active = [job for job in client.list_jobs(store) if job.active]
    if active and _can_write(store):
        raise JobError(
            f"Jobs still wait or run, such as {active[0].id} ({len(active)} in all). Wait for them "
            "or cancel them with psvit jobs cancel ID, then clear the store."
        )
    if running := running_work(store):
        raise JobError(
            f"A command works with the store (process {running[0][0]}). Wait until it ends, or end "
            "it, then clear the store."
        )
    n_files, n_bytes = clear_results(
        store, damaged_only=options.damaged, trainings=options.trainings
    )
    text = f"{store.folder}: removed {n_files:,} files, {n_bytes / 1e6:,.1f} MB"
    return {"files": n_files, "bytes": n_bytes}, text
