"""The equalizer without a browser: what goes there is true, what comes back is checked."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from psvit_core.errors import PsvitError
from psvit_core.plans import plan_from_ratios
from psvit_core.records import ChannelGroup, Interval, n_pruned
from psvit_core.size import plan_size, plan_widths, size_at
from psvit_core.store import Store
from tests.ui.example import put_sweep, rows, summary
from ui import drafts, panels_tune, panels_tune_measure, predict, sweep_views
from ui.equalizer import columns as board
from ui.equalizer.edits import Ack, EditError, Step, apply_step, read_steps

MODEL = summary("sdt_v1_digits")
EMPTY = drafts.empty_draft(MODEL)
CONV, STREAM, QKV, MLP = "stem0", "stream", "block.0.attn.qkv", "block.0.mlp.hidden"


def message(*steps: Any, **changed: Any) -> dict[str, Any]:
    return {"sender": "a", "weights": MODEL.weights_hash, "steps": list(steps), **changed}


def edit(seq: Any = 1, gesture: Any = 1, **changed: Any) -> dict[str, Any]:
    return {"seq": seq, "gesture": gesture, "percents": {}, "locks": {}, **changed}


# ---- what the browser is told ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["sdt_v1_digits", "e_spikeformer_digits", "meta_spikeformer_digits"]
)
def test_terms_give_the_exact_joint_size(name: str) -> None:
    model = summary(name)
    terms = board.size_terms(model)
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


def test_columns_say_what_was_measured_and_what_not() -> None:
    some = [row for row in rows(MODEL) if row.group_id != QKV]
    by_id = {c["id"]: c for c in board.columns(MODEL, some, (0.1, 0.5, 0.9))}
    assert by_id[QKV]["cells"] == [[0.1], [0.5], [0.9]]
    assert by_id[STREAM]["cells"][1] == [0.5, 32, 10.0, 9.0, 11.0, 0.05]
    assert by_id[CONV]["cells"][0][:2] == [0.1, 0], "8 units: a tenth removes none"
    assert all(c["reason"] is None for c in by_id.values())


def test_groups_that_cannot_lose_a_unit_are_locked_with_a_reason() -> None:
    group = dataclasses.replace(MODEL.groups[0], n_units=8, heads=8)
    assert "each head keeps one" in (board.locked_reason(group) or "")
    assert n_pruned(0.95, 8, 8) == 0
    single = dataclasses.replace(group, n_units=1, heads=None)
    assert "only unit" in (board.locked_reason(single) or "")


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
    assert board.short_title(title) == short


# ---- what the browser sends --------------------------------------------------------------------


def test_steps_are_read_in_order_and_once() -> None:
    second, first = edit(2, percents={MLP: 40}), edit(1, percents={QKV: 30})
    steps, ack = read_steps(message(second, first), MODEL, Ack())
    assert [step.percents for step in steps] == [{QKV: 30}, {MLP: 40}]
    assert ack == Ack(sender="a", seq=2)
    third = edit(3, gesture=2, locks={MLP: True})
    steps, ack = read_steps(message(first, second, third), MODEL, ack)
    assert [step.seq for step in steps] == [3]
    assert read_steps(message(first), MODEL, ack) == ([], Ack(sender="a", seq=3))
    others, _ = read_steps(message(first, sender="b"), MODEL, ack)
    assert len(others) == 1, "another tab counts for itself"


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
        message(steps={}),
        message("step"),
        message(edit(seq=0)),
        message(edit(seq=1.5)),
        message(edit(seq=True)),
        message(edit(gesture=None)),
        message(edit(percents=[MLP])),
        message(edit(percents={"none": 3})),
        message(edit(percents={MLP: 96})),
        message(edit(percents={MLP: -1})),
        message(edit(percents={MLP: 30.5})),
        message(edit(percents={MLP: True})),
        message(edit(percents={MLP: "30"})),
        message(edit(percents={MLP: float("nan")})),
        message(edit(locks={"none": True})),
        message(edit(locks={MLP: 1})),
    ],
)
def test_anything_else_is_refused(payload: object) -> None:
    with pytest.raises(EditError):
        read_steps(payload, MODEL, Ack())


def test_a_step_makes_the_core_s_plan() -> None:
    step = Step(seq=1, gesture=1, percents={MLP: 40, QKV: 30})
    draft = apply_step(EMPTY, MODEL, step)
    expected = plan_from_ratios(MODEL, {MLP: 0.4, QKV: 0.3}, criterion=EMPTY.plan.criterion)
    assert draft.plan.kept == expected.kept
    assert draft.asked == {MLP: 0.4, QKV: 0.3}
    assert apply_step(EMPTY, MODEL, step, "l1").plan.criterion == "l1"
    back = apply_step(draft, MODEL, Step(seq=2, gesture=2, percents={MLP: 0, QKV: 0}))
    assert back.empty and back.asked == {}


def test_locks_hold() -> None:
    locked = apply_step(EMPTY, MODEL, Step(seq=1, gesture=1, percents={MLP: 40}, locks={MLP: True}))
    assert locked.locked == (MLP,)
    with pytest.raises(EditError, match="locked"):
        apply_step(locked, MODEL, Step(seq=2, gesture=2, percents={MLP: 50, QKV: 50}))
    free = apply_step(locked, MODEL, Step(seq=2, gesture=2, locks={MLP: False}))
    assert free.locked == () and free.plan == locked.plan


def test_structure_locks_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(group: ChannelGroup) -> str | None:
        return "it must stay" if group.group_id == MLP else None

    monkeypatch.setattr("ui.equalizer.edits.locked_reason", reason)
    with pytest.raises(EditError, match="cannot be pruned: it must stay"):
        apply_step(EMPTY, MODEL, Step(seq=1, gesture=1, percents={MLP: 50}))


def test_drafts_of_older_versions_load(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = EMPTY.to_dict()
    del old["locked"]
    store.put(f"draft/{MODEL.weights_hash}", old)
    assert drafts.load_draft(store, MODEL) == EMPTY


# ---- the numeric twin --------------------------------------------------------------------------


def test_table_edits_become_steps() -> None:
    index = [g.group_id for g in MODEL.groups].index(MLP)
    changes = {index: {"remove": 40, "lock": True}, 0: {"remove": 0}}
    (step,) = panels_tune.table_steps(EMPTY, MODEL, changes)
    assert (step.percents, step.locks) == ({MLP: 40}, {MLP: True})
    draft = apply_step(EMPTY, MODEL, step)
    assert panels_tune.table_steps(draft, MODEL, changes) == []
    assert not panels_tune.refused(draft, MODEL, changes)
    assert panels_tune.refused(draft, MODEL, {index: {"remove": 50}})


def test_table_shows_the_draft(tmp_path: Path) -> None:
    store = Store(tmp_path)
    view = sweep_views.SweepView(summary=MODEL, ratios=(), criterion="l2")
    ready = panels_tune.prepared(MODEL, view)
    draft = apply_step(EMPTY, MODEL, Step(seq=1, gesture=1, percents={MLP: 40}, locks={MLP: True}))
    frame = panels_tune.table_rows(MODEL, draft, ready).set_index(["block", "group"])
    row = frame.loc[("Block 1", "MLP hidden")]
    assert (row["remove"], row["removed"], row["lock"]) == (40, 102, True)
    assert frame["alone"].isna().all(), "no sweep, no sensitivity"
    assert frame["remove"].sum() == 40
    store.close()


# ---- prediction and planning -------------------------------------------------------------------


def table_of(tmp_path: Path) -> Any:
    store = Store(tmp_path)
    spec = put_sweep(store, MODEL)
    table = sweep_views._Reader(spec).view(store).table
    assert table is not None
    return table


def test_prediction_is_the_planners_with_an_interval(tmp_path: Path) -> None:
    from psvit_core.planners import predict_drop

    table = table_of(tmp_path)
    ratios = {STREAM: 0.5, MLP: 0.75}
    plan = plan_from_ratios(MODEL, ratios, criterion="l2")
    drop = predict.predictor(table).drop(plan)
    assert drop.value == pytest.approx(predict_drop(table, ratios))
    assert 0 <= drop.low < drop.value < drop.high
    assert predict.predictor(table).drop(EMPTY.plan).value == 0


@pytest.mark.parametrize("policy", predict.policies())
def test_plans_go_around_locks(policy: str, tmp_path: Path) -> None:
    table = table_of(tmp_path)
    draft = apply_step(EMPTY, MODEL, Step(seq=1, gesture=1, percents={MLP: 40}, locks={MLP: True}))
    draft = apply_step(draft, MODEL, Step(seq=2, gesture=2, locks={STREAM: True}))
    fitted = predict.fit(table, policy, 0.3, draft)
    assert fitted.locked == (STREAM, MLP)
    assert fitted.plan.kept[MLP] == draft.plan.kept[MLP]
    assert STREAM not in fitted.plan.kept
    whole = plan_size(MODEL, None).bytes
    assert plan_size(MODEL, fitted.plan).bytes <= 0.7 * whole
    everything = dataclasses.replace(EMPTY, locked=tuple(MODEL.by_id))
    with pytest.raises(PsvitError, match="not reachable"):
        predict.fit(table, policy, 0.3, everything)


# ---- predicted against measured ----------------------------------------------------------------


def test_the_gap_is_said() -> None:
    measured = Interval(value=2.0, low=0.5, high=3.5)
    near = panels_tune_measure.gap_line(Interval(value=1.2, low=0.0, high=2.0), measured)
    assert "0.80" in near and "more than predicted" in near and "inside" in near
    far = panels_tune_measure.gap_line(Interval(value=9.0, low=8.0, high=10.0), measured)
    assert "7.00" in far and "less than predicted" in far and "outside" in far
    assert "Predicted" not in panels_tune_measure.gap_line(None, measured)
    drawn = panels_tune_measure.comparison_html(None, measured, final=True)
    assert drawn.count("mark") == 1 and 'role="img"' in drawn
    assert drawn.count('class="middle"') == 2


@pytest.mark.parametrize("high", [20.0, 90.0])
def test_ticks_of_a_large_drop_stand_apart(high: float) -> None:
    drop = Interval(value=high - 5, low=high - 10, high=high)
    drawn = panels_tune_measure.comparison_html(None, drop, final=True)
    places = {
        text: (side, float(left))
        for side, left, text in re.findall(
            r'<b class="(\w+)" style="left:([\d.]+)%">(.*?)</b>', drawn
        )
    }
    assert places["0"][0] == "before" and places["3 pp"][0] == "after"  # neither reaches the other
    assert 1 < places["0"][1] < places["3 pp"][1]
