"""Sweeps without running a model: sizes are exact, drops follow a simple made-up rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from streamlit.testing.v1 import AppTest

from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import (
    ChannelGroup,
    FitReport,
    Interval,
    ModelSummary,
    PositionBytes,
    Schedule,
    SensitivityRow,
    SpikeExpansion,
    n_pruned,
)
from psvit_core.sensitivity.spec import SweepSpec, save_spec
from psvit_core.storage.predictions import Outcome, save_outcome
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import shipped_summary
from tests import made
from tests.patience import PATIENCE

_ROOT = Path(__file__).parents[2]

RATIOS = (0.1, 0.5, 0.9)
CONDITIONS = dataclasses.replace(made.CONDITIONS, data="digits", n_images=64, T=1, batch=125)
Drop = Callable[[ChannelGroup, float], Interval]


def summary(name: str = "e_spikeformer_digits") -> ModelSummary:
    found = shipped_summary(name)
    assert found is not None
    return found


def steep_streams(group: ChannelGroup, ratio: float) -> Interval:
    """Return 20 pp times the ratio for residual streams, and a drop within noise for others."""
    if group.kind == "residual":
        return Interval(value=20 * ratio, low=20 * ratio - 1, high=20 * ratio + 1)
    return Interval(value=0.1, low=-1.5, high=1.7)


def rows(
    model: ModelSummary, ratios: Sequence[float] = RATIOS, drop: Drop = steep_streams
) -> list[SensitivityRow]:
    return [
        SensitivityRow(
            group_id=group.group_id,
            prune_ratio=ratio,
            n_pruned=n_pruned(ratio, group.n_units, group.heads),
            accuracy=Interval(value=0.9, low=0.8, high=0.95),
            drop=drop(group, ratio),
            kl=ratio / 10,
            agreement=0.9,
            size=plan_size(model, plan_from_ratios(model, {group.group_id: ratio}, criterion="l2")),
            sops=1e6,
            n_images=64,
        )
        for group in model.groups
        for ratio in ratios
    ]


def put_sweep(
    store: Store,
    model: ModelSummary,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    *,
    n_images: int = 100,
    cost: Callable[[ChannelGroup], float] = lambda group: 25.0 if group.kind == "residual" else 4.0,
    only: Sequence[str] | None = None,
    criterion: str = "l2",
) -> SweepSpec:
    """Write a sweep of made-up outcomes to a store, as a worker would.

    Args:
        store: The store.
        model: The model; a group's drop is ``cost`` times the square of the ratio.
        ratios: The sweep's ratios.
        n_images: Number of images; their ids are made up.
        cost: Drop at ratio 1 by group, percentage points.
        only: Groups whose cells are written; all when None.
        criterion: Criterion that the sweep names; its ranking is always that of the L2 norm.
    """
    conditions = dataclasses.replace(CONDITIONS, n_images=n_images, T=model.T)
    ids = tuple(f"image-{i}" for i in range(n_images))
    if criterion not in model.rankings:
        model = dataclasses.replace(
            model, rankings={**model.rankings, criterion: model.rankings["l2"]}
        )
    spec = SweepSpec(
        summary=model, criterion=criterion, ratios=tuple(ratios), conditions=conditions, ids=ids
    )
    save_spec(store, spec)
    labels = np.arange(n_images) % 10

    def write(key: str, wrong: int, kl: float) -> None:
        outcome = Outcome(
            ids=np.array(ids),
            labels=labels,
            predictions=np.where(np.arange(n_images) < wrong, (labels + 1) % 10, labels),
            kl=np.full(n_images, kl),
            sops=np.full(n_images, 1e6),
        )
        save_outcome(store, key, outcome)

    write(spec.baseline_key, 2, 0.0)
    for group in model.groups:
        for ratio in ratios:
            if only is None or group.group_id in only:
                drop = cost(group) * ratio**2
                write(spec.cell(group, ratio).key, 2 + round(drop * n_images / 100), drop / 20)
    return spec


def fit_report(activations: int, state: int = 0, levels: int = 0) -> FitReport:
    """A report of two positions; the second one needs half of the first."""
    places = (("patch_embed", activations), ("", activations // 2))
    schedule = Schedule(
        name="all steps",
        steps=4,
        state_bytes=state,
        peak_activation_bytes=activations,
        positions=tuple(PositionBytes(position=name, bytes=n) for name, n in places),
    )
    spikes = SpikeExpansion(
        T=2, levels=4, steps=8, values={"a": 1000}, level_bits=24_000, spike_bits=32_000
    )
    return FitReport(
        model="sdt_v1_digits",
        weights_hash=summary("sdt_v1_digits").weights_hash,
        weights="float32",
        arithmetic=False,
        weight_bytes=1,
        layers={},
        schedules=(schedule,),
        schedule="all steps",
        expansion=spikes if levels else None,
        fits=(),
    )


def opened(page: str = "", **query: str) -> AppTest:
    """Open a page as a link does."""
    app = AppTest.from_file(str(_ROOT / "ui" / "shell" / "main.py"), default_timeout=PATIENCE)
    if page:
        app.switch_page(str(_ROOT / "pages" / f"{page}.py"))
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()
