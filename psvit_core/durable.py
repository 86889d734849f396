"""Writing that survives a power cut, and temporary files that nobody keeps after a kill; no torch.

A system keeps written data in memory for a while, and may put a new name on the disk before the
content. So a file is synced before it gets its name, and the folder afterwards. Temporary files lie
in folders of their own, which their process holds locked: whoever can lock one may remove it.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PREFIX, _SUFFIX = ".psvit-", ".part"
_THREADS = 8  # they wait for the disk together: many files take little longer than one
_OLD_SECONDS = 3600.0
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # of systems that cannot sync a folder


def sync_files(paths: Sequence[Path]) -> None:
    """Wait until the contents of files are on the disk.

    Raises:
        OSError: If one of them cannot be written; some systems notice a full disk only here.
    """
    _for_each(_sync, paths)


def sync_folders(folders: Iterable[Path]) -> None:
    """Wait until the names in folders are on the disk.

    Raises:
        OSError: If they cannot be written.
    """
    if sys.platform == "win32":
        return

    def sync(folder: Path) -> None:
        try:
            _sync(folder)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise

    _for_each(sync, list(dict.fromkeys(folders)))


def _for_each(work: Callable[[Path], None], paths: Sequence[Path]) -> None:
    if len(paths) < 2:
        for path in paths:
            work(path)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(work, paths))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Create a folder and those above it; once this returns, a power cut leaves them.

    Args:
        folder: The folder; nothing happens if it exists.
        mode: Permissions of the folder, from which the umask is taken.

    Raises:
        OSError: If it cannot be created, or is a file.
    """
    make_folders([folder], mode)


def make_folders(folders: Iterable[Path], mode: int = 0o777) -> None:
    """Create folders like ``make_folder``; together they take little longer than one."""
    missing: list[Path] = []
    for folder in folders:
        missing += [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    sync_folders(place.parent for place in reversed(missing))


# ---- temporary files


@contextmanager
def temporary_folder(where: Path) -> Iterator[Path]:
    """Yield a new folder for temporary files; it is removed at the end.

    Raises:
        OSError: If it cannot be created.
    """
    lock = None
    while lock is None:  # another process may just have taken it for a leftover
        folder = Path(tempfile.mkdtemp(dir=where, prefix=_PREFIX, suffix=_SUFFIX))
        lock = _lock(folder, if_impossible=_NO_LOCK)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock != _NO_LOCK:
            os.close(lock)


def remove_leftovers(root: Path, *, deep: bool = True) -> None:
    """Remove temporary folders that killed processes left in a folder.

    Args:
        root: The folder.
        deep: Also those in the folders below it.
    """
    for place, names, files in os.walk(root):
        for name in [name for name in names if _is_temporary(name)]:
            names.remove(name)
            folder = Path(place, name)
            with suppress(OSError):  # another account's, for example
                lock = _lock(folder, if_impossible=None)
                if lock is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)
        for name in filter(_is_temporary, files):  # of versions up to 0.2, which held no lock
            with suppress(OSError):
                if time.time() - Path(place, name).stat().st_mtime > _OLD_SECONDS:
                    Path(place, name).unlink()
        if not deep:
            return


def _is_temporary(name: str) -> bool:
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


_NO_LOCK = -1


def _lock(folder: Path, *, if_impossible: int | None) -> int | None:
    """Lock a folder until its handle is closed; the system unlocks it when the process ends.

    Args:
        folder: The folder.
        if_impossible: Returned where folders cannot be locked.

    Returns:
        The handle; None if another process has locked or removed the folder.
    """
    if sys.platform == "win32":
        return if_impossible
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks
        os.close(handle)
        return if_impossible
    os.close(handle)
    return None
