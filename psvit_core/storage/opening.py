"""Open the files of a store; on a full disk, only for reading."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import diskcache

from psvit_core.durable import make_folder
from psvit_core.errors import StoreError
from psvit_core.storage.aside import is_damage, mark_damaged, set_aside_damaged
from psvit_core.storage.disk import SETTINGS, JSONOnlyDisk, check_settings
from psvit_core.storage.faults import named_faults, writing_error
from psvit_core.storage.keys import KeyIndex
from psvit_core.storage.layout import check_layout, mark_layout
from psvit_core.storage.private import hide, make_private, make_root
from psvit_core.storage.reading import FrozenIndex

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0  # between two attempts to open an index that could not be opened


class OpenStore:
    """The open files of a store.

    Args:
        folder: The store's folder.

    Raises:
        StoreError: As for ``Store``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index, self._key_file = self.folder / "index", self.folder / "keys.db"
        self._opening = threading.RLock()
        self._frozen: FrozenIndex | None = None  # instead of the index, while it cannot be opened
        self._tried = 0.0  # when it was last opened in vain
        self._said = ""  # the last warning, without what could not be done
        try:
            self._open("use")
        except StoreError as error:
            if not error.unwritable or not (error.kind == "full" or self._index.is_dir()):
                raise
            with self.faults("read"):
                self._frozen = FrozenIndex(self._index)
            self._tried = time.monotonic()
            self._warn(error)

    def _open(self, doing: str) -> None:
        """Open the index and the table of keys.

        Raises:
            StoreError: As for the class, also on a full disk.
        """
        with self.faults(doing):
            check_layout(self.folder)
            make_root(self.folder, self._key_file.name)
            for private in (self.folder / "arrays", self._index):
                make_private(private)
            set_aside_damaged(self.folder, self._index, self._key_file)
            check_settings(self._index / "cache.db")
            cache = diskcache.Cache(str(self._index), disk=JSONOnlyDisk, **SETTINGS)
            try:
                mark_layout(self.folder)
                keys = KeyIndex(self._key_file)
                hide(self._key_file)
            except BaseException:
                cache.close()
                raise
            self._cache, self._keys = cache, keys

    def _only_reading(self) -> FrozenIndex | None:
        """Return the rows in memory while the index cannot be opened, else None.

        It is tried again after ``_RETRY_SECONDS``: the disk may have space again.
        """
        if self._frozen is None:
            return None
        with self._opening:
            if time.monotonic() - self._tried > _RETRY_SECONDS:
                with suppress(StoreError):
                    self._reopen()
            return self._frozen

    def _reopen(self) -> None:
        """Open an index that could not be opened before.

        Raises:
            StoreError: If it still cannot be opened.
        """
        if self._frozen is None:
            return
        with self._opening:
            if self._frozen is not None:
                self._tried = time.monotonic()
                self._open("write to")
                self._frozen = None
                self._said = ""

    def _warn(self, error: StoreError) -> None:
        """Log once that the store cannot be written to."""
        if _cause_of(error) != self._said:
            self._said = _cause_of(error)
            text = f"Cannot write to the store in {self.folder}: {self._said}"
            log.warning("%s What is stored can still be read.", text)

    @contextmanager
    def optional(self) -> Iterator[None]:
        """Write what can be computed again in the block; on a full disk, warn and go on."""
        try:
            yield
        except StoreError as error:
            if not error.unwritable:
                raise
            self._warn(error)

    def check_writable(self) -> None:
        """Write a small file and remove it.

        Raises:
            StoreError: If that is not possible, because the disk is full, for example.
        """
        with self.faults("write to"):
            if error := writing_error(self.folder):
                raise error

    @contextmanager
    def faults(self, doing: str) -> Iterator[None]:
        """Raise ``StoreError`` for every fault of the store's files in the block.

        Databases that are damaged are set aside at the next start.
        """
        repair = f"Delete {self._index} and {self._key_file}; the results are then computed again."
        try:
            with named_faults(f"{doing} the store in", self.folder, repair):
                yield
        except StoreError as error:
            if is_damage(error.__cause__):
                mark_damaged(self.folder)
            error.said = error.unwritable and _cause_of(error) == self._said
            raise

    def place(self, *names: str) -> Path:
        """Return the path of a file in the store's folder, after creating its parent folder."""
        path = self.folder.joinpath(*names)
        with self.faults("write to"):
            if len(names) > 1:
                make_private(self.folder / names[0])
            make_folder(path.parent)
        return path

    def _complete_keys(self) -> None:
        """Make the table of keys equal to the index, within ``changing`` of that table."""
        n_rows = len(self._cache)
        if self._keys.is_complete(n_rows):
            return
        gone = self._keys.rebuild(self._cache, n_rows)
        if len(gone) > 1:  # one: a process was killed while it deleted it
            text = "%s has lost %d entries, such as %s: it was damaged, or the machine lost power."
            log.warning(text, self._index, len(gone), gone[0])

    def remove_unused_files(self) -> None:
        """Remove files of values that no row names: a process was killed between the two."""
        if self._frozen is not None:
            return
        with self.faults("tidy"), self._keys.changing(durable=False):  # nobody is between them now
            rows = self._cache._sql("SELECT filename FROM Cache WHERE filename IS NOT NULL")
            named = {self._index / name for (name,) in rows}
            for path in self._index.glob("??/??/*.val"):
                if path not in named:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the index."""
        if self._frozen is not None:
            return
        with self.faults("close"):
            self._cache.close()
            self._keys.close()


def _cause_of(error: StoreError) -> str:
    """Return an error's text without what could not be done."""
    return str(error).partition(": ")[2]
