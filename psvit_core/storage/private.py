"""Folders of a store that only their owner may read and write, whatever the umask.

The index contains the secret of the app's download links, and whoever can write to a store decides
which results others see.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

from psvit_core.durable import make_folder

_ATTEMPTS = 10  # to create a folder that others rename meanwhile, because it is damaged
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> None:
    """Create a folder that only its owner may use; take the permissions of others from it.

    Raises:
        OSError: If it cannot be created, or belongs to another account.
    """
    for attempt in range(_ATTEMPTS):
        try:
            make_folder(folder, 0o700)
            _drop(folder, _OTHERS)
            return
        except (FileExistsError, FileNotFoundError):
            if folder.exists() or attempt == _ATTEMPTS - 1:  # a file, or a link to nowhere
                raise


def make_root(folder: Path, marker: str) -> None:
    """Create a store's own folder; one that was there before is only kept from being written to.

    Args:
        folder: The folder, which may be one of the user's that contains other things, too.
        marker: Name of the file that makes it a store.

    Raises:
        OSError: If it cannot be created, or belongs to another account.
    """
    if not folder.is_dir():
        make_private(folder)
    else:
        _drop(folder, _OTHERS_WRITE if (folder / marker).exists() else 0)


def hide(path: Path) -> None:
    """Take the permissions of others from a file of this account, if it exists."""
    if path.exists():
        _drop(path, _OTHERS)


def _drop(path: Path, permissions: int) -> None:
    """Take permissions from a file or folder of this account; shared folders (sticky) keep theirs.

    Raises:
        PermissionError: If it belongs to another account, and this one is not root.
    """
    if sys.platform == "win32":
        return
    found = path.stat()
    if os.geteuid() not in (0, found.st_uid):
        raise PermissionError(errno.EACCES, "it belongs to another account", str(path))
    if found.st_mode & permissions and not found.st_mode & stat.S_ISVTX:
        path.chmod(stat.S_IMODE(found.st_mode) & ~permissions)
