"""A store is its owner's alone, whatever the umask; folders of others are refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psvit_core.errors import StoreError
from psvit_core.jobs import client, workers
from psvit_core.storage.private import make_private
from psvit_core.storage.store import Store
from tests.made import make_job
from ui.shell import downloads


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fill(folder: Path) -> Store:
    """Use a store as the app does: jobs, arrays, logs, locks, uploads, the secret of downloads."""
    store = Store(folder)
    client.save(store, make_job(state="queued"))
    store.put_arrays("ab" * 16, {})
    store.place("uploads", "x").touch()
    store.place("exports", "job", "x").touch()
    workers.ring(store, "cpu")
    downloads.file_token(store, make_job(state="done"))
    return store


def test_a_new_store_is_private(tmp_path: Path, umask: int) -> None:
    store = fill(tmp_path / "new" / "cache")
    assert mode(store.folder) == 0o700


def test_what_is_in_a_users_own_folder_is_private(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "own"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    fill(folder)
    assert mode(folder) == 0o755  # it may contain other things
    open_to_others = {path.name: oct(mode(path)) for path in folder.iterdir() if mode(path) & 0o077}
    assert {name for name in open_to_others if not name.startswith("keys")} == set()
    assert mode(folder / "keys.db") == 0o600


def test_an_older_store_is_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fill(folder).close()
    for path in (folder, *folder.iterdir()):
        path.chmod(0o777 if path.is_dir() else 0o666)
    Store(folder).close()
    assert mode(folder) == 0o755
    assert (mode(folder / "index"), mode(folder / "keys.db")) == (0o700, 0o600)


def test_a_folder_that_all_share_stays_shared(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    fill(folder).close()
    Store(folder).close()
    assert mode(folder) == 0o1777
    assert mode(folder / "index") == 0o700


@pytest.mark.parametrize("name", ["", "index", "arrays"])
def test_a_store_of_another_account_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fill(tmp_path / "cache").close()
    real, theirs = Path.stat, tmp_path / "cache" / name

    def as_another(path: Path, **options: bool) -> os.stat_result:
        owner = 4711 if path == theirs else 4712
        return os.stat_result(v if i != 4 else owner for i, v in enumerate(real(path, **options)))

    monkeypatch.setattr(os, "geteuid", lambda: 4712)
    monkeypatch.setattr(Path, "stat", as_another)
    with pytest.raises(StoreError, match=r"belongs to another account\. Set PSVIT_CACHE"):
        Store(tmp_path / "cache")
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # root may use every folder, as in a container
    Store(tmp_path / "cache").close()


def test_a_folder_that_another_process_renames_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, make = tmp_path / "index", Path.mkdir
    folder.mkdir()

    def renamed_before(path: Path, *arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(Path, "mkdir", make)
        folder.rename(tmp_path / "index.damaged")
        raise FileExistsError(path)  # it was there when mkdir looked, and then it was not

    monkeypatch.setattr(Path, "mkdir", renamed_before)
    make_private(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(tmp_path / "gone")
    for folder in (tmp_path / "store", tmp_path / "store" / "index"):
        with pytest.raises(OSError):
            make_private(folder)
