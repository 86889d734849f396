"""Latencies predicted from tables whose layers' times follow known laws."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from psvit_core.plan.latency import REST, PredictedLatency, predictor
from psvit_core.planners import make_plan
from psvit_core.records import LatencyTable, LayerLatency, Machine, PrunePlan
from tests.made import hand_made

FULL = {"a": 16, "b": 20, "c": 8}
GRID = {"a": (16, 12, 8, 2), "b": (20, 10, 4), "c": (8, 4, 1)}


def layer(groups: tuple[str, ...], law: Callable[..., float], name: str = "x") -> LayerLatency:
    widths = tuple(product(*(GRID[g] for g in groups)))
    return LayerLatency(
        name=name, kind="Linear", groups=groups, widths=widths, ms=tuple(law(*w) for w in widths)
    )


def test_products_of_two_widths_are_exact() -> None:
    at = predictor(layer(("a", "b"), lambda a, b: 1 + 0.5 * a + 0.25 * b + 2 * a * b), FULL)
    for a, b in ((16, 20), (11, 7), (2, 4), (3, 19)):
        assert at({"a": a, "b": b, "c": 1}) == pytest.approx(1 + 0.5 * a + 0.25 * b + 2 * a * b)
    assert at({"a": 1, "b": 4}) == at({"a": 2, "b": 4})  # below the grid: its end


def test_a_bent_line_is_kept_between_its_points() -> None:
    at = predictor(layer(("a",), lambda a: {16: 9.0, 12: 8.0, 8: 3.0, 2: 2.0}[a]), FULL)
    assert [at({"a": a}) for a in (16, 14, 12, 10, 5)] == [9.0, 8.5, 8.0, 5.5, 2.5]


def test_without_groups_outliers_do_not_count() -> None:
    found = LayerLatency(name="x", kind="Linear", groups=(), widths=((),) * 3, ms=(2.0, 90.0, 2.5))
    assert predictor(found, FULL)({}) == 2.5


def test_three_groups_and_holes_are_fitted() -> None:
    def law(a: int, b: int, c: int) -> float:
        return 1 + 3 * (a / 16 + b / 20 + c / 8) / 3 + 5 * (a / 16) * (b / 20) * (c / 8)

    whole = layer(("a", "b", "c"), law)
    assert predictor(whole, FULL)({"a": 5, "b": 15, "c": 3}) == pytest.approx(law(5, 15, 3))
    two = layer(("a", "b"), lambda a, b: 1 + 4 * (a / 16) * (b / 20))
    holed = LayerLatency(name="x", kind="", groups=("a", "b"), widths=two.widths[:7], ms=two.ms[:7])
    assert predictor(holed, FULL)({"a": 5, "b": 15}) == pytest.approx(1 + 4 * (5 / 16) * 0.75)
    falling = LayerLatency(
        name="x", kind="", groups=("a", "b"), widths=((16, 20), (8, 10)), ms=(9, 1)
    )
    assert predictor(falling, FULL)({"a": 1, "b": 1}) == 0.0


def table(**changes: object) -> LatencyTable:
    """Return the table of the model of ``hand_made``: 3 ms a group, 1 ms rest at full width."""
    names = ("robust", "fragile")
    fields = {
        "model": "made",
        "weights_hash": "0",
        "machine": Machine(device="cpu", processor="P", threads=2, torch="2", kernels="plain"),
        "precision": "float32",
        "T": 4,
        "batch": 1,
        "input_shape": (1, 8, 8),
        "full_widths": dict.fromkeys(names, 20),
        "total_ms": 7.0,
        "rest_ms": 1.0,
        "rest_slope_ms": 0.5,
        "layers": tuple(
            LayerLatency(name=n, kind="L", groups=(n,), widths=((20,), (2,)), ms=(3.0, 0.3))
            for n in names
        ),
    }
    return LatencyTable(**{**fields, **changes})  # type: ignore[arg-type]


def test_layers_add_up_and_the_rest_is_stated() -> None:
    predicted = PredictedLatency(table())
    assert predicted.layers(None) == {"robust": 3.0, "fragile": 3.0, REST: 1.0}
    assert predicted(None) == 7.0
    plan = PrunePlan(
        model="made", weights_hash="0", criterion="l2", kept={"robust": tuple(range(8))}
    )
    # 8 of 20 units: 0.4 * 3 ms; 30 % of all channels are gone, so the rest takes 0.3 * 0.5 ms less
    assert predicted.layers(plan) == pytest.approx({"robust": 1.2, "fragile": 3.0, REST: 0.85})
    assert predicted.saving(plan) == pytest.approx(1 - 5.05 / 7)
    assert "2 threads, batch 1" in predicted.note
    assert LatencyTable.from_dict(table().to_dict()) == table()


def test_a_latency_target_is_planned_from_the_table() -> None:
    sweep = hand_made({"robust": 0.001, "fragile": 0.01})
    predicted = PredictedLatency(table())
    plan = make_plan(sweep, "optimal", saving=0.3, resource="latency", cost=predicted)
    assert 0.3 <= predicted.saving(plan) < 0.36
    assert "latency predicted from layers timed on P" in plan.note
    assert "latency measured" not in plan.note
