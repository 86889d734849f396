"""Faults of a store's files: full, damaged, cut, read-only, locked. Each is one ``StoreError``."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import diskcache
import numpy as np
import pytest

from psvit_core.cli import main
from psvit_core.errors import StoreError
from psvit_core.jobs import client
from psvit_core.kernels import native
from psvit_core.storage import aside, disk, faults, keys
from psvit_core.storage import store as store_module
from psvit_core.storage.aside import found_aside, mark_damaged
from psvit_core.storage.predictions import Outcome, add_outcome
from psvit_core.storage.store import Store, default_folder, digest
from tests.made import make_job
from tests.patience import JOB

ROOT = Path(__file__).resolve().parents[2]
KEY = digest("arrays")
NOBODY = 65_533  # an account without a passwd entry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / "cache")
    store.put("job/a", {"n": 1})
    store.put("job/large", np.random.RandomState(0).rand(20_000).tolist())  # in a file of its own
    store.put_arrays(KEY, {"x": np.arange(9)})
    store.close()
    return store.folder


def outcome() -> Outcome:
    return Outcome(*(np.arange(2) for _ in range(5)))


CALLS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("job/a"),
    "put": lambda store: store.put("job/b", 1),
    "put_new": lambda store: store.put_new("job/c", 1),
    "delete": lambda store: store.delete("job/a"),
    "keys": lambda store: list(store.keys("job/")),
    "changes": lambda store: store.changes("job/"),
    "read": lambda store: store.read("job/", lambda key, value: value),
    "get_arrays": lambda store: store.get_arrays(KEY),
    "put_arrays": lambda store: store.put_arrays(digest("new"), {"x": np.arange(3)}),
    "arrays_stamp": lambda store: store.arrays_stamp(KEY),
    "place": lambda store: store.place("new", "folder", "file"),
    "add_outcome": lambda store: add_outcome(store, digest("o"), outcome()),
}


def one_line(error: StoreError, folder: Path) -> str:
    text = str(error)
    assert str(folder) in text and "\n" not in text
    assert re.search(r"PSVIT_CACHE|Delete |wait for that program", text), text
    return text


# --- garbage and cut files


def garbage(path: Path) -> None:
    path.write_bytes(b"\0garbage" * 2000)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [garbage, cut, overwritten])
@pytest.mark.parametrize("name", ["keys.db", "index/cache.db"])
def test_damaged_databases(
    folder: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    for left in folder.rglob("*-wal"):
        left.unlink()
    damage(folder / name)
    for call in CALLS.values():
        try:
            store = Store(folder)
            call(store)
            store.close()
        except StoreError as error:  # damage in the middle is met late; the next start mends it
            text = one_line(error, folder)
            assert f"Delete {folder / 'index'} and {folder / 'keys.db'}" in text
    store = Store(folder)
    for call in CALLS.values():
        call(store)
    lost = name != "keys.db"  # which is made again from the index
    assert store.get("job/large") is None if lost else len(store.get("job/large")) == 20_000
    assert {path.name for path in folder.glob("*.damaged-*")}, "nothing was set aside"
    assert len(found_aside(folder)) == (1 if lost else 0)
    assert "was damaged. It is kept as" in caplog.text
    arrays = store.get_arrays(KEY)  # results in files are used again
    assert arrays is not None and arrays["x"].tolist() == [*range(9)]


def test_a_damaged_index_is_set_aside_once(folder: Path) -> None:
    """Processes that start together do not set aside each other's new index."""
    garbage(folder / "index" / "cache.db")
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store(folder), range(4)))
    stores[0].put("job/new", 1)
    assert [store.get("job/new") for store in stores] == [1] * 4
    assert len(found_aside(folder)) == 1


def test_nothing_whole_is_set_aside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark_damaged(folder)  # some process met something that went away
    monkeypatch.setattr(aside, "_looks_cut", lambda *_: True)  # a writer is about to extend it
    assert Store(folder).get("job/a") == {"n": 1}
    other = sqlite3.connect(folder / "index" / "cache.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0.1))
    aside.set_aside_damaged(folder, folder / "index", folder / "keys.db")
    other.execute("ROLLBACK")
    assert Store(folder).get("job/a") == {"n": 1}
    assert not list(folder.glob("*damaged*"))


def test_a_bad_row_is_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(folder)
    [value] = (folder / "index").rglob("*.val")
    garbage(value)
    for _ in range(2):
        assert store.read("job/", parse_row) == {"job/a": {"n": 1}}
    assert caplog.text.count("skipped a row") == 1
    store.put("job/large", 2)
    assert store.read("job/", parse_row) == {"job/a": {"n": 1}, "job/large": 2}


def parse_row(key: str, value: Any) -> Any:
    return value


def test_opening_a_store_again_keeps_the_locks_of_the_first(folder: Path) -> None:
    """POSIX takes all of a process's locks from a file when the process closes it once."""
    first = Store(folder)
    first.put("one", 1)
    Store(folder)
    program = "import sys; from psvit_core.storage.store import Store; s = Store(sys.argv[1]); "
    program += "s.put('other', 2); s.close()"
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, timeout=JOB)
    # The last connection to a database deletes its log, and the other process was not the last.
    assert (folder / "keys.db-wal").exists() and (folder / "index" / "cache.db-wal").exists()
    first.put("two", 2)
    assert {*Store(folder).keys("")} >= {"one", "other", "two"}


@pytest.mark.parametrize("damage", [garbage, cut, overwritten])
def test_jobs_are_listed_beside_a_damaged_index(
    tmp_path: Path,
    damage: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    store = Store()
    for i in range(200):
        client.save(store, make_job(id=f"job{i}", state="done"))
    store.close()
    damage(tmp_path / "cache" / "index" / "cache.db")
    said = [main(["jobs", "list"]) for _ in range(2)]
    assert said[1] == 0 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", [garbage, cut])
def test_damaged_arrays_and_values(folder: Path, damage: Callable[[Path], None]) -> None:
    store = Store(folder)
    [arrays] = (folder / "arrays").rglob("*.npz")
    damage(arrays)
    with pytest.raises(StoreError, match=rf"{arrays} is damaged.*Delete it"):
        store.get_arrays(KEY)
    [value] = (folder / "index").rglob("*.val")
    damage(value)
    with pytest.raises(StoreError, match=r"'job/large'.*Delete it with"):
        store.get("job/large")


def test_other_things_in_place_of_files(folder: Path) -> None:
    store = Store(folder)
    [arrays] = (folder / "arrays").rglob("*.npz")
    arrays.unlink()
    arrays.mkdir()
    with pytest.raises(StoreError, match=rf"{arrays}: Is a directory\. "):
        store.get_arrays(KEY)
    with pytest.raises(StoreError):
        store.put_arrays(KEY, {})
    [value] = (folder / "index").rglob("*.val")
    value.unlink()
    value.mkdir()
    with pytest.raises(StoreError, match="Is a directory"):
        store.get("job/large")  # and not: there is no such key
    (folder / "locks").write_text("a file")
    with pytest.raises(StoreError, match=r"Cannot write to the store in .*: File exists"):
        add_outcome(store, KEY, outcome())
    file = folder / "file"
    file.touch()
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        Store(file)


# --- full disks


def run_limited(program: str, *arguments: str, limit: int) -> subprocess.CompletedProcess[str]:
    """Run a program whose files cannot grow beyond ``limit`` bytes, like on a full disk."""
    head = "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limits = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    command = [sys.executable, "-c", head + program.replace("LIMIT", limits), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=JOB)


def test_files_that_cannot_grow(folder: Path) -> None:
    program = """
import numpy as np
from psvit_core.errors import StoreError
from psvit_core.storage.store import Store, digest
store = Store(sys.argv[1])
LIMIT
def fill():
    for i in range(20_000):
        store.put(f"job/{i}", {"n": i, "text": "x" * 200 * (i % 7)})
for call in (
    fill,
    lambda: store.put("job/other", list(range(100_000))),
    lambda: store.put_arrays(digest("b"), {"x": np.random.rand(100_000)}),
):
    try:
        call()
        print("nothing")
    except StoreError as error:
        print(error)
print(store.get("job/a"))
"""
    done = run_limited(program, str(folder), limit=150_000)
    assert done.returncode == 0, done.stderr
    *said, value = done.stdout.splitlines()
    assert value == "{'n': 1}"
    assert len(said) == 3
    for text in said:
        assert text.startswith(f"Cannot write to the store in {folder}: ")
        assert "PSVIT_CACHE" in text


class FullDatabase:
    """A connection on which statements raise what SQLite raises on a full disk."""

    def __init__(self, connection: sqlite3.Connection, refused: str) -> None:
        self._connection, self._refused = connection, refused

    def execute(self, statement: str, *values: Any) -> Any:
        if statement.startswith(self._refused):
            small = sqlite3.connect(":memory:")
            small.execute("PRAGMA max_page_count = 1")
            small.execute("CREATE TABLE t (x)")
        return self._connection.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize("refused", ["BEGIN", "INSERT", "COMMIT"])
def test_a_full_disk_leaves_the_store_usable(folder: Path, refused: str) -> None:
    store = Store(folder)
    whole = store._keys._sql
    store._keys._sql = FullDatabase(whole, refused)  # type: ignore[assignment]  # a stand-in
    with pytest.raises(
        StoreError, match=r"is full\. Free some space on the disk of .*, or set PSVIT_CACHE"
    ) as caught:
        store.put("job/b", 1)
    one_line(caught.value, folder)
    store._keys._sql = whole
    store.put("job/b", 2)  # no transaction was left open
    assert store.get("job/b") == 2
    assert set(store.keys("job/")) == {"job/a", "job/large", "job/b"}


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EROFS, "that you can write to"),
        (errno.EACCES, "that you can write to"),
        (errno.EIO, "Check the disk"),
        (errno.ESTALE, "Check the disk"),
    ],
)
def test_errors_of_the_system(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, way_out: str
) -> None:
    store = Store(folder)

    def fail(*arguments: object, **options: object) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk.JSONOnlyDisk, "store", fail)
    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(store_module, "write_all_atomic", fail)
    for call in ("put", "put_new", "get_arrays", "put_arrays"):
        with pytest.raises(StoreError, match=f"{os.strerror(number)}\\. .*{way_out}") as caught:
            CALLS[call](store)
        one_line(caught.value, folder)


# --- locked


@pytest.mark.parametrize("name", ["keys.db", "index/cache.db"])
@pytest.mark.parametrize("call", ["put", "put_new", "delete"])
def test_locked_by_another_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    monkeypatch.setattr(keys, "_TIMEOUT", 0.2)
    store = Store(folder)
    store._cache._local.con.execute("PRAGMA busy_timeout = 200")
    other = sqlite3.connect(folder / name, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"locked\. Another program has locked it") as caught:
        CALLS[call](store)
    one_line(caught.value, folder)
    other.execute("ROLLBACK")
    CALLS[call](store)


def test_every_error_of_the_libraries_is_named(tmp_path: Path) -> None:
    kinds = (sqlite3.ProgrammingError("x"), sqlite3.InterfaceError("x"), diskcache.Timeout("x"))
    for error in (*kinds, OSError("x"), disk.RefusedRowError("x"), TimeoutError()):
        with (
            pytest.raises(StoreError, match=f"Cannot use {tmp_path}"),
            faults.named_faults("use", tmp_path, "Delete it."),
        ):
            raise error


# --- read-only, and no home folder

AS_NOBODY = """
import codecs, os, sys
import numpy as np
from psvit_core.cli import main
from psvit_core.errors import StoreError
from psvit_core.storage.faults import StoreLock
from psvit_core.storage.store import Store
codecs.lookup("hex")  # loaded late, from a folder that the account may not read
os.setgroups([])
os.setgid(65533)
os.setuid(65533)
"""


def as_nobody(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program as an account that may only read, without a passwd entry and home folder."""
    if os.getuid() != 0:
        pytest.skip("only root can start processes of another account")
    for place in (folder, *folder.parents):
        if not place.stat().st_mode & stat.S_IXOTH and place != Path(place.anchor):
            place.chmod(place.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", AS_NOBODY + program, str(folder)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=JOB, cwd=ROOT, env=environment
    )


def test_a_read_only_store(folder: Path) -> None:
    (folder / "locks").mkdir()
    program = """
for call in (lambda: Store(sys.argv[1]), lambda: StoreLock(sys.argv[1] + "/locks/x").acquire()):
    try:
        call()
        print("nothing")
    except StoreError as error:
        print(error)
"""
    done = as_nobody(folder, program)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    for text in said:
        assert str(folder) in text
        assert text.endswith("Set PSVIT_CACHE to a folder that you can write to.")


def test_a_store_that_becomes_read_only(folder: Path) -> None:
    os.chown(folder, NOBODY, NOBODY)
    for path in folder.rglob("*"):
        os.chown(path, NOBODY, NOBODY)
    program = """
store = Store(sys.argv[1])
for path in (".", "arrays", "index", "keys.db", "index/cache.db"):
    os.chmod(os.path.join(sys.argv[1], path), 0o555)
for call in (
    lambda: store.put_arrays("ab" * 16, {"x": np.arange(3)}),
    lambda: store.place("new", "file"),
    lambda: Store(sys.argv[1]).put("job/b", 1),
    lambda: store.put("job/c", list(np.random.rand(20_000))),
):
    try:
        call()
        print("nothing")
    except StoreError as error:
        print(error)
"""
    done = as_nobody(folder, program)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 4
    for text in said:
        assert str(folder) in text
        assert text.endswith("Set PSVIT_CACHE to a folder that you can write to.")


def test_the_command_line_on_a_read_only_store(folder: Path) -> None:
    program = "os.environ['PSVIT_CACHE'] = sys.argv[1]\nsys.exit(main(['jobs', 'list']))"
    done = as_nobody(folder, program)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"psvit: Cannot use the store in {folder}: ")
    assert done.stderr.count("\n") == 1


def test_an_account_without_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages" / "psvit_core" / "storage" / "store.py"
    monkeypatch.setattr(store_module, "__file__", str(installed))
    for name in ("PSVIT_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"no home folder.*Set PSVIT_CACHE to a folder"):
        default_folder()
    monkeypatch.setenv("PSVIT_CACHE", "~/results")
    assert main(["jobs", "list"]) == 2  # and not a folder named ~
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "own"))
    assert main(["jobs", "list"]) == 0


def test_no_compiled_kernels_without_a_home_folder(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    assert native.library.__wrapped__() is None  # as with a home folder that is read-only
    assert "using torch instead of compiled kernels" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text
