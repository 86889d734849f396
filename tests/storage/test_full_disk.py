"""A store on a disk that is full: everything is read, one line says so, and space can be freed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from psvit_core.cli import main
from psvit_core.errors import StoreError
from psvit_core.jobs import client
from psvit_core.plan.build import plan_from_ratios
from psvit_core.storage.opening import OpenStore
from psvit_core.storage.reading import FrozenIndex
from psvit_core.storage.store import Store, digest
from tests.full_disk import ROOT, WAYS, run_on_full
from tests.made import make_job
from tests.ui.example import put_sweep, summary

SWEEP = ["sweep", "sdt_v1_digits", "--limit", "20", "--recover", "none", "--json"]
VALUES = {"job/a": {"n": 1}, "job/long": [*range(20_000)], "plan/b": "b"}  # one in a file

COMMANDS = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from psvit_core.cli import main
from psvit_core.jobs import client
client.ensure_worker = lambda *_, **__: None  # it would stay
for command in json.loads(sys.argv[1]):
    if command[0] == "remove":
        os.remove(command[1])
        continue
    said, out = io.StringIO(), io.StringIO()
    with redirect_stderr(said), redirect_stdout(out):
        status = main(command)
    print(json.dumps([status, out.getvalue(), said.getvalue()]))
"""

PAGES = """
import json, sys
from streamlit.testing.v1 import AppTest
from psvit_core.jobs import client, workers
from ui.model import loaders
client.ensure_worker = workers.ensure_worker = lambda *_, **__: None  # it would stay
found = {}
for path in sys.argv[1:]:
    app = AppTest.from_file(path, default_timeout=600).run()
    text = [m.value for m in app.markdown]
    found[path] = [[e.value for e in app.exception], [e.value for e in app.error], text]
app = AppTest.from_file("pages/jobs.py", default_timeout=600).run()
[remove] = [b for b in app.button if b.key.endswith("-remove")]
remove.click().run()
found["removed"] = [[], [e.value for e in app.error], [m.value for m in app.success]]
store = loaders.open_store()
try:
    store.check_writable()
    store.put("after", 1)
    found["after"] = [[], [], [str(store.get("after"))]]
except Exception as error:
    found["after"] = [[str(error)], [], []]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with a sweep, jobs, and results."""
    folder = tmp_path_factory.mktemp("full") / "cache"
    store = Store(folder)
    for number in range(3):
        client.save(store, make_job(id=f"job{number}", state="done"))
    client.save(store, make_job(id="waits", state="queued", device="none"))
    put_sweep(store, summary("sdt_v1_digits"))
    store.place("uploads", "uploaded.pth").write_bytes(bytes(1_000_000))
    store.close()
    return folder


def run_commands(way: str, folder: Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Run commands on a full disk; return the status, output and error output of each."""
    program = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = run_on_full(way, folder, program)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def is_one_line(text: str, way: str, folder: Path) -> bool:
    reason = "No space left on device. Free some space on the disk of "
    reason = reason if way == "tmpfs" else "File too large. "
    return (
        text.count("\n") == 1
        and text.removeprefix("psvit: ").startswith("Cannot write to the store in ")
        and f"{folder.name}: {reason}" in text
        and "PSVIT_CACHE" in text
    )


@pytest.mark.parametrize("way", WAYS)
def test_commands_on_a_full_disk(folder: Path, way: str) -> None:
    commands = [
        ["jobs", "list"],
        ["cache", "info"],
        ["cache", "verify"],
        ["jobs", "cancel", "waits"],
        ["cache", "clear"],  # although a job waits, which nobody can cancel
        ["jobs", "cancel", "waits"],
    ]
    listed, info, verified, cancel, clear, after = run_commands(way, folder, commands)
    for status, _, said in (listed, info, verified, clear):
        assert status == 0 and is_one_line(said, way, folder), said
    assert cancel[:2] == (2, "") and is_one_line(cancel[2], way, folder), cancel
    for name in ("job0", "job1", "job2", "waits"):
        assert name in listed[1]
    assert "results by image" in info[1] and "everything can be read" in verified[1]
    assert "removed" in clear[1] and "removed 0 files" not in clear[1]
    if way == "tmpfs":
        assert (after[0], after[2]) == (0, "") and "cancelled" in after[1]
    else:
        assert is_one_line(after[2], way, folder)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_measuring_on_a_full_disk(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PSVIT_CACHE", str(folder))
    tables = [str(tmp_path / f"{name}.json") for name in ("first", "again", "other")]
    assert main([*SWEEP, "--ratios", "0.5", "--out", tables[0]]) == 0
    assert main(["evaluate", "sdt_v1_digits", "--limit", "20", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    commands = [
        [*SWEEP, "--ratios", "0.25", "--out", tables[2]],
        ["evaluate", "sdt_v1_digits", "--limit", "20", "--json"],
        ["evaluate", "sdt_v1_digits", "--limit", "30", "--json"],
    ]
    if way == "tmpfs":  # the table is on another disk
        commands.append([*SWEEP, "--ratios", "0.5", "--out", tables[1]])
    other, known, fresh, *again = run_commands(way, folder, commands)
    assert other[:2] == (2, "") and is_one_line(other[2], way, folder), other
    for status, _, said in (known, fresh, *again):
        assert status == 0 and is_one_line(said, way, folder), said
    assert json.loads(known[1]) == measured
    assert json.loads(fresh[1])["conditions"]["n_images"] == 30
    if again:  # a sweep that is stored is read
        first, second = (json.loads(Path(table).read_text()) for table in tables[:2])
        assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_measured_plan_on_a_full_disk(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result is printed, and then one line says that it could not be kept."""
    ratios = {"block.0.mlp.hidden": 0.5}
    plan = plan_from_ratios(summary("sdt_v1_digits"), ratios, criterion="l2")
    path = str(plan.save(tmp_path / "plan.json"))
    folder = tmp_path / "cache"
    Store(folder).close()
    command = ["evaluate", "sdt_v1_digits", "--limit", "20", "--plan", path, "--recover", "bn"]
    first, second = run_commands(way, folder, [command, [*command, "--json"]])
    for status, _, said in (first, second):
        assert status == 0
        opened, remark = said.splitlines()
        assert is_one_line(f"{opened}\n", way, folder)
        assert remark.startswith("psvit: What was measured is not kept with other plans: Cannot ")
    assert first[1].startswith("accuracy") and "not kept" not in first[1]
    found = json.loads(second[1])
    assert [f"psvit: {warning}" for warning in found["warnings"]] == [remark]
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "other"))
    assert main([*command, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert {**found, "warnings": []} == {**whole, "warnings": []}


@pytest.mark.parametrize("way", ["tmpfs", pytest.param("limit", marks=pytest.mark.slow)])
def test_pages_on_a_full_disk(folder: Path, way: str) -> None:
    pages = ["ui/shell/main.py", *(f"pages/{path.name}" for path in (ROOT / "pages").glob("*.py"))]
    done = run_on_full(way, folder, [sys.executable, "-c", PAGES, *pages])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for page in pages:
        exceptions, errors, _ = found[page]
        assert not exceptions, page
        shell = page == "ui/shell/main.py"  # it draws the line that every page shows
        assert len(errors) == shell, (page, errors)
        assert all("the store" in text and "still be read" in text for text in errors)
    assert sum(" done  \n" in text for text in found["pages/jobs.py"][2]) == 3
    assert found["removed"][2] == ["Removed uploaded.pth."]
    if way == "tmpfs":  # the file's space is free again, and the open store is written at once
        assert found["after"] == [[], [], ["1"]]
    else:
        assert "File too large" in found["after"][0][0]


# ---- how it is read


def fill(folder: Path) -> Store:
    store = Store(folder)
    for key, value in VALUES.items():
        store.put(key, value)
    return store


def frozen(folder: Path) -> dict[str, Any]:
    index = FrozenIndex(folder / "index")
    return {key: index.get(key) for key in index.times("")}


def test_rows_in_memory_equal_those_in_the_index(tmp_path: Path) -> None:
    store = fill(tmp_path)
    assert frozen(tmp_path) == VALUES  # while a process has it open
    index = FrozenIndex(tmp_path / "index")
    store.put("job/a", {"n": 2})
    store.delete("plan/b")
    assert index.get("job/a") == {"n": 2} and [*index.times("")] == ["job/a", "job/long"]
    assert [*index.times("job/l")] == ["job/long"] and index.get("nothing") is None
    store.close()
    assert frozen(tmp_path) == {"job/a": {"n": 2}, "job/long": VALUES["job/long"]}


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_a_killed_process_left_in_the_log(tmp_path: Path, way: str) -> None:
    killed = f"from tests.storage.test_full_disk import *; fill(Path({str(tmp_path)!r}, 'cache'))"
    subprocess.run(
        [sys.executable, "-c", f"{killed}; import os; os._exit(0)"], cwd=ROOT, check=True
    )
    assert (tmp_path / "cache" / "index" / "cache.db-wal").stat().st_size
    for tail in ("index/cache.db-shm", "keys.db-shm"):  # as after a power cut
        (tmp_path / "cache" / tail).unlink()
    program = (
        "import os, json; from psvit_core.storage.store import Store; s = Store(); "
        "print(json.dumps({key: s.get(key) for key in s.changes('')}))"
    )
    done = run_on_full(way, tmp_path / "cache", [sys.executable, "-c", program])
    assert json.loads(done.stdout) == VALUES, done.stderr


def test_a_store_that_was_open_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a killed process did not list are found without listing them."""
    store = fill(tmp_path)
    store._cache.set("unlisted", 1)

    def full(doing: str) -> None:
        error = StoreError("Cannot write to the store in x: No space left on device.")
        error.kind = "full"
        raise error

    monkeypatch.setattr(store._keys, "rebuild", lambda *_: full(""))
    assert [*store.changes("")] == [*VALUES, "unlisted"]
    monkeypatch.undo()
    assert [*store.changes("")] == [*VALUES, "unlisted"]


def test_a_store_is_written_as_soon_as_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path).close()
    real = OpenStore._open

    def full(store: OpenStore, doing: str) -> None:
        error = StoreError(f"Cannot {doing} the store in {store.folder}: No space left on device.")
        error.kind = "full"
        raise error

    monkeypatch.setattr(OpenStore, "_open", full)
    store = Store(tmp_path)
    assert store.get("job/a") == {"n": 1} and [*store.keys("job/")] == ["job/a", "job/long"]
    for call in (store.put, store.put_new):
        with pytest.raises(StoreError, match="No space left"):
            call("new", 1)
    with store.optional():
        store.delete("job/a")
    assert caplog.text.count("What is stored can still be read.") == 1
    store.put_arrays(digest("x"), {})  # a file of its own, which may still fit
    monkeypatch.setattr(OpenStore, "_open", real)
    store.put("new", 1)
    assert store.get("new") == 1 and "new" in store.changes("")
    store.close()
