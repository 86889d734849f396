"""Cells of a benchmark that can resume: one JSON file, written after each cell.

Several processes may write to one file.
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
from psvit_core.storage.predictions import Array
from psvit_core.storage.store import ENGINE_VERSION

Cell = dict[str, Any]

PUBLISHED = ("psvit", "prime")
#: Ways to make a plan. A number is the measuring budget of ``optimal``; its default is 20.
HOWS = ("predicted", "measured", "measured 80")


class Cells:
    """Results by settings, in one file.

    Args:
        path: The file; read if it exists.
        head: Settings, versions and machine, stored next to the cells.

    Raises:
        SystemExit: If another engine version wrote the file.
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
                raise SystemExit(
                    f"{path} was written by engine version {document['engine']}. Move or delete it."
                )

    def has(self, settings: Sequence[Any]) -> bool:
        """Return whether a cell is measured."""
        return _key(settings) in self.cells

    def get(self, *settings: Any) -> Cell | None:
        """Return a cell, or None."""
        return self.cells.get(_key(settings))

    def make(self, settings: Sequence[Any], measure: Callable[[], Cell]) -> Cell:
        """Return the cell of these settings; measure and write it first if it is missing."""
        key = _key(settings)
        if key not in self.cells:
            cell = measure()
            with FileLock(f"{self.path}.lock"):
                if self.path.exists():  # other processes may have written since
                    self.cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
                self.cells.setdefault(key, cell)
                self.write()
            print(f"{time.strftime('%X')} {key}", file=sys.stderr, flush=True)
        return self.cells[key]

    def write(self) -> None:
        """Write the file atomically."""
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in self.cells.items())
        head = json.dumps(self.head, indent=1)[:-2]
        write_text(self.path, f'{head},\n "cells": {{\n{lines}\n}}}}\n')

    def best_plan(
        self, model: str, policy: str, saving: float, hows: Sequence[str] = HOWS
    ) -> Cell | None:
        """Return a policy's best plan at a saving on the val split, by accuracy, then by KL.

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
    """Return which images are classified correctly, one bit per image."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, n_images: int) -> Array:
    """Return the inverse of ``pack``, (n_images,) bool."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))
    return bits[:n_images].astype(bool)
