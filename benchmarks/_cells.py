"""The cells of a benchmark that resumes: one JSON file, written as each cell is done.

Several processes may fill one file.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from psvit_core.files import write_text
from psvit_core.outcomes import Array
from psvit_core.store import ENGINE_VERSION

Cell = dict[str, Any]

PUBLISHED = ("psvit", "prime")
#: How a plan was made; with a number: ``optimal`` with so many measured plans in place of 20.
HOWS = ("predicted", "measured", "measured 80")


class Cells:
    """Results by settings, in one file.

    Args:
        path: The file; read if it is there.
        head: What else the file says: settings, versions, machine.

    Raises:
        SystemExit: If the file is of another engine version.
    """

    def __init__(self, path: Path, head: dict[str, Any] | None = None) -> None:
        self.path = path
        self.head = {"engine": ENGINE_VERSION, **(head or {})}
        self.cells: dict[str, Cell] = {}
        if path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            self.cells = document.pop("cells")
            if head is None:
                self.head = document
            elif document["engine"] != ENGINE_VERSION:
                raise SystemExit(f"{path} is of engine {document['engine']}. Move it away.")

    def has(self, settings: Sequence[Any]) -> bool:
        """Whether a cell is measured."""
        return _key(settings) in self.cells

    def get(self, *settings: Any) -> Cell | None:
        """A cell, or None."""
        return self.cells.get(_key(settings))

    def make(self, settings: Sequence[Any], measure: Callable[[], Cell]) -> Cell:
        """The cell of these settings, measured and written if it is not there."""
        key = _key(settings)
        if key not in self.cells:
            cell = measure()
            with FileLock(f"{self.path}.lock"):
                if self.path.exists():  # what other processes have written in the meantime
                    self.cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
                self.cells.setdefault(key, cell)
                self.write()
            print(f"{time.strftime('%X')} {key}", file=sys.stderr, flush=True)
        return self.cells[key]

    def write(self) -> None:
        """Write the file, whole or not at all."""
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in self.cells.items())
        head = json.dumps(self.head, indent=1)[:-2]
        write_text(self.path, f'{head},\n "cells": {{\n{lines}\n}}}}\n')

    def best_plan(
        self, model: str, policy: str, saving: float, hows: Sequence[str] = HOWS
    ) -> Cell | None:
        """Of a policy's plans at a saving the best one on the val split: accuracy, then KL.

        A published policy may also take a plan that it measured its way to for a larger saving:
        where only some of its plans were measured while planning, none is held against it.
        """
        found = []
        for key, cell in self.cells.items():
            kind, *settings = json.loads(key)
            if kind != "plan" or "id" not in cell:
                continue
            name, by, made_for, scope, how = settings
            further = policy in PUBLISHED and how != "predicted" and made_for > saving
            if (name, by) == (model, policy) and (made_for == saving or further) and how in hows:
                found.append({**cell, "scope": scope, "how": how})
        return max(found, key=lambda c: (c["val accuracy"], -c["val kl"]), default=None)


def _key(settings: Sequence[Any]) -> str:
    return json.dumps(list(settings))


def pack(right: Array) -> str:
    """Which images are classified correctly, a bit an image."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, n_images: int) -> Array:
    """The inverse of ``pack``, (n_images,) bool."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))
    return bits[:n_images].astype(bool)
