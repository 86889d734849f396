"""What a budget promises: no policy beats ``optimal`` by the shown prediction; joint limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psvit_core.errors import InvalidRatioError, TargetError
from psvit_core.plan.build import reached_ratios
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.planners import make_plan, predict_drop, predict_drop_interval, saving_range
from psvit_core.planners._cost import predicted_energy
from psvit_core.records import DEFAULT_MODEL, POLICIES, PlanSettings, PrunePlan, SensitivityTable
from psvit_core.sensitivity.spec import load_spec, read_table, sweep_keys
from psvit_core.storage import shipped
from psvit_core.storage.shipped import DemoStore, shipped_bundles
from tests.made import TABLE, exactly, hand_made, measured_as
from tests.planners.test_search import joint_table, swept, tiny_summary

OTHERS = [policy for policy in POLICIES if policy != "optimal"]


def noisy(table: SensitivityTable, seed: int) -> SensitivityTable:
    """Return the table with drops as coarse and as loosely tied to the KLs as measured ones."""
    random = np.random.default_rng(seed)
    rows = tuple(
        dataclasses.replace(
            row, drop=exactly(round(row.drop.value * random.uniform(0, 2) + random.normal(), 1))
        )
        for row in table.rows
    )
    return dataclasses.replace(table, rows=rows)


@pytest.fixture(scope="module")
def shipped_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SensitivityTable]:
    """The table of the sweep that ships with the demo model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(shipped.SWITCH_ENV, "1")
        shipped_bundles.cache_clear()
        store = DemoStore(tmp_path_factory.mktemp("store"))
        specs = [load_spec(store, key) for key in sweep_keys(store)]
        plain = [spec for spec in specs if spec.conditions.recovery == "none"]
        (spec,) = [spec for spec in plain if spec.summary.model == DEFAULT_MODEL]
        table = read_table(store, spec)
        assert table is not None
        yield table
    shipped_bundles.cache_clear()


@pytest.fixture(scope="module")
def tiny_table() -> SensitivityTable:
    return swept(tiny_summary("sdt_v1"))


def limits_of(
    table: SensitivityTable, seed: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return random locks and bounds of a few groups each."""
    random = np.random.default_rng(seed)
    names = list(random.permutation([g.group_id for g in table.summary.groups]))
    n_locked, n_bounded = random.integers(0, max(len(names) // 4, 2), 2)
    locked = {str(g): float(random.choice([0, 0.15, 0.3, 0.5])) for g in names[:n_locked]}
    bounds = {
        str(g): (float(random.choice([0, 0.1])), float(random.choice([0.3, 0.6, 0.95])))
        for g in names[n_locked : n_locked + n_bounded]
    }
    return locked, bounds


def shown(table: SensitivityTable, plan: PrunePlan) -> float:
    """Return the predicted drop that the app and the command line print."""
    return predict_drop_interval(table, reached_ratios(table.summary, plan)).value


def check_unbeaten(table: SensitivityTable, seed: int, saving: float) -> None:
    """Check that no policy's plan has a smaller predicted drop than ``optimal``'s."""
    locked, bounds = limits_of(table, seed)
    possible = saving_range(table, locked=locked, bounds=bounds)
    saving = min(saving, 0.999 * possible.high)
    ours = make_plan(table, "optimal", memory_saving=saving, locked=locked, bounds=bounds)
    assert memory_saving(table.summary, ours) >= saving - 1e-9
    for policy in OTHERS:
        plan = make_plan(table, policy, memory_saving=saving, locked=locked, bounds=bounds)
        assert shown(table, ours) <= shown(table, plan) + 1e-6, policy


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.88))
def test_no_policy_beats_optimal_on_small_tables(seed: int, saving: float) -> None:
    check_unbeaten(noisy(joint_table(seed, 5), seed), seed, saving)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.88))
def test_no_policy_beats_optimal_on_the_shipped_table(
    shipped_table: SensitivityTable, seed: int, saving: float
) -> None:
    check_unbeaten(shipped_table, seed, saving)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 0.9))
def test_no_policy_beats_optimal_on_many_budgets(
    shipped_table: SensitivityTable, seed: int, saving: float
) -> None:
    check_unbeaten(shipped_table, seed, saving)
    check_unbeaten(noisy(joint_table(seed, 6), seed), seed, saving)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.005, 0.3))
def test_no_policy_saves_more_within_a_drop(seed: int, drop: float) -> None:
    table = noisy(joint_table(seed, 5), seed)
    _, bounds = limits_of(table, seed)
    bounds = {group: (0.0, high) for group, (_, high) in bounds.items()}
    ours = make_plan(table, "optimal", max_drop=drop, bounds=bounds)
    assert shown(table, ours) <= 100 * drop + 1e-6
    for policy in OTHERS:
        plan = make_plan(table, policy, max_drop=drop, bounds=bounds)
        if shown(table, plan) <= 100 * drop + 1e-6:
            saved = memory_saving(table.summary, plan)
            assert memory_saving(table.summary, ours) >= saved - 1e-9, policy


def test_the_case_that_was_reported(shipped_table: SensitivityTable) -> None:
    """At 25 % and 40 %, PrimeSVT's plans had the smaller predicted drop."""
    for saving in (0.25, 0.4):
        plans = {p: make_plan(shipped_table, p, memory_saving=saving) for p in POLICIES}
        drops = {p: shown(shipped_table, plan) for p, plan in plans.items()}
        assert drops["optimal"] == min(drops.values())


@pytest.mark.parametrize("resource", ["macs", "energy"])
def test_no_policy_beats_optimal_for_other_resources(
    tiny_table: SensitivityTable, resource: str
) -> None:
    table = tiny_table
    saving = 0.05 if resource == "energy" else 0.3
    drops = {
        policy: shown(table, make_plan(table, policy, saving=saving, resource=resource))
        for policy in POLICIES
    }
    assert drops["optimal"] <= min(drops.values()) + 1e-6


# ---- several limits at once ----------------------------------------------------------------------


def savings_of(table: SensitivityTable, plan: PrunePlan) -> Mapping[str, float]:
    size, whole = plan_size(table.summary, plan), plan_size(table.summary, None)
    return {"memory": 1 - size.bytes / whole.bytes, "macs": 1 - size.macs / whole.macs}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_savings_hold_together(policy: str, seed: int) -> None:
    table = joint_table(seed, 5)
    for memory, macs in ((0.3, 0.5), (0.5, 0.3), (0.4, 0.4)):
        plan = make_plan(table, policy, memory_saving=memory, savings={"macs": macs})
        saved = savings_of(table, plan)
        assert saved["memory"] >= memory - 1e-9
        assert saved["macs"] >= macs - 1e-9


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.7), st.floats(0.1, 0.7))
def test_optimal_is_unbeaten_under_two_savings(seed: int, memory: float, macs: float) -> None:
    table = noisy(joint_table(seed, 5), seed)
    plans = {p: make_plan(table, p, memory_saving=memory, savings={"macs": macs}) for p in POLICIES}
    drops = {policy: shown(table, plan) for policy, plan in plans.items()}
    assert drops["optimal"] <= min(drops.values()) + 1e-6


def test_energy_beside_memory(tiny_table: SensitivityTable) -> None:
    table = tiny_table
    whole = predicted_energy(table, make_plan(table, "uniform", memory_saving=1e-9))
    for policy in POLICIES:
        plan = make_plan(table, policy, memory_saving=0.3, savings={"energy": 0.06}, max_drop=0.9)
        assert memory_saving(table.summary, plan) >= 0.3 - 1e-9
        assert predicted_energy(table, plan) <= 0.94 * whole + 1e-9
        assert "energy predicted" in plan.note


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("measured", [False, True])
def test_a_drop_beside_a_saving(policy: str, measured: bool) -> None:
    measure = measured_as(TABLE, 1.2) if measured else None
    plan = make_plan(TABLE, policy, memory_saving=0.2, max_drop=0.2, measure=measure)
    assert memory_saving(TABLE.summary, plan) >= 0.2 - 1e-9
    assert predict_drop(TABLE, reached_ratios(TABLE.summary, plan)) <= 20
    with pytest.raises(TargetError) as error:
        make_plan(TABLE, policy, memory_saving=0.8, max_drop=0.01, measure=measure)
    message = str(error.value)
    assert "cannot be met together" in message
    assert "at least 0.8 of the memory saved and at most 1 points lost" in message
    assert ("(measured)" in message) == measured
    # What is possible is what the policy saves within the drop alone.
    within = make_plan(TABLE, policy, max_drop=0.01)
    possible = memory_saving(TABLE.summary, within)
    assert f"Within 1 points, at most {possible:.1%} of the memory can be saved" in message


def test_the_drop_of_the_least_kl_may_exceed_the_limit() -> None:
    """The plan of least KL loses too much by the table; another one with the saving does not."""
    table = hand_made({"a": 0.1, "b": 0.2})
    rows = tuple(
        dataclasses.replace(r, drop=exactly(5.0 if r.group_id == "a" else 0.5)) for r in table.rows
    )
    table = dataclasses.replace(table, rows=rows)
    plan = make_plan(table, "optimal", memory_saving=0.3, max_drop=0.01)
    assert shown(table, plan) <= 1
    assert memory_saving(table.summary, plan) >= 0.3 - 1e-9


def test_a_policys_plan_for_the_drop_may_meet_the_saving(shipped_table: SensitivityTable) -> None:
    """PSViT's uniform half of a saving costs more than its plan within the drop."""
    found = 0
    for seed in range(4):
        table = joint_table(seed, 5)
        for percent in (1, 2, 6, 8):
            alone = make_plan(table, "psvit", max_drop=percent / 100)
            saving = memory_saving(table.summary, alone) - 0.01
            if saving <= 0.02 or shown(table, alone) > percent:
                continue
            least = make_plan(table, "psvit", memory_saving=saving)
            if shown(table, least) <= percent:
                continue
            found += 1
            plan = make_plan(table, "psvit", memory_saving=saving, max_drop=percent / 100)
            assert shown(table, plan) <= percent
            assert memory_saving(table.summary, plan) >= saving - 1e-9
    assert found >= 3
    with pytest.raises(TargetError, match="The policy optimal can meet them all"):
        make_plan(shipped_table, "uniform", memory_saving=0.6, max_drop=0.03)


def test_the_conflict_names_each_saving() -> None:
    table = joint_table(1, 5)
    with pytest.raises(TargetError) as error:
        make_plan(table, "psvit", memory_saving=0.6, savings={"macs": 0.7}, max_drop=0.005)
    message = str(error.value)
    assert "The saving of memory alone loses" in message
    assert "The saving of macs alone loses" in message
    assert message.count("Within 0.5 points, at most") == 2


def test_settings_make_one_target() -> None:
    several = PlanSettings(memory_saving=0.4, max_drop=0.03, saving=0.2, resource="energy")
    assert several.target.all_savings == {"memory": 0.4, "energy": 0.2}
    assert several.target.max_drop == 0.03
    old = {k: v for k, v in PlanSettings(memory_saving=0.4).to_dict().items()}
    del old["savings"], old["budget_seconds"]
    assert PlanSettings.from_dict(old).target.all_savings == {"memory": 0.4}
    for twice in ({"saving": 0.2}, {"savings": {"memory": 0.2}}):
        with pytest.raises(InvalidRatioError, match="'memory' is given twice"):
            _ = PlanSettings(memory_saving=0.4, **twice).target


# ---- what is possible ----------------------------------------------------------------------------


def test_the_range_and_what_binds() -> None:
    locked, bounds = {"robust": 0.0, "middle": 0.5}, {"fragile": (0.1, 0.2)}
    found = saving_range(TABLE, locked=locked, bounds=bounds)
    # Four equal groups whose sizes add up; the largest ratio of the table is 0.9.
    assert found.low == pytest.approx((0 + 0.5 + 0.1 + 0) / 4)
    assert found.high == pytest.approx((0 + 0.5 + 0.2 + 0.9) / 4)
    assert found.free == pytest.approx(0.9)
    without = {(b.group_id, b.kind): b.without - found.high for b in found.binding}
    assert without == {
        ("robust", "lock"): pytest.approx(0.9 / 4),
        ("fragile", "bound"): pytest.approx(0.7 / 4),
        ("middle", "lock"): pytest.approx(0.4 / 4),
    }
    assert [b.group_id for b in found.binding] == ["robust", "fragile", "middle"]
    assert found.contains(0.3) and not found.contains(0.5) and not found.contains(0.1)
    with pytest.raises(TargetError) as error:
        make_plan(TABLE, "prime", memory_saving=0.5, locked=locked, bounds=bounds)
    message = str(error.value)
    assert "the maximum is 40.0%. Locks and lower bounds alone save 15.0%." in message
    assert "the lock of 'robust' (without it 62.5%); the bound of 'fragile'" in message
    assert "Without any lock or bound: 90.0%" in message


# ---- a budget of measurements --------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("target", [{"memory_saving": 0.4}, {"max_drop": 0.04}])
@pytest.mark.parametrize("budget", [1, 5, 12])
def test_measured_plans_stay_within_the_budget(
    policy: str, target: dict[str, float], budget: int
) -> None:
    log: list[PrunePlan] = []
    measure = measured_as(TABLE, 1.5, log)
    plan = make_plan(TABLE, policy, **target, measure=measure, budget=budget)  # type: ignore[arg-type]
    assert len(log) <= budget
    if "memory_saving" in target:
        assert memory_saving(TABLE.summary, plan) >= 0.4 - 1e-9
    else:
        drop = measured_as(TABLE, 1.5)(plan).drop
        assert drop is not None and drop.value <= 4


@pytest.mark.parametrize("policy", POLICIES)
def test_stop_ends_measuring(policy: str) -> None:
    log: list[PrunePlan] = []
    plan = make_plan(
        TABLE,
        policy,
        memory_saving=0.4,
        measure=measured_as(TABLE, 1.5, log),
        budget=100,
        stop=lambda: len(log) >= 3,
    )
    assert len(log) <= 3
    assert memory_saving(TABLE.summary, plan) >= 0.4 - 1e-9
    if policy in ("psvit", "prime"):
        assert "until the budget was spent (3 plans)" in plan.note


def test_psvit_measures_what_decides_first() -> None:
    """The table praises group b, the truth does not: a small budget finds out."""
    table = hand_made({"a": 0.2, "b": 0.01, "c": 0.2, "d": 0.2})
    truth = hand_made({"a": 0.2, "b": 2.0, "c": 0.2, "d": 0.2})
    plan = make_plan(table, "psvit", memory_saving=0.4, measure=measured_as(truth), budget=12)
    predicted = make_plan(table, "psvit", memory_saving=0.4)
    ratios, before = (reached_ratios(table.summary, p) for p in (plan, predicted))
    assert ratios["b"] < before["b"]
    assert predict_drop(truth, ratios) < predict_drop(truth, before)


def test_shipped_tables_exist(shipped_table: SensitivityTable, tmp_path: Path) -> None:
    """The property tests above would be empty on a table without groups."""
    assert len(shipped_table.summary.groups) >= 10
    assert SensitivityTable.load(shipped_table.save(tmp_path / "t.json")).finished
