"""Folders below which the app reads files that its users name.

On this machine alone its user names any file. As soon as the app listens beyond it, or where
``$PSVIT_ROOTS`` is set, typed paths and those of links stay below a few folders. Whether anything
exists elsewhere is not said: every path outside gets the same answer, and is not looked up.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from psvit_core.errors import DataError, PsvitError
from psvit_core.files import data_folder, expand
from psvit_core.storage.store import Store

ROOTS_ENV = "PSVIT_ROOTS"
MODELS_ENV = "PSVIT_MODELS"
_STORED = ("uploads", "exports", "finetune")  # folders of the store that contain models
_enforced: list[bool] = []  # not empty once the app listens beyond this machine


class OutsideError(PsvitError):
    """A path that the users of this app may not name."""


def enforce() -> None:
    """Let paths stay below the roots from now on, in this process."""
    _enforced.append(True)


def in_force() -> bool:
    """Return whether paths have to stay below the roots."""
    return bool(_enforced or os.environ.get(ROOTS_ENV))


def list_roots(store: Store) -> list[Path]:
    """Return the folders below which files may be named.

    Those of ``$PSVIT_ROOTS``, separated as in ``$PATH``; without it, the folders of models and of
    downloaded images. The store's uploads and exports are always among them.
    """
    stored = [store.folder / name for name in _STORED]
    if chosen := os.environ.get(ROOTS_ENV):
        named = [expand(part) for part in chosen.split(os.pathsep) if part.strip()]
    else:
        models = os.environ.get(MODELS_ENV)
        named = [expand(models)] if models else []
        with suppress(DataError):  # an account without a home folder has none for images
            named.append(data_folder())
    return [folder.resolve() for folder in [*named, *stored]]


def check_path(store: Store, path: str | Path | None) -> None:
    """Check that a path which a user named lies below a root, after resolving links.

    Args:
        store: The store, for its own folders.
        path: As typed, before ``~`` is replaced; nothing to check if it is empty or None.

    Raises:
        OutsideError: If it lies elsewhere. The message does not depend on what is there.
    """
    if not path or not in_force():
        return
    roots = list_roots(store)
    try:
        full = expand(path).resolve()
        inside = any(full.is_relative_to(root) for root in roots)
    except (OSError, RuntimeError, ValueError, PsvitError):  # no name at all, or circular links
        inside = False
    if not inside:
        raise OutsideError(
            f"{path!s:.80} is outside the folders whose files can be opened here: "
            f"{', '.join(map(str, roots))}. Choose a file there, or upload it. Whoever runs the "
            f"app sets these folders with {ROOTS_ENV}."
        )


def check_spec(store: Store, spec: str | None) -> None:
    """Check the path of a data specification, such as ``folder:DIR``, like ``check_path``.

    Raises:
        OutsideError: If it lies outside all roots.
    """
    check_path(store, (spec or "").partition(":")[2])
