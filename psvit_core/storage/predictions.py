"""Results of single images under one model: predictions, KL and SOPs by image id; no torch.

Because they are stored per image, runs on other images or ratios and plans with equal kept units
reuse them. Paired drops, agreement and per-class changes follow without running a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from psvit_core.errors import StoreError
from psvit_core.records import Conditions, Interval
from psvit_core.stats import cluster_interval, paired_drop_interval, wilson_interval
from psvit_core.storage.faults import StoreLock
from psvit_core.storage.store import ENGINE_VERSION, Arrays, Store, digest

TOP5_CLASSES = 20  # the smallest number of classes whose top-5 accuracy is reported
MOST_CONFUSIONS = 200
_TOGETHER = 64  # results that are written at once, each under a lock
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Outcome:
    """Results per image; all arrays are (n_images,)."""

    ids: Array  # str
    labels: Array  # int
    predictions: Array  # int
    kl: Array  # float64, nats, from the baseline's outputs; 0 for the baseline
    sops: Array  # float64, accumulates triggered by spikes, all T
    ran: Array = field(default_factory=lambda: np.array(b""))  # ``ran_with``; empty: unknown

    def __post_init__(self) -> None:
        if not self.ran.ndim:  # one value for all images
            object.__setattr__(self, "ran", np.full(len(self.ids), self.ran))

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, ids: Sequence[str]) -> Outcome:
        """Return the results of these images, in this order; all must exist."""
        position = {name: i for i, name in enumerate(self.ids.tolist())}
        index = np.array([position[name] for name in ids], dtype=int)
        return Outcome(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def among(self, ids: Sequence[str]) -> Outcome:
        """Return the results of those of these images that have any, in this order."""
        known = set(self.ids.tolist())
        return self.select([name for name in ids if name in known])

    def missing(self, ids: Sequence[str]) -> list[int]:
        """Return the positions in ``ids`` of images without a result."""
        known = set(self.ids.tolist())
        return [i for i, name in enumerate(ids) if name not in known]

    def joined(self, other: Outcome) -> Outcome:
        """Return these results followed by ``other``'s."""
        return Outcome(
            **{
                f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)])
                for f in fields(self)
            }
        )

    @property
    def runs(self) -> frozenset[bytes]:
        """Devices and batch sizes of these results (``ran_with``), without unknown ones."""
        return frozenset(self.ran.tolist()) - {b""}

    @property
    def correct(self) -> Array:
        """True for each image that is classified correctly."""
        return self.predictions == self.labels

    def accuracy(self, cluster: int | None = None) -> Interval:
        """Return the top-1 accuracy, a fraction, with its 95 % Wilson interval.

        Args:
            cluster: Batch size if the images of a batch influence each other; the interval is then
                a bootstrap over batches, and contains Wilson's.
        """
        return _share(self.correct, cluster)

    def drop_from(self, baseline: Outcome, cluster: int | None = None) -> Interval:
        """Return the paired accuracy drop, in percentage points; positive: worse than the baseline.

        Args:
            baseline: The baseline's results, at least on these images.
            cluster: As for ``accuracy``; the interval then contains Newcombe's.
        """
        ours, theirs = self.correct, baseline.select(self.ids.tolist()).correct
        drop, low, high = paired_drop_interval(
            int((theirs & ours).sum()),
            int((theirs & ~ours).sum()),
            int((~theirs & ours).sum()),
            int((~theirs & ~ours).sum()),
        )
        if cluster:
            lost = theirs.astype(int) - ours.astype(int)
            low, high = _cluster_interval(lost, cluster, (low, high))
            low, high = max(low, -1.0), min(high, 1.0)
        return Interval(value=100 * drop, low=100 * low, high=100 * high)

    def agreement_with(self, baseline: Outcome) -> float:
        """Return the fraction of images with the baseline's prediction."""
        return float((self.predictions == baseline.select(self.ids.tolist()).predictions).mean())

    def confusions(
        self, baseline: Outcome, classes: Sequence[str]
    ) -> tuple[tuple[str, str, int, int], ...]:
        """Return (class, predicted class, images, images of the baseline) of wrong predictions.

        Those whose numbers differ most come first; at most ``MOST_CONFUSIONS``.

        Args:
            baseline: The baseline's results, at least on these images.
            classes: Names of the classes, by label.
        """
        theirs = baseline.select(self.ids.tolist()).predictions
        counts = [
            Counter(zip(self.labels.tolist(), predictions.tolist(), strict=True))
            for predictions in (self.predictions, theirs)
        ]
        pairs = [pair for pair in sorted({*counts[0], *counts[1]}) if pair[0] != pair[1]]
        pairs.sort(key=lambda pair: -abs(counts[0][pair] - counts[1][pair]))

        def name(label: int) -> str:
            return classes[label] if 0 <= label < len(classes) else str(label)

        return tuple(
            (name(label), name(predicted), counts[0][label, predicted], counts[1][label, predicted])
            for label, predicted in pairs[:MOST_CONFUSIONS]
        )

    def by_class(
        self, baseline: Outcome, classes: Sequence[str]
    ) -> dict[str, tuple[int, int, int]]:
        """Return (images, correct, correct of the baseline) of each class that has images.

        Args:
            baseline: The baseline's results, at least on these images.
            classes: Names of the classes, by label.
        """
        ours, theirs = self.correct, baseline.select(self.ids.tolist()).correct
        found = {}
        for label in np.unique(self.labels).tolist():
            own = self.labels == label
            counts = (int(own.sum()), int(ours[own].sum()), int(theirs[own].sum()))
            name = classes[label]
            found[f"{name} ({label})" if name in found else name] = counts  # names may repeat
        return found


def top5_accuracy(
    logits: Array, labels: Sequence[int], cluster: int | None = None
) -> Interval | None:
    """Return the top-5 accuracy, a fraction with its 95 % interval.

    Args:
        logits: (n_images, n_classes).
        labels: The true classes.
        cluster: As for ``Outcome.accuracy``.

    Returns:
        None below ``TOP5_CLASSES`` classes, where it says little.
    """
    if logits.shape[1] < TOP5_CLASSES:
        return None
    own = logits[np.arange(len(labels)), list(labels)][:, None]
    return _share((logits > own).sum(axis=1) < 5, cluster)


def _share(hits: Array, cluster: int | None) -> Interval:
    """Return the fraction of hits with its 95 % interval."""
    n_hits = int(hits.sum())
    low, high = wilson_interval(n_hits, len(hits))
    if cluster:
        low, high = _cluster_interval(hits.astype(int), cluster, (low, high))
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(value=n_hits / len(hits), low=low, high=high)


def _cluster_interval(
    values: Array, cluster: int, independent: tuple[float, float]
) -> tuple[float, float]:
    parts = [values[low : low + cluster] for low in range(0, len(values), cluster)]
    sums, sizes = [float(p.sum()) for p in parts], [len(p) for p in parts]
    return cluster_interval(sums, sizes, independent=independent)


def ran_with(device: str, batch: int) -> Array:
    """Return device and batch size as bytes: conditions that are not part of any key."""
    return np.array(f"{device} {batch}".encode())


def as_run(conditions: Conditions, runs: Collection[bytes]) -> Conditions:
    """Return conditions with the device and batch size that the stored results were run with.

    Args:
        conditions: Conditions of the request; unchanged if no result knows its own.
        runs: ``Outcome.runs`` of all results. Several devices give ``mixed``, several batches 0.
    """
    if not runs:
        return conditions
    devices, batches = (
        set(found) for found in zip(*(run.decode().split() for run in runs), strict=True)
    )
    return replace(
        conditions,
        device=devices.pop() if len(devices) == 1 else "mixed",
        batch=int(batches.pop()) if len(batches) == 1 else 0,
    )


def kl_divergence(baseline_logits: Array, logits: Array) -> Array:
    """Return KL(baseline || model) of the softmax outputs per image.

    Args:
        baseline_logits: (n_images, n_classes).
        logits: (n_images, n_classes).

    Returns:
        (n_images,) float64, nats.
    """
    p, q = _log_softmax(baseline_logits), _log_softmax(logits)
    return np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def outcome_key(
    weights_hash: str,
    kept: Mapping[str, Sequence[int]],
    *,
    transform: str,
    T: int,
    precision: str,
    form: str,
    batches: str = "",
    counting: int = 1,
) -> str:
    """Return the key of a model's results: everything that determines them except the image.

    Args:
        weights_hash: Hash of the unpruned model's weights.
        kept: Units that stay, of every group that loses some.
        transform: Name of the transform.
        T: Time steps.
        precision: Precision of the arithmetic.
        form: ``replayed`` (a sweep's cells and their baseline), ``silenced`` or ``pruned``
            (surgery). Their reduction orders differ, which may flip a spike in float32. What
            recovered a cell is appended (``SweepSpec.recovered_by``).
        batches: The exact batches (``batches_key``) if an image's results depend on them; empty
            otherwise.
        counting: Rule by which spikes are counted.
    """
    chosen = {group: list(units) for group, units in kept.items()}
    parts = [ENGINE_VERSION, weights_hash, digest(chosen), transform, T, precision, form]
    parts += [batches] if batches else []
    return digest([*parts, f"counting {counting}"] if counting > 1 else parts)


def batches_key(coupled: bool, batch: int, ids: Sequence[str]) -> str:
    """Return the ``batches`` of ``outcome_key``: batch size and image order of a coupled model."""
    return digest([batch, list(ids)]) if coupled else ""


def load_outcome(store: Store, key: str) -> Outcome | None:
    """Return the results under ``key``, or None.

    Raises:
        StoreError: If the entry is damaged.
    """
    arrays = store.get_arrays(key)
    if arrays is None:
        return None
    names = {f.name for f in fields(Outcome)}
    if names - arrays.keys() - {"ran"}:  # which old versions did not store
        raise StoreError(
            f"Entry {key} in {store.folder} lacks arrays. Delete it; its results are computed "
            "again."
        )
    return Outcome(**{name: arrays[name] for name in names & arrays.keys()})


def save_outcome(store: Store, key: str, outcome: Outcome) -> None:
    """Store results under ``key``."""
    store.put_arrays(key, _arrays(outcome))


def _arrays(outcome: Outcome) -> Arrays:
    return {f.name: getattr(outcome, f.name) for f in fields(outcome)}


def add_outcome(store: Store, key: str, outcome: Outcome) -> None:
    """Add results under ``key``; images that have results already keep them.

    Any number of processes may add at the same time.
    """
    add_outcomes(store, {key: outcome})


def add_outcomes(store: Store, outcomes: Mapping[str, Outcome]) -> None:
    """Add results under several keys (``add_outcome``); together they take little longer than one.

    A process that is stopped has added all results of some keys, and none of the others.
    """
    keys = sorted(outcomes)  # in one order everywhere, so that no two processes wait for each other
    for first in range(0, len(keys), _TOGETHER):
        some = keys[first : first + _TOGETHER]
        names = [f"outcome-{start}.lock" for start in sorted({key[:2] for key in some})]
        with ExitStack() as locks:
            for name in names:
                locks.enter_context(StoreLock(store.place("locks", name)))
            found = {key: _with_known(store, key, outcomes[key]) for key in some}
            store.put_all_arrays({key: _arrays(o) for key, o in found.items() if o is not None})


def _with_known(store: Store, key: str, outcome: Outcome) -> Outcome | None:
    """Return stored results with new ones; None if there are no new ones."""
    known = load_outcome(store, key)
    if known is None:
        return outcome
    new = known.missing(outcome.ids.tolist())
    return known.joined(outcome.select([str(outcome.ids[i]) for i in new])) if new else None
