"""The version of a store's layout, in a file of its own; a store without one has version 1."""

from __future__ import annotations

from pathlib import Path

from psvit_core.errors import StoreError
from psvit_core.files import write_atomic
from psvit_core.storage.faults import CACHE_ENV
from psvit_core.storage.private import hide

#: Incremented when older versions of this program could no longer use a store.
LAYOUT_VERSION = 1
MARKER = "version"
_MOST_BYTES = 20


def check_layout(folder: Path) -> None:
    """Check that this program knows a store's layout, before anything else is read or written.

    Raises:
        StoreError: If a newer version has written the store, or the file that says it is damaged.
        OSError: If that file cannot be read.
    """
    marker = folder / MARKER
    try:
        with marker.open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return
    if not text:  # a power cut may leave a file without its content
        return
    if len(text) > _MOST_BYTES or not (text.isascii() and text.isdigit()):
        raise StoreError(
            f"{marker} contains {text[:_MOST_BYTES]!r} instead of the version of the store. Delete "
            "that file if no newer version of this program has written the store."
        )
    if int(text) > LAYOUT_VERSION:
        raise StoreError(
            f"The store in {folder} was written by a newer version of this program: its layout has "
            f"version {int(text)}, and this program knows {LAYOUT_VERSION}. Update this program, "
            f"or set {CACHE_ENV} to another folder."
        )


def mark_layout(folder: Path) -> None:
    """Note the version of a store that has none yet."""
    marker = folder / MARKER
    if not marker.exists() or not marker.stat().st_size:
        write_atomic(marker, lambda part: part.write_text(f"{LAYOUT_VERSION}\n", encoding="ascii"))
        hide(marker)
