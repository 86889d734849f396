"""Stores: values parsed once per change, several processes and threads, the default folder."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from psvit_core.storage import store as store_module
from psvit_core.storage.shipped import DemoStore, shipped_bundles
from psvit_core.storage.store import Store, default_folder
from tests.patience import JOB

ROOT = Path(__file__).resolve().parents[2]
READ: list[str] = []


def parse(key: str, value: Any) -> Any:
    READ.append(key)
    return value.get("n")


def test_a_value_is_parsed_once_until_it_is_put_again(tmp_path: Path) -> None:
    store, worker = Store(tmp_path), Store(tmp_path)  # two processes' views of one folder
    READ.clear()
    for i in range(3):
        worker.put(f"job/{i}", {"n": i})
    worker.put("jobless", {"n": 9})
    assert store.read("job/", parse) == {"job/0": 0, "job/1": 1, "job/2": 2}
    assert store.read("job/", parse) == {"job/0": 0, "job/1": 1, "job/2": 2}
    assert sorted(READ) == ["job/0", "job/1", "job/2"]

    before = store.changes("job/")
    worker.put("job/1", {"n": 1})  # putting an equal value is a change, too
    worker.put("job/2", {})
    worker.delete("job/0")
    after = store.changes("job/")
    assert set(after) == {"job/1", "job/2"}
    assert all(after[key] > before[key] for key in after)
    assert store.read("job/", parse) == {"job/1": 1, "job/2": None}
    assert len(READ) == 5
    assert sorted(store.keys("job")) == ["job/1", "job/2", "jobless"]


def test_deleted_rows_leave_the_memory(tmp_path: Path) -> None:
    """Every edit on the Tune page drops a job: what was parsed of it stayed for good."""
    store, other = Store(tmp_path), Store(tmp_path)
    for i in range(5):
        other.put(f"job/{i}", {"n": Parsed()})
        parsed = store.read("job/", parse_object)
        gone = weakref.ref(parsed[f"job/{i}"])
        other.delete(f"job/{i}")
        assert store.read("job/", parse_object) == {}
        del parsed
        gc.collect()
        assert gone() is None


class Parsed(dict[str, int]):
    """An object that can be referred to weakly."""


def parse_object(key: str, value: Any) -> Parsed:
    return Parsed(value)


def test_stored_values_come_before_shipped_ones(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("PSVIT_DEMO", raising=False)
    shipped_bundles.cache_clear()
    store = DemoStore(tmp_path)
    shipped = store.changes("pareto-head/")
    assert shipped and set(shipped.values()) == {0.0}
    key = next(iter(shipped))
    store.put(key, {"n": 5})
    assert store.changes("pareto-head/")[key] > 0
    assert store.read(key, parse) == {key: 5}
    shipped_bundles.cache_clear()


def test_a_key_that_a_killed_process_did_not_list_is_found(tmp_path: Path) -> None:
    store, killed = Store(tmp_path), Store(tmp_path)
    store.put("job/a", 1)
    killed._cache.set("job/b", 2)
    assert list(store.keys("job/")) == ["job/a", "job/b"]
    killed._cache.delete("job/a")
    assert list(store.keys("job/")) == ["job/b"]


def test_processes_put_and_delete_at_the_same_time(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from psvit_core.storage.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "for i in range(60):\n"
        "    store.put(f'own/{sys.argv[2]}/{i}', i)\n"
        "    store.put('shared', i)\n"
        "    store.delete('shared')\n"
        "    assert f'own/{sys.argv[2]}/{i}' in store.changes('own/')\n"
        "print(store.put_new('first', sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    running = [
        subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    said = [process.communicate(timeout=JOB)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sorted(said) == ["False", "False", "True"]
    store = Store(tmp_path)
    own = {f"own/{name}/{i}" for name in "abc" for i in range(60)}
    assert set(store.keys("")) == own | {"first"}
    assert store.get("first") == "abc"[said.index("True")]


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def work(name: int) -> int:
        for i in range(40):
            store.put(f"{name}/{i}", i)
        return len(store.changes(f"{name}/"))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [40] * 4
    assert len(store.changes("")) == 160


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("PSVIT_CACHE")
    assert default_folder() == ROOT / "cache"
    installed = tmp_path / "site-packages" / "psvit_core" / "storage" / "store.py"
    monkeypatch.setattr(store_module, "__file__", str(installed))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert default_folder() == platformdirs.user_cache_path("psvit", appauthor=False)
    assert not default_folder().is_relative_to(tmp_path / "site-packages")
