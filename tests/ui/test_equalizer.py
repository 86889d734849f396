"""The equalizer without a browser: the data it gets is exact, the edits it sends are checked."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from psvit_core.errors import PsvitError
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size, plan_widths, size_at
from psvit_core.records import ChannelGroup, Interval, n_pruned
from psvit_core.storage.store import Store
from tests.ui.example import put_sweep, rows, summary
from ui.components.equalizer import columns as equalizer_columns
from ui.components.equalizer.edits import Acknowledgement, Edit, EditError, apply_edit, read_edits
from ui.model import drafts, fitting, predictor, sweeps
from ui.panels.tune import measurement, setup, table

MODEL = summary("sdt_v1_digits")
EMPTY = drafts.empty_draft(MODEL)
CONV, STREAM, QKV, MLP = "stem0", "stream", "block.0.attn.qkv", "block.0.mlp.hidden"


def message(*edits: Any, **changed: Any) -> dict[str, Any]:
    return {"sender": "a", "weights": MODEL.weights_hash, "edits": list(edits), **changed}


def entry(seq: Any = 1, gesture: Any = 1, **changed: Any) -> dict[str, Any]:
    return {"seq": seq, "gesture": gesture, "percents": {}, "locks": {}, **changed}


# ---- data for the browser ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["sdt_v1_digits", "e_spikeformer_digits", "meta_spikeformer_digits"]
)
def test_terms_give_the_exact_joint_size(name: str) -> None:
    model = summary(name)
    terms = equalizer_columns.size_terms(model)
    random = Random(0)
    for _ in range(5):
        ratios = {g.group_id: random.choice((0.0, 0.3, 0.62, 0.95)) for g in model.groups}
        plan = plan_from_ratios(model, ratios, criterion="l2")
        widths = [plan_widths(model, plan)[g.group_id] for g in model.groups]
        size = size_at(model.shapes, plan_widths(model, plan))
        for key in ("bytes", "params", "macs"):
            total = 0.0
            for factor, *axes in terms[key]:
                for axis in axes:
                    factor *= widths[axis]
                total += factor
            assert round(total) == getattr(size, key)


def test_columns_have_measured_and_unmeasured_cells() -> None:
    some = [row for row in rows(MODEL) if row.group_id != QKV]
    by_id = {c["id"]: c for c in equalizer_columns.columns(MODEL, some, (0.1, 0.5, 0.9))}
    assert by_id[QKV]["cells"] == [[0.1], [0.5], [0.9]]
    assert by_id[STREAM]["cells"][1] == [0.5, 32, 10.0, 9.0, 11.0, 0.05]
    assert by_id[CONV]["cells"][0][:2] == [0.1, 0], "a tenth of 8 units is less than one"
    assert all(c["reason"] is None for c in by_id.values())


def test_groups_that_cannot_lose_a_unit_are_locked_with_a_reason() -> None:
    group = dataclasses.replace(MODEL.groups[0], n_units=8, heads=8)
    assert "each head keeps one" in (drafts.locked_reason(group) or "")
    assert n_pruned(0.95, 8, 8) == 0
    single = dataclasses.replace(group, n_units=1, heads=None)
    assert "only unit" in (drafts.locked_reason(single) or "")


@pytest.mark.parametrize(
    ("title", "short"),
    [
        ("residual stream", "stream"),
        ("MLP hidden", "MLP"),
        ("attention q, k", "q, k"),
        ("hidden", "hidden"),
    ],
)
def test_short_titles(title: str, short: str) -> None:
    assert equalizer_columns.short_title(title) == short


# ---- edits from the browser ----------------------------------------------------------------------


def test_edits_are_read_in_order_and_once() -> None:
    second, first = entry(2, percents={MLP: 40}), entry(1, percents={QKV: 30})
    edits, ack = read_edits(message(second, first), MODEL, Acknowledgement())
    assert [edit.percents for edit in edits] == [{QKV: 30}, {MLP: 40}]
    assert ack == Acknowledgement(sender="a", seq=2)
    third = entry(3, gesture=2, locks={MLP: True})
    edits, ack = read_edits(message(first, second, third), MODEL, ack)
    assert [edit.seq for edit in edits] == [3]
    assert read_edits(message(first), MODEL, ack) == ([], Acknowledgement(sender="a", seq=3))
    others, _ = read_edits(message(first, sender="b"), MODEL, ack)
    assert len(others) == 1, "each tab numbers its own edits"


@pytest.mark.parametrize(
    "payload",
    [
        None,
        "edit",
        [],
        {},
        message(sender=""),
        message(sender="a" * 99),
        message(sender=1),
        message(weights="of another model"),
        message(edits={}),
        message("edit"),
        message(entry(seq=0)),
        message(entry(seq=1.5)),
        message(entry(seq=True)),
        message(entry(gesture=None)),
        message(entry(percents=[MLP])),
        message(entry(percents={"none": 3})),
        message(entry(percents={MLP: 96})),
        message(entry(percents={MLP: -1})),
        message(entry(percents={MLP: 30.5})),
        message(entry(percents={MLP: True})),
        message(entry(percents={MLP: "30"})),
        message(entry(percents={MLP: float("nan")})),
        message(entry(locks={"none": True})),
        message(entry(locks={MLP: 1})),
    ],
)
def test_malformed_messages_are_refused(payload: object) -> None:
    with pytest.raises(EditError):
        read_edits(payload, MODEL, Acknowledgement())


def test_an_edit_gives_the_engine_s_plan() -> None:
    step = Edit(seq=1, gesture=1, percents={MLP: 40, QKV: 30})
    draft = apply_edit(EMPTY, MODEL, step)
    expected = plan_from_ratios(MODEL, {MLP: 0.4, QKV: 0.3}, criterion=EMPTY.plan.criterion)
    assert draft.plan.kept == expected.kept
    assert draft.asked == {MLP: 0.4, QKV: 0.3}
    assert apply_edit(EMPTY, MODEL, step, "l1").plan.criterion == "l1"
    back = apply_edit(draft, MODEL, Edit(seq=2, gesture=2, percents={MLP: 0, QKV: 0}))
    assert back.empty and back.asked == {}


def test_locked_groups_cannot_be_edited() -> None:
    locked = apply_edit(EMPTY, MODEL, Edit(seq=1, gesture=1, percents={MLP: 40}, locks={MLP: True}))
    assert locked.locked == (MLP,)
    with pytest.raises(EditError, match="locked"):
        apply_edit(locked, MODEL, Edit(seq=2, gesture=2, percents={MLP: 50, QKV: 50}))
    free = apply_edit(locked, MODEL, Edit(seq=2, gesture=2, locks={MLP: False}))
    assert free.locked == () and free.plan == locked.plan


def test_groups_locked_by_structure_cannot_be_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(group: ChannelGroup) -> str | None:
        return "it must stay" if group.group_id == MLP else None

    monkeypatch.setattr("ui.components.equalizer.edits.locked_reason", reason)
    with pytest.raises(EditError, match="cannot be pruned: it must stay"):
        apply_edit(EMPTY, MODEL, Edit(seq=1, gesture=1, percents={MLP: 50}))


def test_drafts_of_older_versions_load(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = EMPTY.to_dict()
    del old["locked"]
    store.put(f"draft/{MODEL.weights_hash}", old)
    assert drafts.load_draft(store, MODEL) == EMPTY


# ---- the table -----------------------------------------------------------------------------------


def test_table_changes_become_edits() -> None:
    index = [g.group_id for g in MODEL.groups].index(MLP)
    changes = {index: {"remove": 40, "lock": True}, 0: {"remove": 0}}
    (step,) = table.table_steps(EMPTY, MODEL, changes)
    assert (step.percents, step.locks) == ({MLP: 40}, {MLP: True})
    draft = apply_edit(EMPTY, MODEL, step)
    assert table.table_steps(draft, MODEL, changes) == []
    assert not table.has_refused_changes(draft, MODEL, changes)
    assert table.has_refused_changes(draft, MODEL, {index: {"remove": 50}})


def test_table_shows_the_draft(tmp_path: Path) -> None:
    store = Store(tmp_path)
    view = sweeps.SweepView(summary=MODEL, ratios=(), criterion="l2")
    ready = setup.equalizer_setup(MODEL, view)
    draft = apply_edit(EMPTY, MODEL, Edit(seq=1, gesture=1, percents={MLP: 40}, locks={MLP: True}))
    frame = table.table_rows(MODEL, draft, ready).set_index(["block", "group"])
    row = frame.loc[("Block 0", "MLP hidden")]
    assert (row["remove"], row["removed"], row["lock"]) == (40, 102, True)
    assert frame["alone"].isna().all(), "no sweep, no sensitivity"
    assert frame["remove"].sum() == 40
    store.close()


# ---- prediction and planning ---------------------------------------------------------------------


def table_of(tmp_path: Path) -> Any:
    store = Store(tmp_path)
    spec = put_sweep(store, MODEL)
    table = sweeps._Reader(spec).view(store).table
    assert table is not None
    return table


def test_prediction_equals_the_planners_and_has_an_interval(tmp_path: Path) -> None:
    from psvit_core.planners import predict_drop

    table = table_of(tmp_path)
    ratios = {STREAM: 0.5, MLP: 0.75}
    plan = plan_from_ratios(MODEL, ratios, criterion="l2")
    drop = predictor.make_predictor(table).drop(plan)
    assert drop.value == pytest.approx(predict_drop(table, ratios))
    assert 0 <= drop.low < drop.value < drop.high
    assert predictor.make_predictor(table).drop(EMPTY.plan).value == 0


@pytest.mark.parametrize("policy", predictor.policies())
def test_planners_leave_locked_groups(policy: str, tmp_path: Path) -> None:
    table = table_of(tmp_path)
    draft = apply_edit(EMPTY, MODEL, Edit(seq=1, gesture=1, percents={MLP: 40}, locks={MLP: True}))
    draft = apply_edit(draft, MODEL, Edit(seq=2, gesture=2, locks={STREAM: True}))
    fitted = fitting.fit(table, policy, fitting.Limits(saving=0.3), draft)
    assert fitted.locked == (STREAM, MLP)
    assert fitted.plan.kept[MLP] == draft.plan.kept[MLP]
    assert STREAM not in fitted.plan.kept
    unpruned = plan_size(MODEL, None).bytes
    assert plan_size(MODEL, fitted.plan).bytes <= 0.7 * unpruned
    everything = dataclasses.replace(EMPTY, locked=tuple(MODEL.by_id))
    with pytest.raises(PsvitError, match="not reachable"):
        fitting.fit(table, policy, fitting.Limits(saving=0.3), everything)


# ---- predicted against measured ------------------------------------------------------------------


def test_the_prediction_error_is_described() -> None:
    measured = Interval(value=2.0, low=0.5, high=3.5)
    near = measurement.gap_line(Interval(value=1.2, low=0.0, high=2.0), measured)
    assert "0.80" in near and "worse than predicted" in near and "inside" in near
    far = measurement.gap_line(Interval(value=9.0, low=8.0, high=10.0), measured)
    assert "7.00" in far and "better than predicted" in far and "outside" in far
    assert "predicted" not in measurement.gap_line(None, measured)
    drawn = measurement.comparison_html(None, measured)
    assert drawn.count("mark") == 1 and 'role="img"' in drawn
    assert drawn.count('class="middle"') == 2


@pytest.mark.parametrize("high", [20.0, 90.0])
def test_labels_of_a_large_drop_do_not_overlap(high: float) -> None:
    drop = Interval(value=high - 5, low=high - 10, high=high)
    drawn = measurement.comparison_html(None, drop)
    places = {
        text: (side, float(left))
        for side, left, text in re.findall(
            r'<b class="(\w+)" style="left:([\d.]+)%">(.*?)</b>', drawn
        )
    }
    assert places["0"][0] == "before" and places["3 pp"][0] == "after"  # neither reaches the other
    assert 1 < places["0"][1] < places["3 pp"][1]
