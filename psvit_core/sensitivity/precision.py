"""The check that a sweep in a reduced precision predicts as float32 does.

A part of the finished sweep runs in float32, too: the unpruned network, and every group at one
ratio, on the first images, which every cell of a progressive sweep has. The results are those of a
float32 sweep like any others.
"""

from __future__ import annotations

from dataclasses import replace

from psvit_core.evaluate.precision import n_sampled
from psvit_core.records import PrecisionCheck
from psvit_core.sensitivity.spec import FIRST_STAGE, SweepSpec, check_key
from psvit_core.storage.predictions import load_outcome
from psvit_core.storage.store import Store


def exact_part(spec: SweepSpec) -> SweepSpec:
    """Return the part of a sweep that also runs in float32: the middle ratio of every group."""
    n_images = n_sampled(len(spec.ids), spec.cluster, FIRST_STAGE)
    conditions = replace(spec.conditions, precision="float32", n_images=n_images)
    middle = spec.ratios[len(spec.ratios) // 2]
    return replace(
        spec, ratios=(middle,), ids=spec.ids[:n_images], conditions=conditions, mode="exact"
    )


def compared(store: Store, spec: SweepSpec, exact: SweepSpec) -> PrecisionCheck:
    """Compare the predictions of a finished sweep with those of its float32 part; keep the result.

    Args:
        store: The store with both results.
        spec: The sweep.
        exact: Its part (``exact_part``), finished.
    """
    n_equal = _n_equal(store, spec.baseline_key, exact.baseline_key, exact.ids)
    of_cells = [
        _n_equal(store, spec.key_of(cell.plan), cell.key, exact.ids)
        for cell in exact.cells()
        if cell.plan.kept
    ]
    check = PrecisionCheck(
        n_images=len(exact.ids),
        n_equal=n_equal,
        n_cells=len(of_cells),
        n_equal_cells=sum(of_cells),
    )
    with store.optional():
        store.put(check_key(spec), check.to_dict())
    return check


def _n_equal(store: Store, key: str, exact_key: str, ids: tuple[str, ...]) -> int:
    reduced, exact = load_outcome(store, key), load_outcome(store, exact_key)
    assert reduced is not None
    assert exact is not None
    return int((reduced.select(ids).predictions == exact.select(ids).predictions).sum())
