"""``psvit cache``: sizes, damage, and what clearing removes and keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psvit_core.cli import main
from psvit_core.finetune import CURVE_FILE, STATE_FILE
from psvit_core.jobs import client
from psvit_core.storage.store import Store, digest
from tests.made import make_job

KEYS = [digest(n) for n in range(3)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    store = Store()
    for key in KEYS:
        store.put_arrays(key, {"x": np.arange(100)})
    store.put("pareto/a", {"n": 1})
    store.put("large", np.random.RandomState(0).rand(20_000).tolist())  # in a file of its own
    client.save(store, make_job(state="done"))
    store.place("exports", "a", "model.safetensors").write_bytes(b"1234")
    store.place("uploads", "own.pth").write_bytes(b"12")
    return store


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["cache", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def damage(store: Store) -> Path:
    path = store.folder / "arrays" / KEYS[0][:2] / f"{KEYS[0]}.npz"
    path.write_bytes(path.read_bytes()[:50])
    return path


def test_info(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {part["name"]: part for part in run(capsys, "info")["parts"]}
    files = [path for path in (store.folder / "arrays").rglob("*") if path.is_file()]
    assert parts["arrays"]["n_files"] == len(files) == 3
    assert parts["arrays"]["n_bytes"] == sum(path.stat().st_size for path in files)
    assert (parts["exports"]["n_bytes"], parts["uploads"]["n_bytes"]) == (4, 2)
    assert "other" not in parts
    assert main(["cache", "info"]) == 0
    assert "written checkpoints" in capsys.readouterr().out


def test_verify_names_what_is_damaged(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify")["faults"] == []
    path = damage(store)
    [value] = (store.folder / "index").rglob("*.val")
    value.write_bytes(b"garbage")
    faults = {fault["place"]: fault["fault"] for fault in run(capsys, "verify")["faults"]}
    assert set(faults) == {"large", str(path)}
    assert "is damaged" in faults[str(path)]


def test_clear_keeps_what_cannot_be_computed_again(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damage(store)
    assert run(capsys, "clear", "--damaged")["files"] == 1
    assert not path.exists() and store.get_arrays(KEYS[1]) is not None
    aside = store.place("index.damaged-20260101-1", "cache.db")
    aside.write_bytes(b"old")
    assert run(capsys, "clear")["files"] == 3
    assert not aside.parent.exists()
    assert [store.get_arrays(key) for key in KEYS] == [None] * 3
    assert store.get("pareto/a") == {"n": 1}
    assert client.find_job(store, "a").state == "done"
    assert (store.folder / "exports" / "a" / "model.safetensors").is_file()
    assert (store.folder / "uploads" / "own.pth").is_file()
    store.put_arrays(KEYS[0], {"x": np.arange(3)})  # and goes on


def test_states_of_trainings_are_cleared_if_asked(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    state = store.place("finetune", "k", STATE_FILE)
    state.write_bytes(b"123456")
    curve = store.place("finetune", "k", CURVE_FILE)
    curve.write_text("{}", encoding="utf-8")
    parts = {part["name"]: part["n_bytes"] for part in run(capsys, "info")["parts"]}
    assert parts["finetune"] == 8
    run(capsys, "clear")
    assert state.exists()
    found = run(capsys, "clear", "--trainings")
    assert (found["files"], found["bytes"]) == (1, 6)
    assert not state.exists() and curve.exists()


def test_nothing_is_cleared_under_a_command(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with store.using():
        assert main(["cache", "clear"]) != 0
    assert f"(process {os.getpid()})" in capsys.readouterr().err
    assert store.get_arrays(KEYS[1]) is not None
    store.put(f"using/{2**22 + 1}/a", [0.0, 0.0])  # of a command that was killed
    assert run(capsys, "clear")["files"] == 3


def test_nothing_is_cleared_under_a_job(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    client.save(store, make_job(id="b", state="queued"))
    assert main(["cache", "clear"]) != 0
    assert "such as b (1 in all)" in capsys.readouterr().err
    assert store.get_arrays(KEYS[1]) is not None
