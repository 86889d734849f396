"""The scaling page: its formula, its simulation and its stored sections."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks._report import RESULTS
from benchmarks._scaling_model import Costs, Simulation, Sweep, bounds, table
from benchmarks._scaling_page import PAGE, costs, demo, figures, hours_text, number

COSTS = Costs(
    n_groups=10,
    n_ratios=5,
    cell=0.01,
    full=0.02,
    prefix=0.0,
    start=0.0,
    decode=0.0,
    merge=0.0,
    image_bytes=0.0,
    result_bytes=0.0,
    link=1.0,
    delay=0.0,
)
EXACT = Sweep(ends=(1000,), open_shares=(1.0,), block=100)


def test_one_worker_takes_the_sum_of_its_work() -> None:
    by_hand = 1000 * (50 * 0.01 + 0.02)
    assert bounds(COSTS, EXACT, 1).workers == pytest.approx(by_hand)
    # A unit of all groups runs the full model again, nearly up to its end.
    assert by_hand <= Simulation(COSTS, 1).run(EXACT) <= by_hand + 1000 * 0.02


def test_more_workers_are_faster_until_something_else_limits() -> None:
    times = [Simulation(COSTS, n).run(EXACT) for n in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[3] > 6
    slow_driver = replace(COSTS, merge=0.01)
    limit = bounds(slow_driver, EXACT, 64).driver
    assert limit == pytest.approx(1000 * 50 * 0.01)
    assert limit <= Simulation(slow_driver, 64).run(EXACT) < 1.2 * limit
    slow_link = replace(COSTS, image_bytes=1.0)
    assert bounds(slow_link, EXACT, 16).link == 2 * 1000  # two nodes
    assert Simulation(slow_link, 16).run(EXACT) >= 1000


def test_an_adaptive_sweep_runs_what_is_open() -> None:
    adaptive = Sweep(ends=(100, 1000), open_shares=(1.0, 0.5), block=100)
    assert adaptive.n_cell_images == 100 + 450
    alone = [Simulation(COSTS, 1).run(sweep) for sweep in (EXACT, adaptive)]
    assert alone[1] < 0.7 * alone[0]
    rows = table(COSTS, {"adaptive": adaptive}, (1, 4))
    assert rows[0]["speed-up"] == 1.0 and 1 < float(rows[1]["speed-up"]) <= 4


def test_the_page_has_the_stored_sections() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, sections in (("scaling", (costs, figures)), ("scaling_demo", (demo,))):
        path = RESULTS / f"{name}.json"
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        assert all(document is None or section(document) in page for section in sections)


def test_numbers() -> None:
    assert [number(v) for v in (0.01234, 1500, 2.5, (64, 256))] == [
        "0.0123",
        "1,500",
        "2.5",
        "64, 256",
    ]
    assert [hours_text(h) for h in (2.0, 0.5, 0.001)] == ["2.0 h", "30.0 min", "4 s"]
