"""The lists of names in ``records.names`` agree with what implements them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from psvit_core import importance, planners
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.plan.build import plan_from_ratios
from psvit_core.planners._resources import width_form
from psvit_core.records import ParetoSettings, Target, names
from psvit_core.recover import recover
from psvit_core.surgery import apply_plan
from tests.made import TABLE
from tests.pareto.test_pareto import archive_of, measurement, profiled
from tests.tiny import tiny_data, tiny_model


def test_every_policy_has_a_planner() -> None:
    assert tuple(planners.PLANNERS) == names.POLICIES


def test_every_criterion_is_registered() -> None:
    needs_images = {name: c.needs_images for name, c in importance.CRITERIA.items()}
    assert set(needs_images) == set(names.CRITERIA)
    assert {name for name, needed in needs_images.items() if needed} == set(names.IMAGE_CRITERIA)
    assert {name for name, needed in needs_images.items() if not needed} == set(
        names.WEIGHT_CRITERIA
    )
    assert all(name == c.name for name, c in importance.CRITERIA.items())


@pytest.mark.parametrize("method", names.RECOVERIES)
def test_every_recovery_is_implemented(method: str) -> None:
    model = tiny_model("sdt_v1").eval()
    summary = summarize(model, {"l2": rank(model, "l2")})
    ratios = {g.group_id: 0.5 for g in summary.groups}
    plan = plan_from_ratios(summary, ratios, criterion="l2")
    calib = dataclasses.replace(tiny_data("sdt_v1", 4), split="calib")
    _, report = recover(apply_plan(model, plan), model, plan, calib, method=method)
    assert report.method == method
    assert report.used in names.RECOVERIES


def test_every_resource_is_accepted() -> None:
    assert set(names.CLOSED_FORMS) < set(names.RESOURCES)
    for resource in names.RESOURCES:
        assert Target(saving=0.5, resource=resource).resource == resource
    for resource in names.CLOSED_FORMS:
        assert width_form(TABLE.summary, resource).value(np.ones(len(TABLE.summary.groups))) > 0


def test_every_scope_is_accepted() -> None:
    for scope in names.SCOPES:
        assert planners.make_plan(TABLE, memory_saving=0.2, scope=scope).policy == "psvit"
    assert ParetoSettings(scopes=names.SCOPES).scopes == names.SCOPES


def test_every_axis_has_a_value() -> None:
    [point] = archive_of(profiled(measurement(0, 0.9, 9), 5.0)).points
    assert all(point.value(axis) is not None for axis in names.AXES)
