"""Panels of the Compare page: the kept plans, what can be done with one, how two differ."""

from __future__ import annotations

import json
from collections.abc import Sequence

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.store import Store, digest
from psvit_core.workspace import Workspace
from ui import (
    compare,
    drafts,
    kept,
    links,
    loaders,
    plan_charts,
    state,
    sweep_choice,
    sweep_views,
    words,
)
from ui.compare import Entry
from ui.kept import KeptPlan
from ui.panels_job import job_panel, live
from ui.panels_plan import default_file_name, plan_line
from ui.panels_tune_measure import measured_plans, predictor_of

_CURRENT = "current"  # id of the draft beside those of kept plans


def entries_of(
    workspace: Workspace, summary: ModelSummary, plans: Sequence[KeptPlan]
) -> dict[str, Entry]:
    """The kept plans by id, then the current one if it is none of them; with what is known."""
    store, limit = workspace.store, workspace.subject.limit
    view = sweep_choice.current(sweep_views.sweeps(store, summary))
    history = measured_plans(workspace, summary)
    predictor = predictor_of(view, history)
    measured = [past.measurement for past in history]
    chosen = [m for m in measured if limit is None or m.conditions.n_images == limit]
    chosen.sort(key=lambda m: -m.conditions.n_images)
    jobs = compare.finished_jobs(store, summary)
    draft = state.draft(store, summary)
    named = {
        k.id: (f"{k.name} (current)" if k.plan.kept == draft.plan.kept else k.name, k.plan)
        for k in plans
    }
    if not draft.empty and all(k.plan.kept != draft.plan.kept for k in plans):
        named[_CURRENT] = ("Current plan", draft.plan)
    return {
        plan_id: compare.entry(name, plan, predictor, chosen, jobs)
        for plan_id, (name, plan) in named.items()
    }


# ---- keeping and opening ---------------------------------------------------------------------


def keep_panel(store: Store, summary: ModelSummary, plans: Sequence[KeptPlan], *, key: str) -> None:
    """Keep the current plan; open a plan file; take the last deletion back."""
    draft = state.draft(store, summary)
    there = next((k for k in plans if k.plan.kept == draft.plan.kept), None)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key=key):
        name = state.fresh_key(f"{key}-name")
        st.text_input(
            "Name", key=name, placeholder="e.g. Half the MLPs",
            max_chars=kept.MAX_NAME, width=260, disabled=draft.empty or there is not None,
        )  # fmt: skip
        st.button(
            "Keep the current plan", key=f"{key}-keep", type="primary",
            icon=":material/bookmark_add:", disabled=draft.empty or there is not None,
            on_click=_keep, args=(store, summary, draft.plan, name, key),
            help="Keeps it on this machine under that name, beside the others.",
        )  # fmt: skip
        with st.popover("Open a plan file", icon=":material/upload_file:"):
            _upload(store, summary, key=f"{key}-file")
        gone = state.chosen(_gone_key(summary))
        if gone is not None:
            st.button(
                f"Undo: delete {plan_charts.short_name(gone.name)}", key=f"{key}-undo",
                icon=":material/undo:", on_click=_put_back, args=(store, summary),
            )  # fmt: skip
    if draft.empty:
        st.caption("The current plan removes nothing yet: make one on the Tune page.")


def _keep(store: Store, summary: ModelSummary, plan: PrunePlan, name: str, key: str) -> None:
    try:  # the name's field may have changed with this very click
        kept.keep_plan(store, summary, plan, state.chosen(name) or "")
    except PsvitError as error:
        state.tell_error(error)
    else:
        state.renew_key(f"{key}-name")


def _upload(store: Store, summary: ModelSummary, *, key: str) -> None:
    widget = state.fresh_key(key)

    def load() -> None:
        content = state.uploaded(widget)
        if content is None:
            return
        state.renew_key(key)
        try:
            plan = drafts.read_plan(summary, content).plan
            found = kept.keep_plan(store, summary, plan, "From a file")
        except PsvitError as error:
            state.tell(f"The plan was not opened. {error}", "error")
        else:
            state.tell(f"The plan of the file is kept as {compare.escaped(found.name)}.")
            state.choose(f"compare-a/{summary.weights_hash}", found.id)

    st.file_uploader(
        "A plan that was saved as JSON", "json", key=widget, on_change=load, max_upload_size=20
    )


def _put_back(store: Store, summary: ModelSummary) -> None:
    gone = state.chosen(_gone_key(summary))
    if gone is not None:
        kept.put_back(store, summary, gone)
        state.choose(_gone_key(summary), None)


def _gone_key(summary: ModelSummary) -> str:
    return f"kept-gone/{summary.weights_hash}"


# ---- the table -------------------------------------------------------------------------------


def plans_table(
    summary: ModelSummary, entries: dict[str, Entry], *, key: str, pick: tuple[str, str]
) -> None:
    """All plans, a row each; choosing rows chooses the two that are looked at below.

    Args:
        summary: The model.
        entries: By id, in the order of the rows.
        key: Prefix of the widgets' keys.
        pick: Keys of the two choices.
    """
    ids = [*entries]
    name = f"{key}/{','.join(ids)}"

    def take() -> None:
        rows = state.chosen(name)["selection"]["rows"]
        for at, row in zip(pick, rows[:2], strict=False):
            state.choose(at, ids[row])

    st.dataframe(
        compare.plan_rows(summary, [*entries.values()]), key=name, hide_index=True,
        on_select=take, selection_mode="multi-row", row_height=44, height="content",
        column_config={
            "plan": st.column_config.TextColumn("Plan", pinned=True, width=160),
            "ratios": st.column_config.BarChartColumn(
                "Removed by channel group", y_min=0, y_max=100, width=160,
                help="One bar a channel group in network order: its units removed, 0 to 100 %.",
            ),
            "megabytes": st.column_config.NumberColumn("MB", format="%.3f", width=70),
            "saves": st.column_config.NumberColumn(
                "Saves", format="%.1f %%", width=75,
                help="Memory saved against the unpruned model.",
            ),
            "predicted": st.column_config.TextColumn(
                "Predicted drop", width=155,
                help="From the sweep: the sum of the groups' own drops, calibrated by measured "
                "plans.",
            ),
            "measured": st.column_config.TextColumn(
                "Measured drop", width=160, help="Paired against the unpruned model, 95 % interval."
            ),
            "recovered": st.column_config.TextColumn(
                "Drop after recovery", width=150,
                help="Without training; paired against the unpruned model, 95 % interval.",
            ),
            "tuned": st.column_config.TextColumn(
                "Drop after fine-tuning", width=215,
                help="Of the best epoch on validation images, paired against the unpruned model. "
                "No gain: no epoch was better than the network as it came.",
            ),
            "worst": st.column_config.TextColumn(
                "Loses most", width=110, help="The class whose accuracy falls most."
            ),
            "policy": st.column_config.TextColumn("Made by", width=90),
        },
    )  # fmt: skip


def choices(
    summary: ModelSummary, entries: dict[str, Entry], pick: tuple[str, str], *, key: str
) -> tuple[str, str]:
    """The two plans that are looked at: their ids."""
    ids = [*entries]
    names = {plan_id: entry.name for plan_id, entry in entries.items()}
    state.settle(pick[0], ids, ids[-1])
    state.settle(pick[1], ids, ids[0] if len(ids) == 1 else ids[-2])
    stamp = digest([*names.items()])  # a list whose names change is another one to the browser
    with st.container(horizontal=True, gap="medium", key=key):
        for label, at in zip(("Plan", "against"), pick, strict=True):
            widget = f"{at}/{stamp}"
            state.choose(widget, state.chosen(at))
            st.selectbox(
                label, ids, format_func=names.__getitem__, key=widget, width=320,
                on_change=_take_choice, args=(at, widget),
            )  # fmt: skip
    return state.chosen(pick[0]), state.chosen(pick[1])


def _take_choice(at: str, widget: str) -> None:
    state.choose(at, state.chosen(widget))


# ---- one plan --------------------------------------------------------------------------------


def plan_panel(
    workspace: Workspace,
    summary: ModelSummary,
    entry: Entry,
    kept_plan: KeptPlan | None,
    *,
    key: str,
) -> None:
    """What can be done with a plan: load, measure, share, save, rename, delete."""
    store = workspace.store
    draft = state.draft(store, summary)
    st.markdown(plan_line(summary, entry.plan))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key=key):
        st.button(
            "Load into Tune", key=f"{key}-load", icon=":material/tune:",
            disabled=entry.plan.kept == draft.plan.kept, on_click=_load,
            args=(store, summary, entry.plan),
            help="Makes it the current plan; Undo on the Tune page takes that back.",
        )  # fmt: skip
        if entry.measured is None and entry.plan.kept:
            st.button(
                "Measure", key=f"{key}-measure", icon=":material/straighten:",
                on_click=_measure, args=(workspace, entry.plan),
            )  # fmt: skip
        st.button(
            "Share", key=f"{key}-share", icon=":material/link:", disabled=not entry.plan.kept,
            on_click=_share, args=(summary, entry.plan, key),
            help="A link that opens this very plan for whoever has this model.",
        )  # fmt: skip
        st.download_button(
            "Save as JSON", json.dumps(entry.plan.to_dict(), indent=1),
            file_name=default_file_name(summary, entry.plan).replace(".safetensors", ".plan.json"),
            mime="application/json", key=f"{key}-save", icon=":material/download:",
            on_click="ignore",
        )  # fmt: skip
        if kept_plan is not None:
            with st.popover("Rename", icon=":material/edit:"):
                _rename(store, summary, kept_plan, key=f"{key}-rename")
            st.button(
                "Delete", key=f"{key}-delete", icon=":material/delete:", type="tertiary",
                on_click=_delete, args=(store, summary, kept_plan),
            )  # fmt: skip
    if state.chosen(f"{key}-shared") == entry.plan.kept:
        _link(summary, entry.plan)


def _link(summary: ModelSummary, plan: PrunePlan) -> None:
    st.caption("This link opens the plan; the address bar holds it, too.")
    st.code(links.plan_link(summary, plan), language=None, wrap_lines=True)


def _load(store: Store, summary: ModelSummary, plan: PrunePlan) -> None:
    try:
        locked = state.draft(store, summary).locked
        state.set_draft(store, summary, drafts.draft_of(summary, plan, locked))
    except PsvitError as error:
        state.tell_error(error)
    else:
        state.tell("It is the current plan now: see the Tune page.")


def measuring_panel(workspace: Workspace, plan: PrunePlan, *, key: str) -> None:
    """The measurement of a plan that is on its way or failed."""
    job = loaders.plan_job(workspace, "measure", plan)
    if job is None or job.state == "done":
        return
    job_id = job.id
    live(lambda: job_panel(workspace.store, job_id, key=key, noun="Measuring"), active=job.active)


def _measure(workspace: Workspace, plan: PrunePlan) -> None:
    workspace.measure(plan)


def _share(summary: ModelSummary, plan: PrunePlan, key: str) -> None:
    try:
        links.show_in_address(summary, plan)
    except PsvitError as error:
        state.tell(str(error), "warning")
    else:
        state.choose(f"{key}-shared", plan.kept)


def _rename(store: Store, summary: ModelSummary, kept_plan: KeptPlan, *, key: str) -> None:
    name = f"{key}-{kept_plan.id}-{kept_plan.name}"
    st.text_input(
        "New name", kept_plan.name, key=name, max_chars=kept.MAX_NAME,
        on_change=lambda: kept.rename_plan(store, summary, kept_plan, state.chosen(name) or ""),
    )  # fmt: skip


def _delete(store: Store, summary: ModelSummary, kept_plan: KeptPlan) -> None:
    kept.delete_plan(store, summary, kept_plan)
    state.choose(_gone_key(summary), kept_plan)


# ---- two plans -------------------------------------------------------------------------------


def difference_panel(summary: ModelSummary, a: Entry, b: Entry, *, dark: bool, key: str) -> None:
    """What one plan removes more or less than the other, by channel group."""
    st.markdown(compare.difference_line(summary, a, b))
    rows = compare.difference_rows(summary, a, b)
    figure = plan_charts.difference_figure(summary, rows, (a.name, b.name), dark=dark)
    st.plotly_chart(figure, key=f"{key}-heat", config={"displayModeBar": False})
    st.caption(
        f"Filled: units removed, 0 to 100 %. Difference: + {compare.escaped(a.name)} removes "
        f"more, {words.MINUS} {compare.escaped(b.name)} does; empty where both remove as much."
    )
    with st.expander("The same as a table"):
        st.dataframe(
            rows, hide_index=True, key=f"{key}-table",
            column_config={
                "block": "Block", "group": "Channel group", "units": "Units",
                "a": st.column_config.NumberColumn(f"{a.name}, %", format="%.1f"),
                "b": st.column_config.NumberColumn(f"{b.name}, %", format="%.1f"),
                "difference": st.column_config.NumberColumn("Difference, pp", format="%+.1f"),
            },
        )  # fmt: skip


def classes_panel(entries: Sequence[Entry], *, dark: bool, key: str) -> None:
    """Which classes lose and which win, from the measurements of the plans."""
    known = [entry for entry in entries if entry.per_class]
    rows = compare.class_rows(known)
    missing = [entry for entry in entries if not entry.per_class and entry.plan.kept]
    if rows.empty:
        st.markdown(
            "Measure a plan to see which classes lose. A drop of 1 pp may be one class that is "
            "lost altogether."
        )
        return
    names = [entry.name for entry in known]
    st.markdown(compare.classes_line(known))
    st.plotly_chart(
        plan_charts.class_figure(rows, names, dark=dark), key=f"{key}-chart",
        config={"displayModeBar": False},
    )  # fmt: skip
    for entry in missing:
        st.caption(f"{compare.escaped(entry.name)} has no results by class yet: measure it.")
    with st.expander("The same as a table"):
        st.dataframe(rows, hide_index=True, key=f"{key}-table", column_config=_class_columns(names))


def _class_columns(names: Sequence[str]) -> dict[str, object]:
    return {
        "class": "Class",
        "images": "Images",
        "baseline": st.column_config.NumberColumn("Baseline, %", format="%.1f"),
        **{
            compare.change_column(at): st.column_config.NumberColumn(f"{n}, pp", format="%+.1f")
            for at, n in enumerate(names)
        },
    }
