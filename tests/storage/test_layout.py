"""The version of a store's layout: old stores work, newer ones are refused untouched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from psvit_core.cli import main
from psvit_core.errors import StoreError
from psvit_core.storage.layout import LAYOUT_VERSION
from psvit_core.storage.store import Store


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def filled(folder: Path) -> Path:
    store = Store(folder)
    store.put("job/a", 1)
    store.close()
    return folder


def test_a_new_store_is_marked(tmp_path: Path) -> None:
    folder = filled(tmp_path / "cache")
    assert (folder / "version").read_text() == "1\n" and LAYOUT_VERSION == 1
    Store(folder).close()


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_store_without_a_marker_is_of_the_first_version(tmp_path: Path, is_empty: bool) -> None:
    folder = filled(tmp_path / "cache")
    (folder / "version").unlink()
    if is_empty:  # after a power cut
        (folder / "version").touch()
    store = Store(folder)
    assert store.get("job/a") == 1
    assert (folder / "version").read_text() == "1\n"


@pytest.mark.parametrize("text", ["2\n", "10", "99999999999999999999"])
def test_a_newer_store_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    folder = filled(tmp_path / "cache")
    (folder / "version").write_text(text)
    shutil.rmtree(folder / "index")  # it may look quite different
    before = content(folder)
    with pytest.raises(StoreError, match=r"newer version of this program: its layout has version"):
        Store(folder)
    monkeypatch.setenv("PSVIT_CACHE", str(folder))
    for command in (["jobs", "list"], ["cache", "clear"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"version {int(text)}, and this program knows 1" in said
        assert "Update this program, or set PSVIT_CACHE to another folder." in said
    assert content(folder) == before and not (folder / "index").exists()


@pytest.mark.parametrize("text", [b"two", b"-1", b"\xff\xfe\0", b"1" * 30, b"\xc2\xb2"])
def test_a_damaged_marker_is_named(tmp_path: Path, text: bytes) -> None:
    folder = filled(tmp_path / "cache")
    (folder / "version").write_bytes(text)
    with pytest.raises(StoreError, match=r"version contains .* instead of .*Delete that file"):
        Store(folder)
    (folder / "version").unlink()
    assert Store(folder).get("job/a") == 1
