"""Power cuts: whatever was acknowledged is there afterwards, and nothing is half-written.

A program works on a store, and every change of its files is recorded (``shim.c``). Then the store
is built as a disk may have it after a cut at any change (``disk``), and opened.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from psvit_core.storage import keys
from psvit_core.storage.leftovers import tidy
from psvit_core.storage.predictions import Outcome, add_outcome, add_outcomes, load_outcome
from psvit_core.storage.store import Store, digest
from tests.faults.disk import WAYS, Change, Disk, read_changes
from tests.faults.shim import CAN_WATCH, run_watched

pytestmark = pytest.mark.skipif(not CAN_WATCH, reason="no C compiler")

SEED = 0
LONG = [round(x, 6) for x in np.random.RandomState(SEED).rand(20_000).tolist()]  # in a file
_PROGRAM = """
import os, sys
from pathlib import Path
from psvit_core.storage.store import Store
from tests.faults.test_power_cuts import STEPS, do
base = Path(sys.argv[1])
store = Store(base / "cache")
said = os.open(base / "said", os.O_CREAT | os.O_WRONLY)
os.fsync(said)
for number, step in enumerate(STEPS):
    do(store, *step)
    os.write(said, b".")
"""


def outcome(start: int, n: int) -> Outcome:
    ids = np.array([f"image {i}" for i in range(start, start + n)])
    numbers = np.arange(start, start + n)
    return Outcome(ids, numbers % 10, numbers % 7, numbers / 8, numbers / 4)


CELLS = {digest(["cell", i]): outcome(0, 20 + i) for i in range(40)}
#: What the program does with the store, one after the other; each is acknowledged when it returns.
STEPS: list[tuple[str, str, Any]] = [
    ("put", "plan/a", {"n": 1}),
    ("put", "plan/long", LONG),
    ("later", "job/a", "running"),
    ("put", "job/b", "done"),
    ("put", "plan/a", {"n": 2}),
    ("delete", "job/b", None),
    ("put", "job/c", "queued"),
    ("put", "plan/long", LONG[1:]),
    ("outcome", digest("one"), [0, 10]),
    ("outcome", digest("one"), [5, 30]),
    ("outcomes", "", None),
    ("delete", "plan/long", None),
    ("put", "plan/last", LONG[:9_000]),
    ("outcome", digest("two"), [0, 300]),
]


def do(store: Store, what: str, key: str, value: Any) -> None:
    if what == "put":
        store.put(key, value)
    elif what == "later":
        store.put(key, value, durable=False)
    elif what == "delete":
        store.delete(key)
    elif what == "outcome":
        add_outcome(store, key, outcome(*value))
    else:
        add_outcomes(store, CELLS)


State = dict[str, Any]


def state_after(n_steps: int) -> State:
    """Return what is stored after the first steps: rows by key, and image ids by key."""
    state: State = {}
    for what, key, value in STEPS[:n_steps]:
        if what in ("put", "later"):
            state[key] = value
        elif what == "delete":
            del state[key]
        elif what == "outcome":
            first, n = value
            ids = dict.fromkeys([*state.get(key, []), *(f"image {first + i}" for i in range(n))])
            state[key] = list(ids)
        else:
            state |= {key: cell.ids.tolist() for key, cell in CELLS.items()}
    return state


def stored(store: Store, keys: set[str]) -> State:
    """Return what is stored; a result must be the one of its image."""
    found: State = {key: store.get(key) for key in store.keys("")}
    for key in sorted(key for key in keys if "/" not in key):
        result = load_outcome(store, key)
        if result is not None:
            numbers = np.array([int(name.split()[1]) for name in result.ids.tolist()])
            assert result.predictions.tolist() == (numbers % 7).tolist()
            assert result.sops.tolist() == (numbers / 4).tolist()
            found[key] = result.ids.tolist()
    return found


@pytest.fixture(autouse=True)
def machine_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "boot", lambda: "after the power cut")


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Change]]:
    base = tmp_path_factory.mktemp("power") / "base"
    base.mkdir()
    log = base.parent / "log"
    run_watched(_PROGRAM, base, str(base), log=log)
    return base, read_changes(log)


def n_said(changes: list[Change]) -> int:
    return sum(len(c.data) for c in changes if c.kind == "write" and c.path.endswith("/said"))


def check(folder: Path, done: int) -> None:
    """Check a store of which ``done`` steps were acknowledged before the cut."""
    before, after = state_after(done), state_after(min(done + 1, len(STEPS)))
    store = Store(folder / "cache")
    found = stored(store, {*before, *after})
    for key in {*before, *after}:
        allowed = [state.get(key) for state in (before, after)]
        if key == "job/a" and done < 4:  # it may be lost until the next step that may not
            allowed.append(None)
        assert found.get(key) in allowed, (key, done)
    assert {*found} <= {*before, *after}
    tidy(store)
    store.put("new", 1)
    store.close()
    again = Store(folder / "cache")
    assert again.get("new") == 1 and "new" in again.changes("")
    again.close()
    left = [p.name for p in folder.rglob("*") if "damaged" in p.name or p.suffix == ".part"]
    assert not left


def cuts_of(changes: list[Change], number: int) -> list[int]:
    """Return cuts spread over all changes, at seeded places."""
    random = Random(SEED)
    edges = np.linspace(1, len(changes), number + 1).astype(int).tolist()
    return [random.randint(a, max(a, b - 1)) for a, b in pairwise(edges)]


def replay(base: Path, changes: list[Change], cuts: list[int], ways: list[str], to: Path) -> None:
    """Check the store after a cut at each of these numbers of changes."""
    disk, at, random = Disk(base), 0, Random(SEED)
    for number, (cut, way) in enumerate(zip(cuts, ways, strict=True)):
        for change in changes[at:cut]:
            disk.apply(change)
        at = cut
        folder = disk.after_power_cut(way, to / str(number), random)
        try:
            check(folder, n_said(changes[:cut]))
        except Exception as error:
            raise AssertionError(f"cut after change {cut}, {way}: {changes[cut - 1]}") from error


def test_a_store_after_a_power_cut(changes: tuple[Path, list[Change]], tmp_path: Path) -> None:
    base, found = changes
    assert n_said(found) == len(STEPS)
    cuts = cuts_of(found, 9)
    replay(base, found, cuts, [WAYS[i % 3] for i in range(len(cuts))], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_store_after_many_power_cuts(
    changes: tuple[Path, list[Change]],
    tmp_path: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the checks themselves need no syncs
    base, found = changes
    cuts = cuts_of(found, 100)
    replay(base, found, cuts, [way] * len(cuts), tmp_path)


def test_the_record_is_of_all_that_was_written(
    changes: tuple[Path, list[Change]], tmp_path: Path
) -> None:
    """Without a cut, the files that the program left are the ones of the record."""
    base, found = changes
    disk = Disk(base)
    for change in found:
        disk.apply(change)
    for path, file in disk._now.items():
        if file is not None and not path.endswith("-shm"):
            assert bytes(file.content) == Path(path).read_bytes(), path
    files = {str(p) for p in base.rglob("*") if p.is_file() and not p.name.endswith("-shm")}
    assert {path for path, file in disk._now.items() if file is not None} == files
