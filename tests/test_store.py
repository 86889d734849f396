"""What pages ask of a store several times a second is read once, and again after every change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psvit_core.demo import DemoStore, shipped_bundles
from psvit_core.store import Store

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
    worker.put("job/1", {"n": 1})  # an equal value is a change, too
    worker.put("job/2", {})
    worker.delete("job/0")
    after = store.changes("job/")
    assert set(after) == {"job/1", "job/2"}
    assert all(after[key] > before[key] for key in after)
    assert store.read("job/", parse) == {"job/1": 1, "job/2": None}
    assert len(READ) == 5
    assert sorted(store.keys("job")) == ["job/1", "job/2", "jobless"]


def test_what_is_shipped_stands_behind_what_is_put(tmp_path: Path, monkeypatch: Any) -> None:
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
