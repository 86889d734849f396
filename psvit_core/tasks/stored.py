"""Find what a store has for a subject: its sweep, and the archive of its measured plans."""

from __future__ import annotations

from collections.abc import Collection

from psvit_core.pareto import (
    ParetoArchive,
    ParetoPoint,
    find_archives,
    list_quantized,
    read_archive,
)
from psvit_core.records import ModelSummary, counting_of, sweep_recovery
from psvit_core.sensitivity.spec import load_spec, sweep_keys
from psvit_core.storage.store import Store
from psvit_core.tasks.matching import Matcher


def find_sweep(
    store: Store, matcher: Matcher, summary: ModelSummary, requested: Collection[str] = ()
) -> str | None:
    """Return the store key of the sweep of a model, split and images, if there is one.

    Args:
        store: The store.
        matcher: Of the subject. With a limit, only sweeps on as many images are found.
        summary: The model.
        requested: Keys that come first: of sweeps that the subject's jobs started.

    Returns:
        The newest requested sweep; without one that on the most images, the newest of them.
    """
    subject = matcher.subject
    n_images: dict[str, int] = {}
    for key in sweep_keys(store):
        spec = load_spec(store, key)
        same_weights = spec.summary.weights_hash == summary.weights_hash
        same_weights &= spec.conditions.counting == counting_of(summary.family)
        # ``cluster`` is the batch size where it changes numbers
        same_weights &= spec.conditions.recovery == sweep_recovery(subject.recovery)
        same_run = matcher.same_run(spec.conditions, spec.cluster, summary.T)
        if not (same_weights and same_run):
            continue
        if key in requested:
            return key
        if subject.limit in (None, spec.conditions.n_images):
            n_images[key] = spec.conditions.n_images
    return max(n_images, key=lambda key: n_images[key], default=None)


def find_archive(
    store: Store,
    matcher: Matcher,
    summary: ModelSummary,
    split: str | None = None,
    *,
    improved: bool = False,
) -> ParetoArchive | None:
    """Return all plans measured for a model and data, if there are any.

    Measurements on different numbers of images are never mixed. The subject's limit chooses;
    without one, the archive of most images, then the newest.

    Args:
        store: The store.
        matcher: Of the subject.
        summary: The model.
        split: Split instead of the subject's: ``test`` to judge what was planned.
        improved: Include all recoveries and fine-tuned models; otherwise only plans measured
            under the subject's recovery.
    """
    subject = matcher.subject
    heads = [
        head
        for head in find_archives(store, summary.weights_hash)
        if head.counting == counting_of(summary.family)
        and matcher.same_run(head, head.batch, summary.T, split)
        and subject.limit in (None, head.n_images)
    ]
    if not heads:
        return None
    found = read_archive(store, heads[0])
    found = found if improved else found.under(subject.recovery)
    return found if found.points else None


def find_quantized(
    store: Store, matcher: Matcher, summary: ModelSummary, beside: ParetoArchive | None = None
) -> tuple[ParetoPoint, ...]:
    """Return the measured networks with quantized weights, pruned from a model.

    Args:
        store: The store.
        matcher: Of the subject. Only networks under its recovery, without fine-tuning, are found,
            and the unpruned one, which recovery does not change.
        summary: The model.
        beside: The archive whose images and conditions they must have; None: the subject's, on the
            most images.
    """
    found = [
        entry
        for entry in list_quantized(store, summary.weights_hash)
        if entry.counting == counting_of(summary.family)
        and matcher.same_run(entry, entry.batch, summary.T)
        and (beside is not None or matcher.subject.limit in (None, entry.n_images))
    ]
    if beside is None and found:
        beside = max(found, key=lambda entry: entry.n_images)
    return tuple(
        point
        for entry in found
        if beside is not None and entry.key == beside.key
        for point in entry.points
        if entry.under(matcher.subject.recovery).points or (point.plain and not point.plan.kept)
    )
