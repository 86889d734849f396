"""Results that ship with a model, so that a first look needs no waiting; no torch.

A bundle is one file per model: a finished sweep, image by image, and the archive of measured plans,
made by ``scripts/make_demo_store.py``. ``DemoStore`` shows it beneath a store of one's own: read
only, behind whatever stands under the same key there (image by image where it is an outcome), and
only while the bundle is of this engine and these weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from psvit_core.files import write_whole
from psvit_core.outcomes import Outcome, ran_with
from psvit_core.store import ENGINE_VERSION, Arrays, Store
from psvit_core.zoo.cards import list_models, shipped_summary

FOLDER = Path(__file__).parent / "zoo" / "demo"
SWITCH_ENV = "PSVIT_DEMO"  # "0": nothing shipped is shown
_BUNDLE_VERSION = 1


class Bundle:
    """A model's shipped results, read.

    Args:
        entries: JSON values by key, as in a store.
        keys: Keys of the outcomes.
        ids: Names of the images, (n_images,); the same for all outcomes.
        labels: Their classes, (n_images,).
        predictions: (n_outcomes, n_images).
        kl: (n_outcomes, n_images), nats.
        sops: (n_outcomes, n_images).
    """

    def __init__(
        self,
        entries: Mapping[str, Any],
        keys: list[str],
        ids: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any],
        predictions: np.ndarray[Any, Any],
        kl: np.ndarray[Any, Any],
        sops: np.ndarray[Any, Any],
    ) -> None:
        self.entries = entries
        self.keys = keys
        self._row = {key: i for i, key in enumerate(keys)}
        self._ids, self._labels = ids, labels
        self._predictions, self._kl, self._sops = predictions, kl, sops
        swept = (e["spec"]["conditions"] for e in entries.values() if "spec" in e)
        self._ran = next((ran_with(c["device"], c["batch"]) for c in swept), np.array(b""))

    def arrays(self, key: str) -> Arrays | None:
        """The outcome under ``key`` as a store keeps it, or None."""
        row = self._row.get(key)
        if row is None:
            return None
        return {
            "ids": self._ids,
            "labels": self._labels.astype(np.int64),
            "predictions": self._predictions[row].astype(np.int64),
            "kl": self._kl[row].astype(np.float64),
            "sops": self._sops[row].astype(np.float64),
            "ran": np.full(len(self._ids), self._ran),
        }


def baseline_key(weights_hash: str) -> str:
    """Where a bundle keeps the measurement of the unpruned model."""
    return f"baseline/{weights_hash}"


def bundle_path(model: str) -> Path:
    """Where a model's bundle is."""
    return FOLDER / f"{model}.npz"


def write_bundle(
    path: Path, weights_hash: str, entries: Mapping[str, Any], outcomes: Mapping[str, Outcome]
) -> Path:
    """Write a bundle.

    Predictions and SOPs are exact; KL is rounded to single precision.

    Args:
        path: File.
        weights_hash: Of the model that the results are of.
        entries: JSON values by key, as in a store.
        outcomes: By key; all of the same images in the same order.
    """
    first = next(iter(outcomes.values()))
    if any(not np.array_equal(o.ids, first.ids) for o in outcomes.values()):
        raise ValueError("the outcomes of a bundle are of the same images in the same order")
    head = {
        "version": _BUNDLE_VERSION, "engine": ENGINE_VERSION, "weights_hash": weights_hash,
        "keys": list(outcomes),
    }  # fmt: skip

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(
                file,
                head=_bytes(head),
                entries=_bytes(dict(entries)),
                ids=first.ids,
                labels=first.labels.astype(np.uint16),
                predictions=np.stack([o.predictions.astype(np.uint16) for o in outcomes.values()]),
                kl=np.stack([o.kl.astype(np.float32) for o in outcomes.values()]),
                sops=np.stack([o.sops for o in outcomes.values()]),
            )

    return write_whole(path, write)


def _bytes(value: object) -> np.ndarray[Any, Any]:
    return np.frombuffer(json.dumps(value, separators=(",", ":")).encode(), dtype=np.uint8)


def _value(data: np.ndarray[Any, Any]) -> Any:
    return json.loads(data.tobytes())


def read_bundle(path: Path, weights_hash: str) -> Bundle | None:
    """The bundle in a file; None if it is of another engine, other weights or another form."""
    with np.load(path, allow_pickle=False) as file:
        head = _value(file["head"])
        if (head["version"], head["engine"], head["weights_hash"]) != (
            _BUNDLE_VERSION, ENGINE_VERSION, weights_hash,
        ):  # fmt: skip
            return None
        return Bundle(
            _value(file["entries"]), head["keys"],
            *(file[name] for name in ("ids", "labels", "predictions", "kl", "sops")),
        )  # fmt: skip


@cache
def shipped_bundles() -> tuple[Bundle, ...]:
    """The bundles of all models that have one; none where ``PSVIT_DEMO=0``."""
    if os.environ.get(SWITCH_ENV) == "0":
        return ()
    found = []
    for name in list_models():
        path, summary = bundle_path(name), shipped_summary(name)
        if summary is not None and path.exists():
            found.append(read_bundle(path, summary.weights_hash))
    return tuple(bundle for bundle in found if bundle is not None)


class DemoStore(Store):
    """A store with the shipped results beneath it: what is kept in the folder comes first.

    Args:
        folder: As for ``Store``; nothing of the bundles is written there.
    """

    def get(self, key: str) -> Any:
        """The JSON value under ``key``, or None."""
        own = super().get(key)
        if own is not None:
            return own
        return next((b.entries[key] for b in shipped_bundles() if key in b.entries), None)

    def changes(self, prefix: str) -> dict[str, float]:
        """Keys that begin with ``prefix``, one's own first; what is shipped never changes."""
        times = super().changes(prefix)
        for bundle in shipped_bundles():
            times |= {k: 0.0 for k in bundle.entries if k.startswith(prefix) and k not in times}
        return times

    def get_arrays(self, key: str) -> Arrays | None:
        """The arrays under ``key``, or None; of an outcome, shipped images stand behind one's own.

        One's own may hold a few images only: the shipped ones are of the same cell.
        """
        own = super().get_arrays(key)
        shipped = next((a for b in shipped_bundles() if (a := b.arrays(key)) is not None), None)
        if own is None or shipped is None:
            return own or shipped
        more = ~np.isin(shipped["ids"], own["ids"])
        return {name: np.concatenate([own[name], shipped[name][more]]) for name in own}
