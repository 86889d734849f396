"""Index rows that this program did not write are refused, and never unpickled."""

from __future__ import annotations

import json
import pickle
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diskcache
import pytest

from psvit_core.errors import StoreError
from psvit_core.pareto import find_archives
from psvit_core.storage.shipped import DemoStore
from psvit_core.storage.store import Store

KEY = "job/a"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / "cache")
    store.put(KEY, {"n": 1})
    store.put("job/b", {"n": 2})
    store.close()
    return store.folder


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    marker = tmp_path / "code-was-run"
    yield marker
    assert not marker.exists()


def tamper(folder: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(folder / "index" / "cache.db") as connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode(), 1)


def parse(key: str, value: Any) -> Any:
    return value


def plant_inline(folder: Path, pickled: bytes) -> None:
    statement = "UPDATE Cache SET mode = 4, filename = NULL, value = ? WHERE key = ?"
    tamper(folder, statement, pickled, packed(KEY))


def plant_file(folder: Path, pickled: bytes) -> None:
    name = f"ab/cd/{'0' * 28}.val"
    path = folder / "index" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(pickled)
    statement = "UPDATE Cache SET mode = 4, filename = ?, value = NULL WHERE key = ?"
    tamper(folder, statement, name, packed(KEY))


def plant_as_json(folder: Path, pickled: bytes) -> None:
    tamper(folder, "UPDATE Cache SET mode = 1, value = ? WHERE key = ?", pickled, packed(KEY))


PLANTS = [plant_inline, plant_file, plant_as_json]


@pytest.mark.parametrize("plant", PLANTS)
def test_a_pickled_value_is_refused(
    plant: Callable[[Path, bytes], None],
    folder: Path,
    marker: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pickled = pickle.dumps(Payload(marker))
    plant(folder, pickled)
    for kind in (Store, DemoStore):
        store = kind(folder)
        with pytest.raises(StoreError, match=r"Cannot read 'job/a'.*Delete it with Store\("):
            store.get(KEY)
        assert store.read("job/", parse) == {"job/b": {"n": 2}}  # one bad row hides no others
        assert "skipped a row: Cannot read 'job/a'" in caplog.text
        assert sorted(store.keys("job/")) == [KEY, "job/b"] == sorted(store.changes("job/"))
        assert not store.put_new(KEY, 3)
        assert store.get("job/b") == {"n": 2}  # the other rows are readable
        store.close()
    store = Store(folder)
    store.delete(KEY)  # as the message says
    assert store.get(KEY) is None
    assert store.read("job/", parse) == {"job/b": {"n": 2}}
    assert store.put_new(KEY, 3)
    assert store.get(KEY) == 3


@pytest.mark.parametrize("plant", PLANTS)
def test_a_pickled_value_can_be_replaced(
    plant: Callable[[Path, bytes], None], folder: Path, marker: Path
) -> None:
    plant(folder, pickle.dumps(Payload(marker)))
    store = Store(folder)
    store.put(KEY, [4])
    assert store.get(KEY) == [4]


def plant_key(folder: Path, key: bytes, raw: int) -> None:
    columns = "key, raw, store_time, access_time, mode, value"
    statement = f"INSERT INTO Cache ({columns}) VALUES (?, ?, 1, 1, 1, ?)"
    tamper(folder, statement, key, raw, packed(1))


@pytest.mark.parametrize("raw", [0, 1])
@pytest.mark.parametrize("listed", [True, False])
def test_a_pickled_key_is_refused(raw: int, listed: bool, folder: Path, marker: Path) -> None:
    plant_key(folder, pickle.dumps(Payload(marker)), raw)
    if not listed:  # as in a store of an old version, whose keys are listed now
        for path in folder.glob("keys.*"):
            path.unlink()
    for kind in (Store, DemoStore):
        store = kind(folder)
        for reading in (
            lambda store=store: list(store.keys("job/")),
            lambda store=store: store.changes(""),
            lambda store=store: store.read("job/", parse),
            lambda store=store: find_archives(store, "a"),
        ):
            with pytest.raises(StoreError, match=r"Cannot list the rows.*Delete .*index"):
                reading()
        assert store.get(KEY) == {"n": 1}
        store.put(KEY, {"n": 1})
        assert not store.put_new(KEY, 2)
        store.delete("job/b")
        store.put("job/b", {"n": 2})
        store.close()


def test_files_that_a_row_names_are_not_touched(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_bytes(packed("secret"))
    for name in (str(outside), "../../outside.json"):
        statement = "UPDATE Cache SET mode = 2, filename = ?, value = NULL WHERE key = ?"
        tamper(folder, statement, name, packed(KEY))
        store = Store(folder)
        with pytest.raises(StoreError, match=r"outside\.json"):
            store.get(KEY)
        store.put(KEY, 1)
        assert store.get(KEY) == 1
        assert outside.exists()
        store.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_directory", "/tmp"),
        ("disk_pickle", 1),
        ("sqlite_journal_mode", "wal; DROP TABLE Cache"),
        ("size_limit", b"1"),
    ],
)
def test_settings_of_other_programs_are_refused(key: str, value: Any, folder: Path) -> None:
    tamper(folder, "INSERT OR REPLACE INTO Settings VALUES (?, ?)", key, value)
    with pytest.raises(StoreError, match=rf"its setting '{key}'.*Delete .*index"):
        Store(folder)


def test_a_file_that_is_no_database_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "cache.db").write_bytes(b"no database" * 100)
    store = Store(tmp_path)
    assert f"{tmp_path / 'index'} was damaged. It is kept as index.damaged-" in caplog.text
    [aside] = tmp_path.glob("index.damaged-*/cache.db")
    assert aside.read_bytes() == b"no database" * 100
    store.put("a", 1)
    assert store.get("a") == 1


def test_rows_of_jsondisk_are_read(tmp_path: Path) -> None:
    """Stores of old versions: written with ``JSONDisk``, without a list of the keys."""
    values = {"job/b": {"n": 1}, "job/a": None, "x": [1.5, "é"], "job/large": list(range(20_000))}
    old = diskcache.Cache(str(tmp_path / "index"), disk=diskcache.JSONDisk, eviction_policy="none")
    for key, value in values.items():
        old.set(key, value)
    old.set(7, "no text")  # a key that is not text is not listed
    store = Store(tmp_path)
    assert {key: store.get(key) for key in values} == values
    assert list(store.keys("")) == [*values]
    before = store.changes("job/")
    assert list(before) == ["job/b", "job/a", "job/large"]
    assert before["job/b"] < before["job/a"]  # the newest last
    old.set("job/c", 3)  # an old process that still runs
    assert list(store.keys("job/")) == ["job/b", "job/a", "job/large", "job/c"]
    old.delete("job/a")
    assert list(store.keys("job/")) == ["job/b", "job/large", "job/c"]
    store.put("job/b", 2)
    assert store.changes("job/")["job/b"] > before["job/b"]
    assert old.get("job/b") == 2  # and the other way round
    assert store.get("job/large") == values["job/large"]
