"""Progressive sweeps: valid bounds, cells that stop early, several processes on one table."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psvit_core.errors import UnknownNameError
from psvit_core.incremental import executor
from psvit_core.runtime import Run
from psvit_core.sensitivity.spec import ENOUGH_HALF_WIDTH, ENOUGH_SHARE, TOO_MUCH
from psvit_core.sensitivity.sweep import make_spec, sweep
from psvit_core.stats import drop_bounds_of_all
from psvit_core.storage.store import Store
from tests.tiny import tiny_data, tiny_model

RATIOS = (0.25, 0.75)


def test_bounds_are_valid_for_samples_without_replacement() -> None:
    random = np.random.RandomState(0)
    n_all, n_seen, alpha = 300, 80, 0.05
    missed = 0
    for trial in range(200):
        n_lost, n_won = trial % 40, trial % 7
        kinds = np.array([1] * n_lost + [2] * n_won + [0] * (n_all - n_lost - n_won))
        seen = random.permutation(kinds)[:n_seen]
        low, high = drop_bounds_of_all(
            int((seen == 1).sum()), int((seen == 2).sum()), n_seen, n_all, alpha
        )
        missed += not low <= (n_lost - n_won) / n_all <= high
    assert missed / 200 <= alpha


def test_bounds_close_when_all_images_are_seen() -> None:
    assert drop_bounds_of_all(7, 3, 50, 50, 0.05) == pytest.approx((0.08, 0.08))
    wide = drop_bounds_of_all(2, 1, 64, 750, 0.0125)
    narrow = drop_bounds_of_all(8, 4, 256, 750, 0.0125)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    none = drop_bounds_of_all(0, 0, 256, 750, 0.0125)
    assert none[0] == -none[1]
    assert 0.01 < none[1] < 0.02  # not 0: an unseen image may be lost


def test_a_progressive_sweep_stops_settled_cells(tmp_path: Path) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 300), Store(tmp_path)
    spec = make_spec(model, data, ratios=RATIOS)
    assert spec.stages == (64, 256, 300)
    reported: list[tuple[int, int]] = []
    early = sweep(
        model,
        data,
        ratios=RATIOS,
        store=store,
        mode="progressive",
        progress=lambda done, total, what: reported.append((done, total)),
    )
    whole = 16 * 300  # images that settled cells skip count as done
    assert {total for _, total in reported} == {whole}
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert reported[-1][0] == whole
    assert early.mode == "progressive"
    assert early.finished
    assert {row.n_images for row in early.rows} <= {64, 256, 300}
    assert min(row.n_images for row in early.rows) < 300
    exact = sweep(model, data, ratios=RATIOS, store=store)
    for known, true in zip(early.rows, exact.rows, strict=True):
        bounds = known.drop_of_all
        assert bounds is not None
        assert bounds.low - 1e-9 <= true.drop.value <= bounds.high + 1e-9
        if known.n_images < 300:
            half = (bounds.high - bounds.low) / 2
            enough = max(ENOUGH_HALF_WIDTH, ENOUGH_SHARE * abs(bounds.value))
            assert half <= enough or bounds.low > TOO_MUCH
        assert (true.n_images, true.settled) == (300, True)


def test_an_exact_sweep_continues_a_progressive_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 150), Store(tmp_path)
    images = watched(monkeypatch)
    first = sweep(model, data, ratios=RATIOS, store=store, mode="progressive")
    assert sum(images) == sum(row.n_images for row in first.rows)
    sweep(model, data, ratios=RATIOS, store=store)
    assert sum(images) == 16 * 150


def test_two_workers_run_no_cell_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 24)
    images = watched(monkeypatch)

    def work(_: int) -> Any:
        return sweep(model, data, ratios=RATIOS, run=Run(batch=4), store=Store(tmp_path))

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(work, range(2))
    assert one == other == sweep(model, data, ratios=RATIOS, run=Run(batch=4))
    assert sum(images) == 2 * 16 * 24  # once by both together, once by the third


def test_coupled_models_have_a_single_stage(tmp_path: Path) -> None:
    model, data = tiny_model("qkformer_cifar"), tiny_data("qkformer_cifar", 8)
    spec = make_spec(model, data, ratios=(0.5,), run=Run(batch=4), mode="progressive")
    assert spec.stages == (8,)
    assert spec.ids == data.ids


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="sweep mode"):
        sweep(tiny_model("sdt_v1"), tiny_data("sdt_v1", 3), mode="quick")


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images of every cell that runs."""
    images: list[int] = []
    run_cell = executor.IncrementalExecutor._run_cell

    def watch(self: Any, found: Any, task: Any, *rest: Any) -> Any:
        images.append(len(task.images))
        return run_cell(self, found, task, *rest)

    monkeypatch.setattr(executor.IncrementalExecutor, "_run_cell", watch)
    return images
