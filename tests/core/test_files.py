"""Whole or not at all: what is on the disk after a write that worked and one that did not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psvit_core.durable import temporary_folder
from psvit_core.errors import OutputError
from psvit_core.files import (
    check_writable,
    last_lines,
    write_all_atomic,
    write_atomic,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_write_text_is_utf8_and_returns_the_path(tmp_path: Path) -> None:
    path = write_text(tmp_path / "plan.json", "größe\n")
    assert path == tmp_path / "plan.json"
    assert path.read_bytes() == "größe\n".encode()
    assert names(tmp_path) == ["plan.json"]


def test_path_may_be_a_string(tmp_path: Path) -> None:
    assert write_text(f"{tmp_path}/a.txt", "x").read_text() == "x"


def test_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a much longer old content")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(part: Path) -> None:
        part.write_text("half")
        assert path.read_text() == "old"
        assert part.parent.parent.parent == path.parent  # same disk: the move is one step
        part.write_text("whole")

    write_atomic(path, write)
    assert path.read_text() == "whole"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(28, "No space left on device"), OutputError),
        (ValueError("not serialisable"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("old", [None, "old"])
def test_failing_writer_leaves_nothing_behind(
    tmp_path: Path, raised: BaseException, expected: type[BaseException], old: str | None
) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)

    def write(part: Path) -> None:
        part.write_text("half")
        raise raised

    with pytest.raises(expected):
        write_atomic(path, write)
    assert names(tmp_path) == ([] if old is None else ["a.txt"])
    assert old is None or path.read_text() == old


def test_full_disk_is_explained(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"a\.txt.*No space left on device"):
        write_atomic(tmp_path / "a.txt", write)


def test_writer_may_replace_the_part_itself(tmp_path: Path) -> None:
    def write(part: Path) -> None:  # as libraries do that write atomically themselves
        other = part.with_name("other")
        other.write_text("x")
        other.replace(part)

    assert write_atomic(tmp_path / "a.txt", write).read_text() == "x"
    assert names(tmp_path) == ["a.txt"]


def test_files_are_synced_before_they_get_their_names_and_folders_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut may leave a name without its content, or none at all."""
    events: list[tuple[str, int]] = []
    sync, replace = os.fsync, Path.replace

    def noting_sync(handle: int) -> None:
        events.append(("sync", os.fstat(handle).st_ino))
        sync(handle)

    def noting_replace(self: Path, target: Path) -> Path:
        events.append(("name", self.stat().st_ino))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    places = [tmp_path / name / "x" for name in ("a", "b", "c")]
    for place in places:
        place.parent.mkdir()
    write_all_atomic({p: lambda part: part.write_text("new") for p in places}, tmp_path)
    files = [place.stat().st_ino for place in places]
    folders = [place.parent.stat().st_ino for place in places]
    assert sorted(events[:3]) == sorted(("sync", file) for file in files)
    assert events[3:6] == [("name", file) for file in files]
    assert sorted(events[6:]) == sorted(("sync", folder) for folder in folders)
    assert names(tmp_path) == ["a", "b", "c"]


def test_others_may_read_the_result(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert write_text(tmp_path / "a.txt", "x").stat().st_mode & 0o777 == 0o644
        os.umask(0o077)
        assert write_text(tmp_path / "b.txt", "x").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_what_a_killed_process_left_beside_a_file_goes_with_the_next_one(tmp_path: Path) -> None:
    left, deeper = tmp_path / ".psvit-abc.part", tmp_path / "other" / ".psvit-abc.part"
    for folder in (left, deeper):
        folder.mkdir(parents=True)
        (folder / "half").write_text("half", encoding="utf-8")
    with temporary_folder(tmp_path) as living:
        write_text(tmp_path / "a.txt", "x")
        assert living.is_dir() and not left.exists()
    assert deeper.exists()  # the user's own folders are not searched


UNWRITABLE = {
    "a folder": "folder",
    "no such folder": "none/a.txt",
    "a file as folder": "file/a.txt",
    "a name too long": "n" * 300,
}


@pytest.mark.parametrize("place", UNWRITABLE)
def test_unwritable_place(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    path = tmp_path / UNWRITABLE[place]
    with pytest.raises(OutputError, match="Cannot write"):
        check_writable(path)
    with pytest.raises(OutputError, match="Cannot write"):
        write_text(path, "x")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_system_that_refuses_files() -> None:
    with pytest.raises(OutputError, match="Cannot write"):
        check_writable("/proc/self/plan.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            check_writable(tmp_path / "a.txt")
    finally:
        tmp_path.chmod(0o700)


def test_long_name_that_fits_is_written_or_refused(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)  # fits a file system, but not with a temporary suffix
    try:
        write_text(path, "x")
    except OutputError:
        assert names(tmp_path) == []
    else:
        assert path.read_text() == "x"


def test_check_writable_creates_nothing(tmp_path: Path) -> None:
    assert check_writable(tmp_path / "a.txt") == tmp_path / "a.txt"
    assert names(tmp_path) == []


def test_device_or_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # so that no writer waits for one
    try:
        with pytest.raises(OutputError, match="Cannot write"):
            write_text(pipe, "x")
        assert pipe.is_fifo()
    finally:
        os.close(reader)


def test_the_tail_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "worker-cpu.log"
    log.write_text("".join(f"line {i} {'x' * 50}\n" for i in range(5000)))
    lines = last_lines(log, 3)
    assert [line.split()[1] for line in lines] == ["4997", "4998", "4999"]
    assert last_lines(log, 10_000)[0].startswith("line ")
    assert last_lines(log, 0) == last_lines(log, -2) == []
