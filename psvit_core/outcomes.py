"""What each image gave under one model: predictions, KL and SOPs per image id; no torch.

Kept per image, so that other images, other ratios and equal kept sets reuse it, and paired drops,
agreement and per-class changes follow without running a model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from filelock import FileLock

from psvit_core.errors import StoreError
from psvit_core.records import Conditions, Interval
from psvit_core.stats import cluster_interval, paired_drop_interval, wilson_interval
from psvit_core.store import ENGINE_VERSION, Store, digest

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Outcome:
    """Results by image; all arrays are (n_images,)."""

    ids: Array  # str
    labels: Array  # int
    predictions: Array  # int
    kl: Array  # float64, nats, from the baseline's outputs; 0 for the baseline
    sops: Array  # float64, accumulates triggered by spikes, all T
    ran: Array = field(default_factory=lambda: np.array(b""))  # ``ran_with``; empty: not known

    def __post_init__(self) -> None:
        if not self.ran.ndim:  # the same for all
            object.__setattr__(self, "ran", np.full(len(self.ids), self.ran))

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, ids: Sequence[str]) -> Outcome:
        """The results of these images, in this order; all must be there."""
        where = {name: i for i, name in enumerate(self.ids.tolist())}
        index = np.array([where[name] for name in ids], dtype=int)
        return Outcome(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def among(self, ids: Sequence[str]) -> Outcome:
        """The results of those of these images that are here, in this order."""
        there = set(self.ids.tolist())
        return self.select([name for name in ids if name in there])

    def missing(self, ids: Sequence[str]) -> list[int]:
        """Positions in ``ids`` that have no result here."""
        there = set(self.ids.tolist())
        return [i for i, name in enumerate(ids) if name not in there]

    def joined(self, other: Outcome) -> Outcome:
        """These results and ``other``'s."""
        return Outcome(
            **{
                f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)])
                for f in fields(self)
            }
        )

    @property
    def runs(self) -> frozenset[bytes]:
        """With what these were run (``ran_with``), as far as it is known."""
        return frozenset(self.ran.tolist()) - {b""}

    @property
    def correct(self) -> Array:
        """Whether each image is classified correctly."""
        return self.predictions == self.labels

    def accuracy(self, cluster: int | None = None) -> Interval:
        """Top-1 accuracy, a fraction, with its Wilson interval.

        Args:
            cluster: Batch size where the images of a batch influence each other: then the interval
                is a bootstrap over batches.
        """
        n_correct = int(self.correct.sum())
        if cluster:
            low, high = _cluster_interval(self.correct.astype(int), cluster)
            low, high = max(low, 0.0), min(high, 1.0)
        else:
            low, high = wilson_interval(n_correct, len(self))
        return Interval(value=n_correct / len(self), low=low, high=high)

    def drop_from(self, baseline: Outcome, cluster: int | None = None) -> Interval:
        """Paired accuracy drop in percentage points; positive: worse than the baseline.

        Args:
            baseline: The baseline's results, on these images at least.
            cluster: As for ``accuracy``.
        """
        ours, theirs = self.correct, baseline.select(self.ids.tolist()).correct
        if cluster:
            lost = theirs.astype(int) - ours.astype(int)
            low, high = (100 * max(-1.0, min(1.0, x)) for x in _cluster_interval(lost, cluster))
            return Interval(value=100 * float(lost.mean()), low=low, high=high)
        drop, low, high = paired_drop_interval(
            int((theirs & ours).sum()),
            int((theirs & ~ours).sum()),
            int((~theirs & ours).sum()),
            int((~theirs & ~ours).sum()),
        )
        return Interval(value=100 * drop, low=100 * low, high=100 * high)

    def agreement_with(self, baseline: Outcome) -> float:
        """Fraction of images with the baseline's prediction."""
        return float((self.predictions == baseline.select(self.ids.tolist()).predictions).mean())

    def by_class(
        self, baseline: Outcome, classes: Sequence[str]
    ) -> dict[str, tuple[int, int, int]]:
        """Of each class that has images: how many, correct ones, the baseline's correct ones.

        Args:
            baseline: The baseline's results, on these images at least.
            classes: Names of the classes, by label.
        """
        ours, theirs = self.correct, baseline.select(self.ids.tolist()).correct
        found = {}
        for label in np.unique(self.labels).tolist():
            own = self.labels == label
            counts = (int(own.sum()), int(ours[own].sum()), int(theirs[own].sum()))
            name = classes[label]
            found[f"{name} ({label})" if name in found else name] = counts  # names may be twice
        return found


def _cluster_interval(values: Array, cluster: int) -> tuple[float, float]:
    parts = [values[low : low + cluster] for low in range(0, len(values), cluster)]
    return cluster_interval([float(p.sum()) for p in parts], [len(p) for p in parts])


def ran_with(device: str, batch: int) -> Array:
    """What no key names and results are still told with: the device and the batch, as bytes."""
    return np.array(f"{device} {batch}".encode())


def as_run(conditions: Conditions, runs: Collection[bytes]) -> Conditions:
    """Conditions with the device and batch that results were run with, whoever asks for them.

    Args:
        conditions: As asked for; kept where no result tells.
        runs: ``Outcome.runs`` of all results; of several the device is ``mixed`` or the batch 0.
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
    """KL(baseline || model) of the softmax outputs per image, nats, (n_images,) float64."""
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
) -> str:
    """The key of a model's results: all that determines them but the image.

    Args:
        weights_hash: Of the full model.
        kept: Units that stay, of every group that loses some.
        transform: Name of the transform.
        T: Time steps.
        precision: Of the arithmetic.
        form: ``replayed`` (a sweep's cells and their baseline), ``silenced`` or ``pruned``
            (surgery): in float32 their reduction orders may flip a spike.
        batches: Identifies the exact batches (``batches_key``) where an image's results depend on
            them; empty otherwise.
    """
    chosen = {group: list(units) for group, units in kept.items()}
    parts = [ENGINE_VERSION, weights_hash, digest(chosen), transform, T, precision, form]
    return digest([*parts, batches] if batches else parts)


def batches_key(coupled: bool, batch: int, ids: Sequence[str]) -> str:
    """What ``outcome_key`` takes as ``batches``: batch size and image order of a coupled model."""
    return digest([batch, list(ids)]) if coupled else ""


def load_outcome(store: Store, key: str) -> Outcome | None:
    """The results kept under ``key``, or None.

    Raises:
        StoreError: If the entry is damaged.
    """
    arrays = store.get_arrays(key)
    if arrays is None:
        return None
    names = {f.name for f in fields(Outcome)}
    if names - arrays.keys() - {"ran"}:  # which was not kept at first
        raise StoreError(f"Entry {key} in {store.folder} lacks arrays. Delete it; it is made anew.")
    return Outcome(**{name: arrays[name] for name in names & arrays.keys()})


def save_outcome(store: Store, key: str, outcome: Outcome) -> None:
    """Keep results under ``key``."""
    store.put_arrays(key, {f.name: getattr(outcome, f.name) for f in fields(outcome)})


def add_outcome(store: Store, key: str, outcome: Outcome) -> None:
    """Add results to those kept under ``key``; images that are there stay as they are.

    Any number of processes may add at the same time.
    """
    with FileLock(store.place("locks", f"outcome-{key[:2]}.lock")):
        known = load_outcome(store, key)
        if known is not None:
            new = known.missing(outcome.ids.tolist())
            if not new:
                return
            outcome = known.joined(outcome.select([str(outcome.ids[i]) for i in new]))
        save_outcome(store, key, outcome)
