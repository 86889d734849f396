"""Every name of the engine that appears on screen has a label, and shared limits have one home."""

from __future__ import annotations

from psvit_core import records
from psvit_core.jobs import client
from psvit_core.sensitivity.spec import TOO_MUCH
from psvit_core.zoo.cards import list_models, shipped_summary
from ui.charts.palette import DARK, HEAT_END, LIGHT
from ui.model import formats, fronts, tables
from ui.panels.job import TASKS
from ui.shell.status import NOUNS


def test_criteria_policies_and_recoveries_have_labels() -> None:
    criteria = {*records.WEIGHT_CRITERIA, *records.IMAGE_CRITERIA}
    assert set(formats.CRITERION_NAMES) == criteria
    assert set(formats.POLICY_NAMES) == set(records.POLICIES)
    assert set(formats.RECOVERY_NAMES) == set(records.RECOVERIES)


def test_tasks_have_labels() -> None:
    assert set(NOUNS) == set(client.KINDS)
    assert set(client.KINDS) <= set(TASKS)


def test_axes_have_labels_in_the_order_of_the_engine() -> None:
    assert tuple(fronts.AXIS_LABELS) == records.AXES
    shown = [name for name in records.AXES if name in fronts.AXES]
    assert list(fronts.AXES) == shown
    assert set(records.AXES) - set(shown) == {"macs"}


def test_kinds_of_channel_groups_have_labels() -> None:
    summaries = [s for name in list_models() if (s := shipped_summary(name))]
    kinds = {group.kind for summary in summaries for group in summary.groups}
    assert len(kinds) > 5
    assert kinds <= set(formats.KIND_NAMES)


def test_policies_have_colours() -> None:
    assert set(LIGHT.policies) == set(DARK.policies) == set(records.POLICIES)


def test_the_heat_scale_ends_where_a_sweep_stops_looking() -> None:
    assert HEAT_END["drop"] == TOO_MUCH
    assert set(HEAT_END) == set(tables.METRIC_NAMES)
