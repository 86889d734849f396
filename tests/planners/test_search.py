"""Prime, optimal and the knapsack: brute force, limits, resources, scopes and predictions."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planners import synthetic_row
from psvit_core.errors import InvalidRatioError, TargetError, UnknownNameError
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.plan.build import plan_from_ratios, reached_ratios
from psvit_core.plan.size import plan_size, plan_widths
from psvit_core.planners import (
    Problem,
    bound,
    calibrate,
    group_kls,
    make_plan,
    predict_drop,
    predict_drop_interval,
    predicted_drops,
)
from psvit_core.planners._resources import WidthForm, width_form
from psvit_core.planners._search import Knapsack, dynamic_program, solve
from psvit_core.records import (
    CLOSED_FORMS,
    POLICIES,
    ComputeTerm,
    ModelSummary,
    PrunePlan,
    SensitivityTable,
    Target,
    TensorShape,
)
from tests.made import CONDITIONS, RATIOS, TABLE, exactly, hand_made, measured_as
from tests.tiny import tiny_model


def joint_table(seed: int, n_groups: int = 4) -> SensitivityTable:
    """Return a table whose tensors connect groups, so that savings do not add up."""
    random = np.random.default_rng(seed)
    table = hand_made({f"g{i}": float(random.uniform(0.01, 1)) for i in range(n_groups)})
    names = [g.group_id for g in table.summary.groups]
    pairs = [*itertools.pairwise(names), (names[0], names[-1]), (names[0], names[0])]
    tensors = tuple(
        TensorShape(
            name=f"{a}.{b}.weight",
            role="weight",
            sizes=(20, 20, int(random.integers(1, 9))),
            groups=(a, b, None),
        )
        for a, b in pairs
    )
    terms = tuple(ComputeTerm(layer=t.name, factor=3.0, groups=t.groups[:2]) for t in tensors)  # type: ignore[arg-type]
    shapes = dataclasses.replace(
        table.summary.shapes, tensors=(*table.summary.shapes.tensors, *tensors), terms=terms
    )
    return dataclasses.replace(table, summary=dataclasses.replace(table.summary, shapes=shapes))


def tiny_summary(name: str) -> ModelSummary:
    model = tiny_model(name)
    return summarize(model, {"l2": rank(model, "l2")})


def swept(summary: ModelSummary, seed: int = 0) -> SensitivityTable:
    """Return a synthetic table of a real model's summary."""
    random = np.random.default_rng(seed)
    rows = []
    for group in summary.groups:
        scale = 10 ** random.uniform(-3, 0)
        for r in RATIOS:
            kl = scale * r * r
            rows.append(synthetic_row(summary, group, r, kl, sops=1e6 * (1 - r / 10)))
    return SensitivityTable(
        summary=summary,
        criterion="l2",
        conditions=CONDITIONS,
        ratios=RATIOS,
        baseline_accuracy=exactly(0.98),
        rows=tuple(rows),
        baseline_sops=1e6,
    )


@pytest.fixture(scope="module")
def tiny_table() -> SensitivityTable:
    return swept(tiny_summary("sdt_v1"))


def cost(table: SensitivityTable, plan: PrunePlan) -> float:
    return sum(group_kls(table, reached_ratios(table.summary, plan)).values())


# ---- quadratic form of sizes ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdt_v1", "sdt_v2", "qkformer_imagenet"])
def test_form_equals_the_size(name: str) -> None:
    summary = tiny_summary(name)
    forms = {r: width_form(summary, r) for r in CLOSED_FORMS}
    random = np.random.default_rng(0)
    for _ in range(10):
        ratios = {g.group_id: float(random.uniform(0, 0.95)) for g in summary.groups}
        plan = plan_from_ratios(summary, ratios, criterion="l2")
        widths = np.array(list(plan_widths(summary, plan).values()), dtype=float)
        size, int8 = plan_size(summary, plan), plan_size(summary, plan, "int8")
        assert forms["memory"].value(widths) == size.bytes
        assert forms["memory_int8"].value(widths) == int8.bytes
        assert round(float(forms["macs"].value(widths))) == size.macs
        levels = np.stack([widths, np.maximum(widths - 1, 1)], axis=1)
        moves = forms["memory"].moves(widths, levels)
        for g in range(len(widths)):
            moved = widths.copy()
            moved[g] = levels[g, 1]
            assert moves[g, 1] == forms["memory"].value(moved) - size.bytes


# ---- against brute force -------------------------------------------------------------------------


def brute_force(knapsack: Knapsack) -> float:
    choices = np.array(list(itertools.product(*(range(last + 1) for last in knapsack.last_levels))))
    return float(knapsack.cost(choices)[knapsack.fits(choices)].min())


def coarse(table: SensitivityTable, saving: float) -> Knapsack:
    """Return the knapsack over the ratios of the table."""
    counts = np.array([[0, *(round(20 * r) for r in RATIOS)]] * len(table.summary.groups))
    kls = [[0.0, *(r.kl for r in table.by_group[g.group_id])] for g in table.summary.groups]
    form = width_form(table.summary, "memory")
    whole = float(form.value(np.full(len(counts), 20.0)))
    return Knapsack(20.0 - counts, np.array(kls), form, (1 - saving) * whole)


@pytest.mark.parametrize("saving", [0.1, 0.35, 0.6, 0.85])
@pytest.mark.parametrize("seed", range(3))
def test_optimal_if_sizes_add_up(seed: int, saving: float) -> None:
    random = np.random.default_rng(seed)
    table = hand_made({f"g{i}": float(random.uniform(0.01, 1)) for i in range(4)})
    knapsack = coarse(table, saving)
    found = solve(knapsack)
    assert found is not None
    assert knapsack.fits(found)
    assert knapsack.cost(found) == pytest.approx(brute_force(knapsack), rel=1e-12)


@pytest.mark.parametrize("saving", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_close_to_optimal_with_joint_sizes(seed: int, saving: float) -> None:
    table = joint_table(seed)
    knapsack = coarse(table, saving)
    found, least = solve(knapsack), brute_force(knapsack)
    assert found is not None
    assert least - 1e-12 <= knapsack.cost(found) <= 1.01 * least
    plan = make_plan(table, "optimal", memory_saving=saving)  # finer levels are never worse
    assert cost(table, plan) <= 1.01 * least
    below = bound.lower_bound(knapsack)
    assert below is not None
    assert 0 < below <= least + 1e-9
    gap = re.search(r"at most ([\d.]+)% above the least", plan.note)
    assert gap is not None
    assert cost(table, plan) / (1 + float(gap[1]) / 100) <= least + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_lagrangian_is_minimised_exactly(seed: int) -> None:
    knapsack = coarse(joint_table(seed), 0.5)
    choices = np.array(list(itertools.product(range(10), repeat=4)))
    resource = knapsack.form.value(knapsack.widths_of(choices)) - knapsack.limit
    order = bound._elimination_order(knapsack)
    assert order is not None
    for multiplier in (0.0, 1e-6, 1e-4, 1e-2):
        least, excess = bound._minimise(knapsack, order, multiplier)
        every = knapsack.cost(choices) + multiplier * resource
        assert least == pytest.approx(every.min(), rel=1e-9, abs=1e-12)
        assert every[np.isclose(resource, excess)].min() == pytest.approx(every.min(), rel=1e-9)


def test_no_bound_if_all_groups_interact() -> None:
    n = 8
    form = WidthForm(constant=0.0, linear=np.zeros(n), pairs=np.ones((n, n)))
    widths = np.tile(np.arange(20.0, 0, -1), (n, 1))
    assert bound.lower_bound(Knapsack(widths, 20 - widths, form, 1000.0)) is None


def test_dynamic_program_is_exact() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        costs, used = random.uniform(0, 1, (4, 5)), random.uniform(0, 1, (4, 5))
        every = np.array(list(itertools.product(range(5), repeat=4)))
        rows = np.arange(4)
        fits = used[rows, every].sum(axis=1) <= 1.5
        found = dynamic_program(costs, used, 1.5)
        assert found is not None
        assert costs[rows, found].sum() == pytest.approx(costs[rows, every].sum(axis=1)[fits].min())
    assert dynamic_program(np.ones((2, 2)), np.ones((2, 2)), 1.0) is None


# ---- optimal compared with the others ------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.85))
def test_never_worse_than_the_other_policies(seed: int, saving: float) -> None:
    table = joint_table(seed, 5)
    ours = cost(table, make_plan(table, "optimal", memory_saving=saving))
    for policy in ("uniform", "psvit", "prime"):
        assert ours <= cost(table, make_plan(table, policy, memory_saving=saving)) + 1e-12


@pytest.mark.parametrize("policy", POLICIES)
def test_monotone_in_the_target(policy: str) -> None:
    table = joint_table(3, 5)
    problem = Problem(table=table, target=Target(saving=0.5))
    savings, costs = [], []
    for saving in np.arange(0.1, 0.9, 0.1):
        plan = make_plan(table, policy, memory_saving=float(saving))
        savings.append(problem.saving(reached_ratios(table.summary, plan)))
        costs.append(cost(table, plan))
        assert savings[-1] >= saving - 1e-9
    assert savings == sorted(savings)
    if policy in ("uniform", "optimal"):
        assert costs == sorted(costs)


def test_more_drop_allowed_saves_more() -> None:
    table = joint_table(4, 5)
    problem = Problem(table=table, target=Target(max_drop=0.5))
    saved = {}
    for policy in POLICIES:
        ratios = [
            reached_ratios(table.summary, make_plan(table, policy, max_drop=drop))
            for drop in (0.01, 0.05, 0.2)
        ]
        for drop, reached in zip((1, 5, 20), ratios, strict=True):
            assert predict_drop(table, reached) <= drop + 1e-9
        saved[policy] = [problem.saving(r) for r in ratios]
        assert saved[policy] == sorted(saved[policy])
    for policy in POLICIES:
        assert all(a >= b - 1e-9 for a, b in zip(saved["optimal"], saved[policy], strict=True))


def test_measuring_corrects_the_table_within_the_budget() -> None:
    table = hand_made({"a": 0.05, "b": 0.05, "c": 0.05, "d": 0.05})
    truth = hand_made({"a": 0.2, "b": 0.05, "c": 0.01, "d": 0.05})
    log: list[PrunePlan] = []
    plan = make_plan(
        table, "optimal", memory_saving=0.4, measure=measured_as(truth, log=log), budget=12
    )
    assert len(log) <= 12
    assert "measured" in plan.note
    uncorrected = make_plan(table, "optimal", memory_saving=0.4)
    best = make_plan(truth, "optimal", memory_saving=0.4)
    assert cost(truth, plan) < 0.8 * cost(truth, uncorrected)
    assert cost(truth, plan) < 1.15 * cost(truth, best)


def test_measured_limit_is_respected_and_used() -> None:
    measure = measured_as(TABLE, 3.0)
    plan = make_plan(TABLE, "optimal", max_drop=0.06, measure=measure)
    drop = measure(plan).drop
    assert drop is not None and drop.value <= 6.0
    best = make_plan(TABLE, "optimal", max_drop=0.02)  # the same limit without interaction
    problem = Problem(table=TABLE, target=Target(max_drop=0.06))
    saved = [problem.saving(reached_ratios(TABLE.summary, p)) for p in (plan, best)]
    assert saved[0] >= saved[1] - 0.03


# ---- every policy, scope, target and resource on one model ---------------------------------------


@pytest.mark.parametrize("scope", ["all", "inner", "best"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_target_and_scope(policy: str, scope: str, tiny_table: SensitivityTable) -> None:
    for resource in ("memory", "memory_int8", "macs", "energy"):
        saving = 0.05 if resource == "energy" else 0.25
        plan = make_plan(tiny_table, policy, saving=saving, resource=resource, scope=scope)
        if resource in CLOSED_FORMS:
            problem = Problem(table=tiny_table, target=Target(saving=saving, resource=resource))
            assert problem.saving(reached_ratios(tiny_table.summary, plan)) >= saving - 1e-9
        else:
            assert "energy predicted" in plan.note
        assert "predicted" in plan.note
        assert plan.policy == policy
        if scope == "inner":
            streams = {g.group_id for g in tiny_table.summary.groups if g.kind == "residual"}
            assert not streams & set(plan.kept)
        assert ("scope" in plan.note) == (scope == "best")
    plan = make_plan(tiny_table, policy, max_drop=0.02, scope=scope)
    assert predict_drop(tiny_table, reached_ratios(tiny_table.summary, plan)) <= 2 + 1e-9


def test_best_takes_the_better_scope() -> None:
    for policy in POLICIES:
        drops = {}
        for scope in ("all", "inner", "best"):
            plan = make_plan(TABLE, policy, memory_saving=0.4, scope=scope)
            drops[scope] = predict_drop(TABLE, reached_ratios(TABLE.summary, plan))
        assert drops["best"] == min(drops.values())


def test_latency_needs_a_cost(tiny_table: SensitivityTable) -> None:
    summary = tiny_table.summary
    with pytest.raises(TargetError, match="cost="):
        make_plan(tiny_table, "uniform", saving=0.2, resource="latency")

    def latency(plan: PrunePlan) -> float:  # a constant plus a part proportional to the MACs
        return 0.3 + plan_size(summary, plan).macs / plan_size(summary, None).macs

    for policy in POLICIES:
        plan = make_plan(tiny_table, policy, saving=0.3, resource="latency", cost=latency)
        assert 0.91 * 0.6 < latency(plan) <= 0.7 * 1.3 + 1e-9
        assert "latency measured" in plan.note
    with pytest.raises(TargetError, match="not reachable"):
        make_plan(tiny_table, "uniform", saving=0.9, resource="latency", cost=latency)


# ---- locks and bounds ----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("target", [{"memory_saving": 0.4}, {"max_drop": 0.15}])
@pytest.mark.parametrize("measured", [False, True])
def test_locks_and_bounds_are_respected(
    policy: str, target: dict[str, Any], measured: bool
) -> None:
    plan = make_plan(
        TABLE,
        policy,
        **target,
        measure=measured_as(TABLE, 0.9) if measured else None,
        locked={"robust": 0.25, "stream": 0.0},
        bounds={"middle": (0.1, 0.8), "fragile": (0.2, 0.99)},
    )
    ratios = reached_ratios(TABLE.summary, plan)
    assert ratios["robust"] == 0.25
    assert "stream" not in plan.kept
    assert 0.1 <= ratios["middle"] <= 0.8
    assert ratios["fragile"] >= 0.2


def test_impossible_limits_are_rejected() -> None:
    for name in ("locked", "bounds"):
        value = {"robst": 0.2} if name == "locked" else {"robst": (0.1, 0.2)}
        with pytest.raises(UnknownNameError, match="Did you mean 'robust'"):
            make_plan(TABLE, "uniform", memory_saving=0.2, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidRatioError, match="smaller ratio first"):
        make_plan(TABLE, "uniform", memory_saving=0.2, bounds={"robust": (0.5, 0.2)})
    with pytest.raises(InvalidRatioError, match="fraction removed"):
        make_plan(TABLE, "uniform", memory_saving=0.2, locked={"robust": 1.0})
    for policy in POLICIES:
        with pytest.raises(TargetError, match=r"not reachable.*maximum is"):
            make_plan(
                TABLE,
                policy,
                memory_saving=0.4,
                bounds={g: (0, 0.3) for g in ("robust", "middle", "fragile", "stream")},
            )
        with pytest.raises(TargetError, match="locked ratios"):
            make_plan(TABLE, policy, max_drop=0.01, locked={"stream": 0.5})
    with pytest.raises(InvalidRatioError, match="saving="):
        make_plan(TABLE, "uniform", memory_saving=0.2, resource="macs")
    with pytest.raises(UnknownNameError, match="resource"):
        make_plan(TABLE, "uniform", saving=0.2, resource="mac")


@pytest.mark.parametrize("policy", POLICIES)
def test_widths_are_rounded(policy: str, tiny_table: SensitivityTable) -> None:
    plan = make_plan(tiny_table, policy, memory_saving=0.2, round_to=4)
    for group in tiny_table.summary.groups:
        if group.group_id in plan.kept:
            assert len(plan.kept[group.group_id]) % np.lcm(4, group.heads or 1) == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_order_of_groups_and_rows_does_not_matter(
    policy: str, tiny_table: SensitivityTable
) -> None:
    ranking = tiny_table.summary.rankings["l2"]
    summary = dataclasses.replace(
        tiny_table.summary, rankings={"l2": dict(reversed(list(ranking.items())))}
    )
    other = dataclasses.replace(tiny_table, summary=summary, rows=tiny_table.rows[::-1])
    for target in ({"memory_saving": 0.4}, {"max_drop": 0.02}):
        plans = [make_plan(t, policy, **target) for t in (tiny_table, other)]  # type: ignore[arg-type]
        assert plans[0].kept == plans[1].kept


# ---- predictions ---------------------------------------------------------------------------------


def test_predictions_and_calibration() -> None:
    ratios = {"middle": 0.4, "fragile": 0.2}
    drops = predicted_drops(TABLE, ratios)
    assert drops == {
        "robust": 0,
        "middle": pytest.approx(0.8),
        "fragile": pytest.approx(2.0),
        "stream": 0,
    }
    assert predict_drop(TABLE, ratios) == pytest.approx(2.8)
    plan = plan_from_ratios(TABLE.summary, ratios, criterion="l2")
    measured = [measured_as(TABLE, 2.5)(plan)]
    factor = calibrate(TABLE, measured)
    assert factor == pytest.approx(2.5)
    assert predict_drop(TABLE, ratios, factor) == pytest.approx(7.0)
    assert calibrate(TABLE, []) == 1.0
    assert calibrate(TABLE, [measured_as(TABLE, 1e3)(plan)]) == 8.0


def test_predicted_interval_grows_with_the_cells_intervals() -> None:
    ratios = {"middle": 0.4, "fragile": 0.2}
    certain = predict_drop_interval(TABLE, ratios)
    assert certain.low == certain.value == pytest.approx(2.8)
    uncertain = dataclasses.replace(
        TABLE,
        rows=tuple(
            dataclasses.replace(
                r, drop=dataclasses.replace(r.drop, low=r.drop.value - 3, high=r.drop.value + 4)
            )
            for r in TABLE.rows
        ),
    )
    wide = predict_drop_interval(uncertain, {"middle": 0.8, "fragile": 0.6})
    assert wide.low == pytest.approx(wide.value - 3 * 2**0.5)
    assert wide.high >= wide.value + 4 * 2**0.5 - 1e-9
    assert predict_drop_interval(TABLE, {}).high == 0
