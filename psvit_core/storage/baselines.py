"""A full model's raw outputs by image, stored next to its outcome; no torch.

An outcome (``predictions``) is what tables and intervals need. The logits are stored apart, because
only measuring needs them and they are larger. This module is the only place that knows their key.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from psvit_core.storage.faults import StoreLock
from psvit_core.storage.predictions import Array
from psvit_core.storage.store import Arrays, Store, digest


def outputs_key(key: str) -> str:
    """Return the key of the raw outputs that belong to the outcome under ``key``."""
    return digest(["logits", key])


def load_outputs(store: Store, key: str) -> Arrays | None:
    """Load the raw outputs that belong to the outcome under ``key``, or None.

    Raises:
        StoreError: If the entry is damaged.
    """
    found = store.get_arrays(outputs_key(key))
    if found is None:
        found = store.get_arrays(digest(["answers", key]))  # sweeps of version 0.1
    return found


def add_outputs(
    store: Store,
    key: str,
    ids: Array,
    by_image: Mapping[str, Array],
    shared: Mapping[str, Array] | None = None,
) -> None:
    """Add raw outputs to those stored for an outcome; images already stored stay unchanged.

    Any number of processes may add at the same time.

    Args:
        store: The store.
        key: Key of the outcome.
        ids: Names of the images, (n_images,).
        by_image: Arrays of (n_images, ...), for example ``logits``.
        shared: Arrays that are the same for all images.
    """
    whole = {"ids": ids, **by_image}
    own_key = outputs_key(key)
    with StoreLock(store.place("locks", f"outcome-{own_key[:2]}.lock")):
        known = load_outputs(store, key)
        if known is not None:
            new = ~np.isin(ids, known["ids"])
            whole = {name: np.concatenate([known[name], whole[name][new]]) for name in whole}
        store.put_arrays(own_key, {**whole, **(shared or {})})
