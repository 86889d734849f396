"""Results that ship with a model, so that the app shows some at once; no torch.

A bundle is a file of one model: a finished sweep, image by image, and the archive of measured
plans, made by ``scripts/make_demo_store.py``. A second file has the recovered sweep, whose baseline
is that of the first. ``DemoStore`` reads from bundles what the user's own store does not have. A
bundle of other weights or of another version of the computation is ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from psvit_core.files import write_atomic
from psvit_core.storage.predictions import Outcome, ran_with
from psvit_core.storage.store import ENGINE_VERSION, Arrays, Store
from psvit_core.zoo.cards import list_models, shipped_summary

FOLDER = Path(__file__).parent / "bundles"
SWITCH_ENV = "PSVIT_DEMO"  # "0" hides all shipped results
_BUNDLE_VERSION = 1


class Bundle:
    """A model's shipped results in memory.

    Args:
        entries: JSON values by key, as in a store.
        keys: Keys of the outcomes.
        ids: Names of the images, (n_images,); equal for all outcomes.
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
        """Return the outcome under ``key`` as a store's arrays, or None."""
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


def bundle_path(model: str, recovery: str = "none") -> Path:
    """Return the path of a model's bundle.

    Args:
        model: A registered model.
        recovery: Recovery of the sweep's cells (``records.sweep_recovery``).
    """
    return FOLDER / (f"{model}.npz" if recovery == "none" else f"{model}.{recovery}.npz")


def write_bundle(
    path: Path,
    weights_hash: str,
    entries: Mapping[str, Any],
    outcomes: Mapping[str, Outcome],
    kl_type: type[np.floating[Any]] = np.float32,
) -> Path:
    """Write a bundle.

    Predictions and SOPs are exact; KL is rounded.

    Args:
        path: File to write.
        weights_hash: Hash of the model's weights.
        entries: JSON values by key, as in a store.
        outcomes: Outcomes by key, all of the same images in the same order.
        kl_type: Type that KL is rounded to: half precision keeps three digits and takes half the
            space.

    Raises:
        ValueError: If the outcomes' images differ.
    """
    first = next(iter(outcomes.values()))
    if any(not np.array_equal(o.ids, first.ids) for o in outcomes.values()):
        raise ValueError("the outcomes of a bundle must have the same images in the same order")
    head = {
        "version": _BUNDLE_VERSION,
        "engine": ENGINE_VERSION,
        "weights_hash": weights_hash,
        "keys": list(outcomes),
    }

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(
                file,
                head=_bytes(head),
                entries=_bytes(dict(entries)),
                ids=first.ids,
                labels=first.labels.astype(np.uint16),
                predictions=np.stack([o.predictions.astype(np.uint16) for o in outcomes.values()]),
                kl=np.stack([o.kl.astype(kl_type) for o in outcomes.values()]),
                sops=np.stack([o.sops for o in outcomes.values()]),
            )

    return write_atomic(path, write)


def _bytes(value: object) -> np.ndarray[Any, Any]:
    return np.frombuffer(json.dumps(value, separators=(",", ":")).encode(), dtype=np.uint8)


def _value(data: np.ndarray[Any, Any]) -> Any:
    return json.loads(data.tobytes())


def read_bundle(path: Path, weights_hash: str) -> Bundle | None:
    """Read a bundle; None if its weights, computation or file format is another."""
    with np.load(path, allow_pickle=False) as file:
        head = _value(file["head"])
        if (head["version"], head["engine"], head["weights_hash"]) != (
            _BUNDLE_VERSION,
            ENGINE_VERSION,
            weights_hash,
        ):
            return None
        return Bundle(
            _value(file["entries"]),
            head["keys"],
            *(file[name] for name in ("ids", "labels", "predictions", "kl", "sops")),
        )


@cache
def shipped_bundles() -> tuple[Bundle, ...]:
    """Return the bundles of all models that have one; none if ``PSVIT_DEMO=0``."""
    if os.environ.get(SWITCH_ENV) == "0":
        return ()
    found = []
    for name in list_models():
        summary = shipped_summary(name)
        for path in map(partial(bundle_path, name), ("none", "lsq")):
            if summary is not None and path.exists():
                found.append(read_bundle(path, summary.weights_hash))
    return tuple(bundle for bundle in found if bundle is not None)


class DemoStore(Store):
    """A store that falls back to shipped results.

    Args:
        folder: As for ``Store``; shipped results are never written there.
    """

    def get(self, key: str) -> Any:
        """Return the JSON value under ``key``, stored or shipped, or None."""
        own = super().get(key)
        if own is not None:
            return own
        return next((b.entries[key] for b in shipped_bundles() if key in b.entries), None)

    def changes(self, prefix: str) -> dict[str, float]:
        """Return the keys that begin with ``prefix``; shipped ones come last and have time 0."""
        times = super().changes(prefix)
        for bundle in shipped_bundles():
            times |= {k: 0.0 for k in bundle.entries if k.startswith(prefix) and k not in times}
        return times

    def get_arrays(self, key: str) -> Arrays | None:
        """Return the arrays under ``key``, or None.

        An outcome may be stored for some images only; the shipped ones of the others are appended.
        """
        own = super().get_arrays(key)
        shipped = next((a for b in shipped_bundles() if (a := b.arrays(key)) is not None), None)
        if own is None or shipped is None:
            return own or shipped
        more = ~np.isin(shipped["ids"], own["ids"])
        return {name: np.concatenate([own[name], shipped[name][more]]) for name in own}
