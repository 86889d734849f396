"""A measured drop stands beside what was predicted before, never beside what was fitted to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from psvit_core.jobs import client
from psvit_core.plan.build import plan_from_ratios, reached_ratios
from psvit_core.records import Interval, JointRow, Measurement, PrunePlan, Subject
from psvit_core.records.jobs import MeasureRequest
from psvit_core.sensitivity.joint import joint_key
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.made import exactly, measured_as
from tests.ui.example import put_sweep, summary
from ui.model import comparison, measured, recovery, sweeps
from ui.model.predictor import Predictor, make_predictor
from ui.panels.tune import history, setup

MODEL = summary("e_spikeformer_digits")
GROUPS = [g.group_id for g in MODEL.groups]
FROZEN = Interval(value=1.5, low=0.5, high=3.0)


def plan_of(ratio: float, step: int = 2) -> PrunePlan:
    return plan_from_ratios(MODEL, dict.fromkeys(GROUPS[::step], ratio), criterion="l2")


def predictor_of(store: Store, *, n_joint: int) -> Predictor:
    """Return the predictor of a sweep with joint plans that lose 1 to 10 points."""
    spec = put_sweep(store, MODEL)
    rows = [
        JointRow(
            policy="mixed",
            ratios=dict.fromkeys(GROUPS[:: 1 + n % 3], 0.1 + 0.05 * n),
            drop=exactly(n + 1.0),
            kl=0.1,
            n_images=64,
        ).to_dict()
        for n in range(n_joint)
    ]
    store.put(joint_key(spec.key), rows)
    table = sweeps.sweep_view(store, spec.key).table
    assert table is not None and len(table.joint) == n_joint
    return make_predictor(table)


def measurement_of(predictor: Predictor, plan: PrunePlan, drop: float) -> Measurement:
    found = measured_as(predictor.table)(plan)
    return dataclasses.replace(
        found, drop=exactly(drop), plan=plan, weights_hash=MODEL.weights_hash
    )


def test_predictions_are_of_the_recovery_that_numbers_include(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A joint plan that was recovered again counts under ``auto``, the refit under ``lsq``."""
    store, plan = Store(tmp_path), plan_of(0.4)
    before = predictor_of(store, n_joint=10)
    key = put_sweep(store, MODEL).key
    rows = [dataclasses.replace(row, auto_drop=exactly(1.0)) for row in before.table.joint[5:]]
    joint = (*before.table.joint[:5], *rows)
    store.put(joint_key(key, recovered=True), [row.to_dict() for row in joint])
    view = sweeps.sweep_view(store, key)
    found = {}
    for method in ("auto", "lsq"):
        monkeypatch.setattr(recovery, "used", lambda method=method: method)
        of_pages = measured.calibrated_predictor(view, [])
        of_tune = setup.equalizer_setup(MODEL, view)
        assert of_pages is not None and of_tune.predictor is not None
        assert of_pages.drop(plan) == of_tune.predictor.drop(plan)
        found[method] = of_pages
        assert found[method].version == [
            1.0,
            10,
            *(r.calibrating_drop.value for r in of_pages.table.joint),
        ]
    assert found["lsq"].drop(plan) == before.drop(plan)
    assert found["auto"].drop(plan).value < before.drop(plan).value - 2


@pytest.mark.parametrize("n_joint", [0, 10])
def test_a_measurement_never_changes_what_it_is_compared_with(n_joint: int, tmp_path: Path) -> None:
    plain, plan = predictor_of(Store(tmp_path), n_joint=n_joint), plan_of(0.4)
    found = measurement_of(plain, plan, 40.0)
    fitted = plain.calibrated([found])
    assert fitted.is_recalibrated and not plain.is_recalibrated
    assert fitted.drop(plan).value > plain.drop(plan).value + 5
    assert fitted.from_sweep(plan, found) == plain.drop(plan)
    frozen = dataclasses.replace(found, predicted=FROZEN)
    assert fitted.from_sweep(plan, frozen) == FROZEN
    assert fitted.version != plain.version
    assert ("9 of 10" in plain.note) == (n_joint > 0)

    other = plan_of(0.45)
    shown, open_one = (
        comparison.compared_plan(name, p, fitted, [frozen], [])
        for name, p in (("A", plan), ("B", other))
    )
    assert (shown.predicted, shown.recalibrated) == (FROZEN, None)
    assert open_one.predicted == plain.drop(other)
    assert open_one.recalibrated == fitted.drop(other)
    rows = comparison.plan_rows(MODEL, [shown, open_one])
    assert rows["recalibrated"][0] == "" and rows["recalibrated"][1]
    past = measured.MeasuredPlan(plan=plan, measurement=frozen, ended=0.0)
    assert "1.50" in history._row_html(MODEL, past, fitted)
    assert "1.50" in history._row_html(MODEL, past, None)


def test_the_shown_prediction_is_sent_with_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    predictor = predictor_of(store, n_joint=10)
    workspace = Workspace(Subject(model="e_spikeformer_digits"), store)
    sent: list[MeasureRequest] = []
    monkeypatch.setattr(
        client, "submit", lambda store, title, subject, request, owner: sent.append(request)
    )
    monkeypatch.setattr(workspace, "summary", lambda: MODEL)
    known, plan = plan_of(0.4), plan_of(0.45)
    past = measured.MeasuredPlan(
        plan=known, measurement=measurement_of(predictor, known, 40.0), ended=1.0
    )
    monkeypatch.setattr(measured, "measured_plans", lambda workspace, summary: [past])
    for one in (plan, known, None):
        measured.start_measuring(workspace, one)
    fitted = predictor.calibrated([past.measurement])
    assert [request.predicted for request in sent] == [
        fitted.drop(plan),
        predictor.drop(known),  # not the one that was fitted to its measurement
        None,
    ]


def test_a_group_counts_in_a_drag_as_in_the_prediction(tmp_path: Path) -> None:
    predictor = predictor_of(Store(tmp_path), n_joint=10)
    plan = plan_of(0.3)
    reached = reached_ratios(MODEL, plan)
    alone = sum(predictor.group_drop(group, ratio) for group, ratio in reached.items())
    assert predictor.scale(plan) * alone == pytest.approx(predictor.drop(plan).value)
    assert predictor.scale(plan_from_ratios(MODEL, {}, criterion="l2")) == 1.0
