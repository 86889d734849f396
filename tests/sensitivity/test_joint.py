"""Joint plans of a sweep: how many, which, and that their drops are those of the pruned model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psvit_core.evaluate import measure, predict_plan
from psvit_core.incremental import recorded as recorded_module
from psvit_core.incremental.propagation import Network, record_network
from psvit_core.plan.build import plan_from_ratios, reached_ratios
from psvit_core.planners import MIN_JOINT
from psvit_core.records import JointRow, PrunePlan
from psvit_core.recover import recover
from psvit_core.runtime import Run
from psvit_core.sensitivity import joint, joint_run, prepare
from psvit_core.sensitivity.joint import (
    MIXED,
    Again,
    cell_work,
    joint_key,
    joint_plans,
    measure_joint,
    n_joint_plans,
    n_recovered_again,
    read_joint,
)
from psvit_core.sensitivity.joint_images import (
    JointImages,
    joint_images,
    margins,
    n_joint_images,
)
from psvit_core.sensitivity.spec import load_spec, read_table, sweep_keys
from psvit_core.sensitivity.sweep import run_spec, sweep
from psvit_core.storage.predictions import Array, Outcome
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from tests.made import TABLE, exactly
from tests.tiny import tiny_data, tiny_model
from ui.model.sweeps import sweep_view

RUN = Run(batch=3, precision="float64")


EVERY_IMAGE = JointImages((np.arange(96),), (96,), 96.0, 96)


def outcomes(plan: PrunePlan, images: Array) -> tuple[Outcome, Outcome]:
    """Return results in which every pruned group costs one image."""
    n_images = len(images)
    ids, right = np.array([f"i{n}" for n in images]), np.zeros(n_images, dtype=int)
    nothing = np.zeros(n_images)
    lost = np.where(np.arange(n_images) < len(plan.kept), 1, 0)
    return (
        Outcome(ids=ids, labels=right, predictions=lost, kl=nothing + 0.25, sops=nothing),
        Outcome(ids=ids, labels=right, predictions=right, kl=nothing, sops=nothing),
    )


def test_work_and_images() -> None:
    assert [n_joint_images(n) for n in (10, 96, 750, 12_000)] == [10, 96, 96, 1000]
    assert n_joint_images(750, cluster=40) == 120  # whole batches
    assert n_joint_images(40, cluster=50) == 40
    assert cell_work(1) == 0.5 > cell_work(45) > cell_work(69)
    # 4 groups, 9 ratios, 100 images a cell
    work = 36 * 100 * cell_work(4)
    assert n_joint_plans(TABLE, 20) == 0 == int(0.1 * work / 200 / MIN_JOINT)  # too few
    many = replace(TABLE, rows=tuple(replace(row, n_images=1000) for row in TABLE.rows))
    assert n_joint_plans(many, 20) == int(0.1 * 10 * work / 200) >= MIN_JOINT


def sample(n_all: int = 750) -> tuple[JointImages, Array]:
    """Return strata of images of which only uncertain ones are lost, and how often each is."""
    rng = np.random.default_rng(0)
    margin = rng.permutation(n_all).astype(float)
    lost = np.where(margin < n_all / 10, 4, np.where(margin < n_all / 3, 1, 0))
    return joint_images(margin, lost), lost


def test_uncertain_images_are_drawn_more_often_and_weigh_less() -> None:
    images, lost = sample()
    assert [len(stratum) for stratum in images.strata] == [62, 126, 562]
    assert images.sizes == (32, 32, 32)
    drawn = images.draw(3)
    assert len(set(drawn.tolist())) == 96 and (drawn == images.draw(3)).all()
    assert (drawn != images.draw(4)).any()
    every = np.mean([images.mean(at, lost[at] > 1) for at in map(images.draw, range(400))])
    assert every == pytest.approx((lost > 1).mean(), abs=0.003)  # no bias
    assert images.mean(drawn, np.ones(96)) == pytest.approx(1)


def test_the_effective_number_of_images_is_that_of_the_sampling() -> None:
    """Against a simulation: plans that lose images in proportion to how often cells lose them."""
    images, times = sample()
    rng, errors, plain = np.random.default_rng(1), [], []
    for number in range(3000):
        lost = (rng.random(750) < 0.05 * times).astype(int)
        at = images.draw(number)
        errors.append(images.mean(at, lost[at]) - lost.mean())
        n = round(images.effective)
        plain.append(lost[rng.choice(750, n, replace=False)].mean() - lost.mean())
    assert images.effective > 120  # of 96
    assert np.std(errors) == pytest.approx(np.std(plain), rel=0.1)


def test_small_sweeps_and_coupled_batches_are_not_stratified() -> None:
    margin, lost = np.arange(80.0), np.zeros(80, dtype=int)
    assert joint_images(margin, lost).draw(0).tolist() == list(range(80))
    coupled = joint_images(np.arange(750.0), np.zeros(750, dtype=int), cluster=50)
    assert coupled.draw(0).tolist() == list(range(100)) == coupled.draw(1).tolist()
    known = coupled.drop(coupled.draw(0), np.ones(100))
    assert known.value == 100 and known.low < 90
    nobody_is_lost = joint_images(np.arange(750.0), np.zeros(750, dtype=int))
    assert 0 < nobody_is_lost.effective <= 96


def test_margins_are_between_the_first_two_classes() -> None:
    logits = np.array([[1.0, 4.0, 2.5], [0.0, 0.0, -9.0]])
    assert margins(logits).tolist() == [1.5, 0.0]
    assert margins(np.zeros((2, 1))).tolist() == [0.0, 0.0]


def test_plans_come_from_every_policy_from_between_and_from_mixtures() -> None:
    plans = list(joint_plans(TABLE))
    policies = [plan.policy for plan in plans]
    assert set(policies) == {"uniform", "psvit", "prime", "optimal", MIXED}
    assert [p.kept for p in plans] == [p.kept for p in joint_plans(TABLE)]  # no chance in it
    assert policies.count("optimal") <= joint._N_OPTIMAL < policies.count(MIXED)
    at = {0.25: {"a": 0.2, "b": 0.0}, 0.45: {"a": 0.4, "b": 0.6}}
    assert joint._between(at, 0.35) == pytest.approx({"a": 0.3, "b": 0.3})


def test_older_joint_plans_are_read_while_there_are_no_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = (
        JointRow(policy=MIXED, ratios={"a": r}, drop=exactly(1.0), kl=0.1, n_images=64)
        for r in (0.1, 0.2)
    )
    store.put(joint._older_key("sweep/x"), [old.to_dict()])
    assert read_joint(store, "sweep/x") == (old,)
    store.put(joint_key("sweep/x"), [new.to_dict()])
    assert read_joint(store, "sweep/x") == (new,)


def test_a_part_of_the_work_recovers_plans_again() -> None:
    many = replace(TABLE, rows=tuple(replace(row, n_images=3000) for row in TABLE.rows))
    work = 0.1 * 36 * 3000 * cell_work(4)
    again = joint._RECOVERY_WORK * 50
    n_again = n_recovered_again(many, 20, 50)
    assert n_again == int(work / 2 / again) > 1
    assert n_joint_plans(many, 20, n_again, 50) == int((work - n_again * again) / 200) >= MIN_JOINT
    assert n_recovered_again(many, 20, 0) == 0  # no calibration images
    fewest = replace(TABLE, rows=tuple(replace(row, n_images=1000) for row in TABLE.rows))
    for n_calib in (5, 50, 5000):  # enough plans stay to calibrate with
        n = n_recovered_again(fewest, 20, n_calib)
        assert n_joint_plans(fewest, 20, n, n_calib) >= MIN_JOINT


def test_plans_that_lose_much_are_recovered_again_over_all_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six plans that lose 2 to 7 points, two of those from 3 points up; one gets worse."""
    monkeypatch.setattr(joint, "n_joint_plans", lambda *sizes: 6)
    monkeypatch.setattr(joint, "n_recovered_again", lambda *sizes: 2)
    store, drops, stops = Store(tmp_path), iter((5.0, 2.0, 7.0, 3.0, 6.0, 4.0)), [True]
    again: list[PrunePlan] = []

    def results(plan: PrunePlan, lose: float, kl: float, images: Array) -> tuple[Outcome, Outcome]:
        found, baseline = outcomes(plan, images)
        lost = np.where(np.arange(96) < lose, 1, 0)
        return replace(found, predictions=lost, kl=np.full(96, kl)), baseline

    def run_again(plan: PrunePlan, images: Array) -> tuple[Outcome, Outcome]:
        if len(again) == 1 and stops.pop():
            raise KeyboardInterrupt
        again.append(plan)
        return results(plan, 1, (0.1, 0.9)[len(again) - 1], images)

    def run() -> tuple[JointRow, ...]:
        def run_plan(plan: PrunePlan, images: Array) -> tuple[Outcome, Outcome]:
            return results(plan, next(drops), 0.5, images)

        return measure_joint(
            TABLE, run_plan, EVERY_IMAGE, store, "sweep/x", again=Again(run_again, 9)
        )

    with pytest.raises(KeyboardInterrupt):
        run()
    stops.append(False)
    rows = run()
    images_lost = [row.drop.value * 96 / 100 for row in rows]
    assert images_lost == pytest.approx([5, 2, 7, 3, 6, 4])
    by_drop = {round(lost): row for lost, row in zip(images_lost, rows, strict=True)}
    found = {images: row.auto_drop for images, row in by_drop.items() if row.auto_drop}
    assert list(found) == [6, 4]  # of 3 to 7
    assert found[4] is not None and found[4].value == pytest.approx(100 / 96)
    assert found[6] == by_drop[6].drop  # a higher KL: ``auto`` would not take it
    assert [reached_ratios(TABLE.summary, plan) for plan in again] == [
        {**dict.fromkeys(TABLE.summary.by_id, 0.0), **by_drop[lost].ratios} for lost in (4, 6)
    ]
    assert read_joint(store, "sweep/x") == rows == run()


def test_rows_are_stored_one_by_one_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "n_joint_plans", lambda *sizes: 5)
    store, ran = Store(tmp_path), 0

    def run_plan(plan: PrunePlan, images: Array) -> tuple[Outcome, Outcome]:
        nonlocal ran
        if ran == 3:
            raise KeyboardInterrupt
        ran += 1
        return outcomes(plan, images)

    with pytest.raises(KeyboardInterrupt):
        measure_joint(TABLE, run_plan, EVERY_IMAGE, store, "sweep/x")
    assert len(read_joint(store, "sweep/x")) == 3
    ran = -10
    rows = measure_joint(TABLE, run_plan, EVERY_IMAGE, store, "sweep/x")
    assert ran == -8 and len(rows) == 5
    assert read_joint(store, "sweep/x") == rows
    assert read_joint(store, "sweep/y") == ()
    for row in rows:
        assert row.n_images == 96 == row.effective_images and row.kl == 0.25
        assert row.drop.value == pytest.approx(100 * len(row.ratios) / 96)
        assert 0 not in row.ratios.values() and len(row.ratios) > 1
    assert len({tuple(row.ratios.items()) for row in rows}) == 5


@pytest.mark.parametrize("natively", [True, False])
def test_a_sweep_measures_joint_plans_at_its_end(
    natively: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "n_joint_plans", lambda *sizes: 3)
    run = (
        predict_plan if natively else lambda *arguments, **options: None
    )  # then silenced, in torch
    monkeypatch.setattr(joint_run, "predict_plan", run)
    model, data = tiny_model("sdt_v1", torch.float64), tiny_data("sdt_v1", 7)
    store = Store(tmp_path)
    table = sweep(model, data, ratios=(0.5,), criterion="l2", run=RUN, store=store)
    assert len(table.joint) == 3
    for row in table.joint:
        plan = plan_from_ratios(table.summary, row.ratios, criterion="l2")
        found = measure(model, data, plan, run=RUN)  # pruned, in another order
        assert found.drop is not None and row.drop.value == pytest.approx(found.drop.value)
        assert row.kl == pytest.approx(found.kl, abs=1e-9)
    assert any(row.kl > 1e-3 for row in table.joint)
    (key,) = sweep_keys(store)
    assert read_table(store, load_spec(store, key)) == table
    assert sweep_view(store, key).table == table
    store.put(joint_key(key), [])  # a sweep of an older version
    assert sweep_view(store, key).table == replace(table, joint=())
    again = run_spec(load_spec(store, key), model, data, run=RUN, store=store)
    assert again == table
    assert sweep_view(store, key).table == table


def test_cells_and_joint_plans_share_one_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "n_joint_plans", lambda *sizes: 3)
    recorded: list[bool] = []

    def count(*arguments: Any, neurons: bool = False) -> Network:
        recorded.append(neurons)
        return record_network(*arguments, neurons=neurons)

    for module in (prepare, recorded_module):
        monkeypatch.setattr(module, "record_network", count)
    model, data = tiny_model("sdt_v1", torch.float64), tiny_data("sdt_v1", 7)
    shared = sweep(model, data, ratios=(0.5,), criterion="l2", run=RUN, store=Store(tmp_path))
    assert recorded == [False]
    summary = shared.summary
    plan = plan_from_ratios(summary, shared.joint[0].ratios, criterion="l2")
    without = predict_plan(model, data, plan, RUN, firing=False)
    assert recorded == [False]
    found = predict_plan(model, data, plan, RUN)  # an own recording: it counts firing
    assert recorded == [False, True]
    assert without is not None and found is not None
    assert found.firing and not without.firing
    np.testing.assert_array_equal(without.logits, found.logits)
    np.testing.assert_array_equal(without.sops, found.sops)
    again = sweep(model, data, ratios=(0.5,), criterion="l2", run=RUN)  # plans run on the latter
    assert again.joint == shared.joint


def test_recovered_joint_plans_run_natively_as_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "n_joint_plans", lambda *sizes: 3)
    model, data = tiny_model("sdt_v1", torch.float64), tiny_data("sdt_v1", 7)
    calib = replace(tiny_data("sdt_v1", 6), split="calib")

    def rows() -> tuple[JointRow, ...]:
        table = sweep(model, data, ratios=(0.5,), criterion="l2", run=RUN, recovery_images=calib)
        return table.joint

    natively = rows()
    silenced: list[bool] = []

    def in_torch(*arguments: object, **options: object) -> None:
        silenced.append(bool(options["new"]))

    monkeypatch.setattr(joint_run, "predict_plan", in_torch)
    assert [r.kl for r in rows()] == pytest.approx([r.kl for r in natively], abs=1e-9)
    assert silenced == [True] * 3  # layers were refitted


@pytest.mark.parametrize("natively", [True, False])
def test_a_joint_plan_is_recovered_again_as_pruned_models_are(
    natively: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "n_joint_plans", lambda *sizes: 2)
    monkeypatch.setattr(joint, "n_recovered_again", lambda *sizes: 2)
    monkeypatch.setattr(joint, "MUCH_LOST", -100.0)
    if not natively:
        monkeypatch.setattr(joint_run, "predict_plan", lambda *arguments, **options: None)
    model, data = tiny_model("sdt_v1", torch.float64), tiny_data("sdt_v1", 7)
    calib = replace(tiny_data("sdt_v1", 6), split="calib")
    store = Store(tmp_path)
    table = sweep(
        model, data, ratios=(0.5,), criterion="l2", run=RUN, store=store, recovery_images=calib
    )
    for row in table.joint:
        plan = plan_from_ratios(table.summary, row.ratios, criterion="l2")
        small = apply_plan(model, plan)
        better, _ = recover(small, model, plan, calib, method="stages_bn", run=RUN)
        found = measure(model, data, plan, result=better, run=RUN)
        assert found.drop is not None and found.kl is not None and row.auto_drop is not None
        expected = found.drop.value if found.kl < row.kl else row.drop.value
        assert row.auto_drop.value == pytest.approx(expected)
    (key,) = sweep_keys(store)
    assert read_table(store, load_spec(store, key)) == table


def test_recovered_sweeps_of_older_versions_keep_their_joint_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "n_joint_plans", lambda *sizes: 2)
    monkeypatch.setattr(joint, "n_recovered_again", lambda *sizes: 1)
    store = Store(tmp_path)
    rows = [
        JointRow(
            policy=MIXED, ratios={"robust": r, "middle": r}, drop=exactly(d), kl=0.1, n_images=9
        )
        for r, d in ((0.5, 50.0), (0.2, 1.0))
    ]
    store.put(joint_key("sweep/x"), [row.to_dict() for row in rows])
    assert read_joint(store, "sweep/x") == tuple(rows)
    again = Again(outcomes, 9)
    found = measure_joint(TABLE, outcomes, EVERY_IMAGE, store, "sweep/x", again=again)
    assert [row.drop for row in found] == [row.drop for row in rows]  # not run again
    assert [bool(row.auto_drop) for row in found] == [True, False]
    assert read_joint(store, "sweep/x") == found


def test_a_small_sweep_measures_none() -> None:
    table = sweep(tiny_model("sdt_v1"), tiny_data("sdt_v1", 6), ratios=(0.5,), criterion="l2")
    assert table.joint == ()
