"""Panels of the Plan page: what the plan gives, presets, sliders, planning in the background."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.jobs.client import Job
from psvit_core.jobs.tasks import PlanSettings
from psvit_core.planners import make_plan
from psvit_core.planners._base import group_drop
from psvit_core.plans import reached_ratios
from psvit_core.records import (
    ChannelGroup,
    Measurement,
    ModelSummary,
    PrunePlan,
    SensitivityTable,
)
from psvit_core.sensitivity.table import load_spec
from psvit_core.size import memory_saving, plan_size
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from ui import charts, drafts, loaders, state, tables, words
from ui.drafts import Draft
from ui.panels_job import job_panel, live

POLICY_NAMES = {"uniform": "uniform", "psvit": "PSViT's policy"}
MANY_GROUPS = 20  # more sliders than this are shown one block at a time: each costs time


def predicted_drops(table: SensitivityTable | None, draft: Draft) -> dict[str, float] | None:
    """Each group's own predicted drop under the draft, percentage points; None without a table."""
    if table is None:
        return None
    reached = reached_ratios(table.summary, draft.plan)
    return {g.group_id: group_drop(table, g, reached[g.group_id]) for g in table.summary.groups}


def total_drop(drops: dict[str, float] | None) -> float | None:
    """The predicted drop of the whole plan: the sum, as in ``planners.predict_drop``."""
    return None if drops is None else sum(drops.values())


def result_tiles(
    summary: ModelSummary,
    draft: Draft,
    predicted: float | None,
    measured: Measurement | None,
    *,
    key: str,
) -> None:
    """What the plan gives: exact sizes at once, the predicted drop, the measured one."""
    base, size = plan_size(summary, None), plan_size(summary, draft.plan)
    with st.container(key=key):
        _tile("Memory", words.megabytes(size.bytes), size.bytes / base.bytes - 1)
        _tile("Parameters", f"{size.params:,}", size.params / base.params - 1)
        _tile("MACs a time step", words.count(size.macs), size.macs / base.macs - 1)
        st.metric(
            "Predicted drop", "none yet" if predicted is None else words.points(predicted),
            border=True, height="stretch",
            help="The sum of the groups' own drops from the sweep. Groups interact, so the true "
            "drop of many groups is usually larger: measure it.",
        )  # fmt: skip
        drop = measured.drop if measured else None
        st.metric(
            "Measured drop", words.points(drop.value) if drop else "not measured",
            delta=words.drop_range(drop) if drop else None,
            delta_color="off", delta_arrow="off", border=True, height="stretch",
            help="Percentage points lost against the baseline on the same images, with its 95 % "
            "interval.",
        )  # fmt: skip


def _tile(label: str, value: str, change: float) -> None:
    st.metric(
        label, value, delta=f"{100 * change:.1f} %" if abs(change) >= 5e-4 else None,
        delta_color="inverse", border=True, height="stretch",
    )  # fmt: skip


# ---- presets ---------------------------------------------------------------------------------


def presets_panel(
    workspace: Workspace, summary: ModelSummary, view: loaders.SweepView | None, *, key: str
) -> None:
    """Plans made by a planner for a memory saving, and undo."""
    store = workspace.store
    table = view.table if view else None
    with st.container(horizontal=True, vertical_alignment="bottom", key=key, gap="small"):
        percent = st.number_input(
            "Memory to save, %", 1, 95, 30, key=f"{key}-saving", persist_state="session", width=150
        )
        saving = int(percent) / 100
        for policy, label in (("uniform", "Uniform"), ("psvit", "PSViT")):
            st.button(
                f"{label} at {percent} %", key=f"{key}-{policy}", disabled=table is None,
                on_click=_apply_preset, args=(store, summary, table, policy, saving),
                help=_PRESET_HELP[policy],
            )  # fmt: skip
        spec_key = view.key if view and table else None
        st.button(
            "PSViT, measured while planning", key=f"{key}-measured", disabled=spec_key is None,
            on_click=_start_planning, args=(workspace, spec_key, saving),
            help="Measures each step on the images chosen above instead of predicting it. Runs in "
            "the background.",
        )  # fmt: skip
        st.button(
            "Undo", key=f"{key}-undo", icon=":material/undo:", shortcut="Ctrl+Z", type="tertiary",
            disabled=not state.can_undo(summary), on_click=state.undo, args=(store, summary),
        )  # fmt: skip
        st.button(
            "Reset", key=f"{key}-reset", icon=":material/restart_alt:", type="tertiary",
            disabled=state.draft(store, summary).empty, on_click=_reset, args=(store, summary),
        )  # fmt: skip


_PRESET_HELP = {
    "uniform": "One prune ratio for all groups, the smallest that saves so much. The drop is "
    "predicted from the sweep.",
    "psvit": "A uniform step for half of the saving, then single groups by their sensitivity. The "
    "drop is predicted from the sweep.",
}


def _apply_preset(
    store: Store, summary: ModelSummary, table: SensitivityTable, policy: str, saving: float
) -> None:
    try:
        use_plan(store, summary, make_plan(table, policy, memory_saving=saving))
    except PsvitError as error:
        state.tell_error(error)


def use_plan(store: Store, summary: ModelSummary, plan: PrunePlan) -> None:
    """Make a plan the draft; a plan for another model is told and changes nothing."""
    try:
        state.set_draft(store, summary, drafts.draft_of(summary, plan))
    except PsvitError as error:
        state.tell_error(error)


def _start_planning(workspace: Workspace, spec_key: str, saving: float) -> None:
    settings = PlanSettings(policy="psvit", memory_saving=saving)
    workspace.start_plan(load_spec(workspace.store, spec_key), settings)


def _reset(store: Store, summary: ModelSummary) -> None:
    state.set_draft(store, summary, drafts.empty_draft(summary))


def planning_panel(workspace: Workspace, summary: ModelSummary, draft: Draft, *, key: str) -> None:
    """The planner's work in the background, and its plan when it is done."""
    job = loaders.newest_job(workspace, "plan")
    if job is None or job.params["sweep_key"] is None:
        return
    if job.state != "done":
        job_id = job.id
        live(
            lambda: job_panel(workspace.store, job_id, key=key, noun="Planning"), active=job.active
        )
        return
    plan = PrunePlan.from_dict(job.result["plan"])
    if plan.weights_hash != summary.weights_hash or plan.kept == draft.plan.kept:
        return
    with st.container(horizontal=True, vertical_alignment="center", key=key):
        st.markdown(planned_line(summary, job, plan), width="content")
        st.button(
            "Use this plan", key=f"{key}-use", on_click=use_plan,
            args=(workspace.store, summary, plan),
        )  # fmt: skip


def planned_line(summary: ModelSummary, job: Job, plan: PrunePlan) -> str:
    """A planner's finished plan in one line."""
    saving = words.percent(memory_saving(summary, plan))
    by = POLICY_NAMES[plan.policy]
    text = f"Planned by {by}, measured while planning: saves {saving} of the memory"
    measured = loaders.result_measurement(job)
    return f"{text}, drop {words.drop(measured.drop)}" if measured and measured.drop else text


# ---- sliders ---------------------------------------------------------------------------------


def shown_block(summary: ModelSummary, *, key: str) -> str | None:
    """The block whose sliders are shown; None where all are."""
    if len(summary.groups) <= MANY_GROUPS:
        return None
    names = list(tables.blocks(summary))
    state.settle(f"{key}-block", names, names[0])
    return str(state.chosen(f"{key}-block"))


def sliders_panel(
    store: Store,
    summary: ModelSummary,
    draft: Draft,
    drops: dict[str, float] | None,
    *,
    key: str,
    block: str | None,
    criterion: str,
) -> None:
    """One slider a group; those of ``block`` alone where one is chosen."""
    by_block = tables.blocks(summary)
    shown = list(summary.groups)
    if block is not None:
        st.pills(
            "Block", list(by_block), key=f"{key}-block", required=True, persist_state="session",
            wrap=True,
        )  # fmt: skip
        shown = by_block[block]
    removed = drafts.removed_units(draft, summary)
    with st.container(key=key):
        for group in shown:
            with st.container(gap=None):
                _slider(store, summary, draft, group, key=key, criterion=criterion)
                st.caption(slider_note(draft, group, removed[group.group_id], drops))


def _slider(
    store: Store, summary: ModelSummary, draft: Draft, group: ChannelGroup, *, key: str,
    criterion: str,
) -> None:  # fmt: skip
    name = f"{key}/{summary.weights_hash[:8]}/{group.group_id}"
    state.put_slider(name, drafts.ratio_percent(draft, group.group_id))

    def move() -> None:
        ratio = state.chosen(name) / 100
        changed = drafts.with_ratio(
            state.draft(store, summary), summary, group.group_id, ratio, criterion
        )
        state.set_draft(store, summary, changed)

    st.slider(group.label, 0, drafts.MAX_PERCENT, format="%d %%", key=name, on_change=move)


def slider_note(
    draft: Draft, group: ChannelGroup, removed: int, drops: dict[str, float] | None
) -> str:
    """What a slider's position really does."""
    asked = draft.asked.get(group.group_id, 0.0)
    if not removed:
        return "removes nothing: too few units" if asked else f"all {group.n_units} units stay"
    reached = removed / group.n_units
    text = f"{removed} of {group.n_units} units"
    if abs(reached - asked) > 5e-4:
        text += f", reached {words.ratio(reached)}"
    if drops is not None:
        text += f" · alone {words.points(drops[group.group_id])}"
    return text


def overview_panel(
    summary: ModelSummary,
    draft: Draft,
    drops: dict[str, float] | None,
    *,
    key: str,
    block: str | None,
    dark: bool,
) -> None:
    """The whole plan as bars."""
    removed = drafts.removed_units(draft, summary)
    figure = charts.plan_bars(summary, removed, drops, block=block, dark=dark)
    st.plotly_chart(
        figure, key=key, theme=None, config={"displayModeBar": False},
        alt="Fraction removed of every channel group",
    )  # fmt: skip
    colour = (
        "colour: what the group costs alone, on the scale of the Sensitivity page"
        if drops is not None
        else "no sweep yet, so no colour"
    )
    st.caption(f"Units really removed of every group, in network order; {colour}.")


def plan_line(summary: ModelSummary, plan: PrunePlan) -> str:
    """A plan in one line."""
    base, size = plan_size(summary, None), plan_size(summary, plan)
    return (
        f"**{len(plan.kept)} of {len(summary.groups)}** groups pruned · saves "
        f"**{words.percent(1 - size.bytes / base.bytes)}** of the memory "
        f"({words.megabytes(base.bytes)} → {words.megabytes(size.bytes)}) · "
        f"{size.params:,} parameters · {POLICY_NAMES.get(plan.policy, plan.policy)}, units ranked "
        f"by {plan.criterion}"
    )


def default_file_name(summary: ModelSummary, plan: PrunePlan) -> str:
    """A file name that says which model and how much is saved."""
    saved = round(100 * memory_saving(summary, plan))
    stem = Path(summary.model).stem.removesuffix("-pruned")
    return f"{stem}-saves{saved}.safetensors"
