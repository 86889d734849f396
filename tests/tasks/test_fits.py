"""The job that counts what a network needs, unpruned and pruned, on a model in use."""

from __future__ import annotations

from pathlib import Path

import pytest

import psvit_core as psvit
from psvit_core.errors import InvalidPlanError
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.metrics.spikes import count_spikes
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import Subject
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.tasks.fits import count_needs
from psvit_core.tasks.session import Session
from tests.tiny import tiny_model


def test_both_networks_are_counted_and_the_model_is_left_alone(tmp_path: Path) -> None:
    model = tiny_model("sdt_v1").eval()
    summary = summarize(model, {"l2": rank(model, "l2")})
    plan = plan_from_ratios(summary, {g.group_id: 0.5 for g in summary.groups}, criterion="l2")
    session = Session(Subject(model="sdt_v1_digits"), Store(tmp_path), _model=model)
    steps = model.T
    with count_spikes(model) as count:  # as a measurement between whose batches the job runs
        unpruned, pruned = count_needs(session, plan)
    assert count.batches == []
    assert count.reached == {}
    assert steps == model.T
    assert pruned is not None
    assert unpruned == psvit.check_fit(model)
    assert pruned.schedules == psvit.check_fit(apply_plan(model, plan)).schedules
    assert unpruned.weight_bytes == plan_size(summary, None).bytes
    assert pruned.weight_bytes == plan_size(summary, plan).bytes
    assert count_needs(session, None) == (unpruned, None)


def test_a_plan_of_other_weights_is_refused(tmp_path: Path) -> None:
    model = tiny_model("sdt_v1").eval()
    foreign = tiny_model("sdt_v2").eval()
    other = summarize(foreign, {"l2": rank(foreign, "l2")})
    plan = plan_from_ratios(other, {other.groups[0].group_id: 0.5}, criterion="l2")
    session = Session(Subject(model="sdt_v1_digits"), Store(tmp_path), _model=model)
    with pytest.raises(InvalidPlanError):
        count_needs(session, plan)
