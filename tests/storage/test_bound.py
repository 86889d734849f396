"""The bound on a store's size: which results go first, what stays, and what runs beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psvit_core.cli import main
from psvit_core.errors import PsvitError
from psvit_core.jobs import client
from psvit_core.sensitivity.buffer import ResultBuffer
from psvit_core.storage import bound
from psvit_core.storage.bound import LIMIT_ENV, evict, size_limit
from psvit_core.storage.predictions import Outcome, load_outcome
from psvit_core.storage.store import Store, digest
from tests.made import make_job
from tests.patience import JOB

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "GRACE_SECONDS", 0.0)


BIG = {"x": np.zeros(125_000)}  # 1 MB, and a head


def aged(store: Store, name: str, days: float) -> Path:
    """Put 1 MB that was last used some days ago; return the file."""
    store.put_arrays(digest(name), BIG)
    path = store._array_path(digest(name))
    when = time.time() - 86_400 * days
    os.utime(path, (when, when))
    return path


def bounded(folder: Path, limit: str, patch: pytest.MonkeyPatch) -> Store:
    patch.setenv(LIMIT_ENV, limit)
    return Store(folder)


def test_the_bound_is_20_gigabytes_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT_ENV, raising=False)
    assert size_limit() == 20_000_000_000
    for text, size in (("2", 2e9), ("1.5gb", 1.5e9), ("500 MB", 5e8), ("9kB", 9e3), ("none", None)):
        monkeypatch.setenv(LIMIT_ENV, text)
        assert size_limit() == size
    for text in ("much", "-1", "5 XB", "1e9", "0x10", "9" * 100 + "x"):
        monkeypatch.setenv(LIMIT_ENV, text)
        with pytest.raises(PsvitError, match=r"which is no size\. Give gigabytes"):
            size_limit()


def test_the_least_recently_used_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Store(tmp_path)
    files = {name: aged(first, name, days) for name, days in (("a", 3), ("b", 9), ("c", 6))}
    first.put("plan/mine", {"n": 1})
    client.save(first, make_job(state="done"))
    kept = {"exports": b"1" * 9000, "uploads": b"2" * 9000, "finetune": b"3" * 9000}
    for folder, content in kept.items():
        first.place(folder, "x", "model.npz").write_bytes(content)
    assert first.get_arrays(digest("b")) is not None  # used now, though it is the oldest
    used = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    store = bounded(tmp_path, f"{used / 1000}kB", monkeypatch)
    store.put_arrays(digest("new"), BIG)  # 1 MB too many, and a tenth of all
    left = {name for name, path in files.items() if path.exists()}
    assert left in ({"a", "b"}, {"b"})  # c is the one that was not used for the longest time
    assert store.get_arrays(digest("new")) is not None
    assert store.get("plan/mine") == {"n": 1} and len(client.list_jobs(store)) == 1
    for folder, content in kept.items():
        assert (tmp_path / folder / "x" / "model.npz").read_bytes() == content
    assert evict(tmp_path, 10**9, time.time()).n_files == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 30)), max_size=12), st.integers(0, 900)
)
def test_what_eviction_leaves(made: list[tuple[int, int]], limit: int) -> None:
    """No file goes that is in use or newer than one that stays, and none needlessly."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "index").mkdir()
        (folder / "index" / "cache.db").write_bytes(bytes(100))
        used = {}
        for number, (size, when) in enumerate(made):
            path = folder / "arrays" / "ab" / f"{number}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size))
            os.utime(path, (when, when))
            used[path] = (when, size)
        since = 20
        done = evict(folder, limit, since)
        gone = {path for path in used if not path.exists()}
        left = used.keys() - gone
        total = 100 + sum(used[path][1] for path in left)
        assert (done.n_files, done.n_bytes) == (len(gone), sum(used[path][1] for path in gone))
        assert done.over == max(0, total - limit)
        assert all(used[path][0] < since for path in gone)
        assert all(used[one][0] <= used[other][0] for one in gone for other in left)
        old = [path for path in left if used[path][0] < since]
        assert total <= 0.9 * limit or not old or (not gone and total <= limit)
        if gone:  # all but the last that went were needed
            assert total + max(used[path][1] for path in gone) > 0.9 * limit
        assert (folder / "index" / "cache.db").stat().st_size == 100


def test_running_work_keeps_what_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = aged(Store(tmp_path), "old", 5)
    store = bounded(tmp_path, "1kB", monkeypatch)
    worker = Store(tmp_path)
    with worker.using():
        worker.put_arrays(digest("mine"), BIG)
        assert worker.get_arrays(digest("mine")) is not None and not old.exists()
        for number in range(5):
            store.put_arrays(digest(number), BIG)  # another process writes much more
        assert worker.get_arrays(digest("mine")) is not None
    monkeypatch.setattr(bound, "GRACE_SECONDS", 60.0)
    store.put_arrays(digest("last"), BIG)  # what was just written stays in any case
    assert all(store.get_arrays(digest(name)) is not None for name in ("mine", "last"))
    for name in ("mine", "last"):
        aged(Store(tmp_path), name, 1)
    store.put_arrays(digest("new"), BIG)
    assert not any(store._array_path(digest(name)).exists() for name in ("mine", "last"))


def test_ended_and_killed_work_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    with store.using():
        began = store.used_since()
        assert began < time.time() and [*store.keys("using/")]
    assert not [*store.keys("using/")] and store.used_since() > began
    store.put(f"using/{os.getpid()}/0", [1.0, 5.0])  # of a process that had the same number
    assert store.used_since() > began and not [*store.keys("using/")]
    monkeypatch.setattr(bound, "GRACE_SECONDS", 3600.0)
    assert store.used_since() < began
    with store.using():
        [key] = store.keys("using/")
        store.put(key, [store.get(key)[0], time.time() + 3600])
        assert store.used_since() == 0.0  # the clock was set back: files' times say nothing


def test_kept_things_larger_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capsys: Any
) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    store = bounded(tmp_path, "200kB", monkeypatch)
    store.place("exports", "a", "model").write_bytes(bytes(900_000))
    for name in "abc":
        store.put_arrays(digest(name), BIG)
    assert caplog.text.count("larger than its bound of 0.2 MB") == 1
    assert "Raise PSVIT_CACHE_LIMIT, or remove files on the Jobs page" in caplog.text
    assert main(["cache", "info"]) == 0
    text = capsys.readouterr().out
    assert "bound " in text and "larger than its bound of 0.2 MB" in text
    assert main(["cache", "info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["limit_bytes"] == 200_000
    monkeypatch.setenv(LIMIT_ENV, "none")
    assert main(["cache", "info"]) == 0
    assert "bound     none" in capsys.readouterr().out
    monkeypatch.setenv(LIMIT_ENV, "lots")
    assert main(["cache", "info"]) == 2


WRITER = """
import sys
import numpy as np
from psvit_core.storage.predictions import Outcome, add_outcome, load_outcome
from psvit_core.storage.store import Store, digest
store = Store(sys.argv[1])
with store.using():
    for i in range(60):
        ids = np.array([f"{i}/{n}" for n in range(50)])
        add_outcome(store, digest("shared"), Outcome(ids, *(np.arange(50) for _ in range(4))))
        store.put(f"pareto/{sys.argv[2]}/{i}", {"n": i})
    found = load_outcome(store, digest("shared"))
print(len(found.ids))
"""


def test_eviction_beside_running_writers_loses_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes write, a third removes as much as it may all the time."""
    monkeypatch.setenv(LIMIT_ENV, "none")
    store = Store(tmp_path)
    monkeypatch.setenv(LIMIT_ENV, "1kB")
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    n_gone = 0
    while any(writer.poll() is None for writer in writers):
        aged(store, "old", 5)
        n_gone += evict(tmp_path, 1000, store.used_since()).n_files
    said = [int(writer.communicate(timeout=JOB)[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0] and n_gone
    assert said == [3000, 3000] and len([*store.keys("pareto/")]) == 120
    assert not [*store.keys("using/")]


def test_a_sweep_computes_again_what_was_removed(tmp_path: Path) -> None:
    """Results that were removed while a sweep runs are missing again, except unwritten ones."""
    store = Store(tmp_path)
    ids = tuple("abcd")

    class Spec:
        pass

    spec: Any = Spec()
    spec.ids = ids
    buffer = ResultBuffer(spec, store)

    def results(*names: str) -> Outcome:
        return Outcome(np.array(names), *(np.arange(len(names)) for _ in range(4)))

    buffer.add("ab" * 16, results("a", "b"))
    buffer.write()
    buffer.add("ab" * 16, results("c"))
    store._array_path("ab" * 16).unlink()
    assert buffer.missing("ab" * 16, np.arange(4)).tolist() == [0, 1, 3]
    buffer.add("ab" * 16, results("a", "b", "d"))
    buffer.write()
    found = load_outcome(store, "ab" * 16)
    assert found is not None and sorted(found.ids.tolist()) == sorted(ids)
