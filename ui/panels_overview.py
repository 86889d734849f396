"""Panels of the Overview page: accuracy against cost, the chosen plan, measuring a front."""

from __future__ import annotations

from html import escape
from pathlib import Path

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.fronts import ParetoSettings
from psvit_core.records import Conditions, ModelSummary, PrunePlan
from psvit_core.sensitivity.table import load_spec
from psvit_core.size import memory_saving, plan_size
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from ui import charts, drafts, files, fronts, loaders, predict, state, words
from ui.estimate import plan_time, sweep_time
from ui.fronts import AXES, Overview, Spot
from ui.panels_job import job_panel, live
from ui.panels_plan import default_file_name
from ui.panels_tune import set_budget, set_draft
from ui.sweep_views import SweepView

SAVINGS = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8)
_PLAN = "overview-plan"  # the widget that names the chosen plan

_FILLED = "Filled: measured, with the 95 % interval."
_LEGEND = (
    f"{_FILLED} Hollow: predicted from the sweep; light band: the range in which they are "
    "expected. Thick line: the front, plans that no measured one beats."
)
_LEGEND_TIMED = (
    f"{_FILLED} Whiskers to the sides: the quartiles of the latency. Rings: the front, plans that "
    "no measured one beats."
)
_MARKS = (
    "**≈** its interval overlaps with a neighbour's on the front: which is better is not decided. "
    "**▼** lies below the chart."
)


# ---- the chart -------------------------------------------------------------------------------


def axis_control(*, key: str) -> str:
    """What accuracy is set against."""
    axis = st.segmented_control(
        "Accuracy against", list(AXES), format_func=lambda name: AXES[name].title, default="bytes",
        required=True, key=key, persist_state="session",
        help="\n".join(f"- **{a.title}**: {a.note}" for a in AXES.values()),
    )  # fmt: skip
    return axis or "bytes"


def selected_spot(
    store: Store, view: Overview, predictor: predict.Predictor | None, axis: str
) -> Spot | None:
    """The chosen plan: the draft, or the knee while the draft is empty."""
    draft = state.draft(store, view.summary)
    if draft.empty:
        knee = view.knee(axis)
        return view.spots[knee] if knee else None
    known = view.find(draft.plan)
    if known is not None or predictor is None or view.baseline is None:
        return known
    return fronts.predicted_spot(
        view.summary, draft.plan, predictor, view.baseline, view.measured, mine=True
    )  # fmt: skip


def front_panel(
    store: Store, view: Overview, axis: str, selected: Spot | None, *, key: str, dark: bool
) -> None:
    """The chart; a click on a plan makes it the draft."""

    def click() -> None:
        name = state.clicked_point(key)
        if name in view.spots:
            take_spot(store, view, view.spots[name])

    st.plotly_chart(
        charts.front_chart(view, axis, selected=selected, dark=dark), key=key, theme=None,
        on_select=click, selection_mode="points", config={"displayModeBar": False},
        alt=f"Accuracy of all plans against {AXES[axis].words}",
    )  # fmt: skip
    note = AXES[axis].note
    if axis == "latency" and view.machine:
        m = view.machine
        note += f" Measured on {m.processor}, {m.threads} thread(s); other machines are left out."
    legend = _LEGEND_TIMED if axis == "latency" else _LEGEND
    st.caption(f"{legend} {_MARKS} {note}")


def take_spot(store: Store, view: Overview, spot: Spot) -> None:
    """Make a plan the draft, unless it is that already."""
    draft = state.draft(store, view.summary)
    if draft.plan.kept == spot.plan.kept:
        return
    try:
        set_draft(store, view.summary, drafts.draft_of(view.summary, spot.plan, draft.locked))
    except PsvitError as error:
        state.tell_error(error)


def table_panel(view: Overview, axis: str, *, key: str) -> None:
    """All plans as a table, and as CSV."""
    with st.expander(f"All {len(view.spots)} plans as a table", key=f"{key}-open"):
        frame = fronts.rows(view, axis)
        st.dataframe(
            frame, key=key, hide_index=True, height=420,
            column_config={
                **{
                    name: st.column_config.NumberColumn(format="percent")
                    for name in ("accuracy", "accuracy_low", "accuracy_high")
                },
                **{
                    name: st.column_config.NumberColumn(format="%.2f")
                    for name in frame.columns[7:]
                },
            },
        )  # fmt: skip
        st.download_button(
            "Download CSV", frame.to_csv(index=False), file_name="front.csv", mime="text/csv",
            key=f"{key}-csv", icon=":material/download:", on_click="ignore",
        )  # fmt: skip


# ---- the chosen plan -------------------------------------------------------------------------


def plan_panel(
    workspace: Workspace, view: Overview, spot: Spot, axis: str, *, key: str
) -> None:  # fmt: skip
    """The chosen plan: what it is, what it gives, and what can be done with it."""
    store, summary = workspace.store, view.summary
    options = list(view.spots) if spot.id in view.spots else [spot.id, *view.spots]
    knee = view.knee(axis)
    state.choose(_PLAN, spot.id)

    def pick() -> None:
        name = state.chosen(_PLAN)
        if name in view.spots:
            take_spot(store, view, view.spots[name])

    def titled(name: str) -> str:
        one = view.spots.get(name, spot)
        return one.title + (" · knee" if name == knee else "" if one.measured else " · predicted")

    st.selectbox(
        "Plan", options, format_func=titled, key=_PLAN, on_change=pick,
        help="A click in the chart chooses, too. At first the front's knee within 3 pp of the "
        "baseline: where giving up more accuracy begins to save little.",
    )  # fmt: skip
    size, whole = plan_size(summary, spot.plan), plan_size(summary, None)
    width = 104 if spot.measured else 150  # three fit on a phone; longer labels need two lines
    with st.container(horizontal=True, gap="small", key=f"{key}-tiles"):
        st.metric(
            "Weights", words.megabytes(size.bytes), words.saving(size.bytes, whole.bytes),
            delta_color="off", delta_arrow="off", width=104,
        )  # fmt: skip
        st.metric(
            "Accuracy" if spot.measured else "Accuracy, predicted",
            words.percent(spot.accuracy.value, 2),
            f"{100 * spot.accuracy.low:.1f} to {100 * spot.accuracy.high:.1f}",
            delta_color="off", delta_arrow="off", width=width,
        )  # fmt: skip
        st.metric(
            "Drop" if spot.measured else "Drop, predicted", words.points(spot.drop.value),
            words.drop_range(spot.drop).strip("()"), delta_color="off", delta_arrow="off",
            width=width,
        )  # fmt: skip
    actions_panel(workspace, view, spot, key=f"{key}-do")
    _facts(view, spot, axis, knee)


def _facts(view: Overview, spot: Spot, axis: str, knee: str | None) -> None:
    """The plan in lines, and how it was measured."""
    axis = axis if view.front(axis) else "bytes"  # what the knee goes by, too
    front = {p.point.point_id: p.overlaps for p in view.front(axis)}
    standing = []
    if spot.id == knee:
        standing.append(f"the knee within 3 pp against {AXES[axis].words}")
    elif spot.id in front:
        standing.append(f"on the front against {AXES[axis].words}")
    if front.get(spot.id):
        standing.append("not told apart from a neighbour (≈)")
    whole = plan_size(view.summary, None)
    params = plan_size(view.summary, spot.plan).params
    lines = [
        ("Policy", " and ".join(predict.POLICY_NAMES.get(p, p) for p in spot.policies)),
        ("Standing", ", ".join(standing) or "behind the front" if spot.measured else "predicted"),
        ("Ranked by", words.CRITERIA.get(spot.criterion, spot.criterion)),
        ("Groups pruned", f"{len(spot.plan.kept)} of {len(view.summary.groups)}"),
        ("Parameters", f"{params:,} of {whole.params:,}"),
    ]
    for name, a in AXES.items():
        if name != "bytes" and name in spot.values:
            change = view.whole.get(name)
            saved = f" ({words.saving(spot.values[name], change)})" if change else ""
            spread = fronts.quartiles(spot.times) if name == "latency" else ""
            lines.append((a.title, a.text(spot.values[name]) + spread + saved))
    body = "\n".join(f"| {name} | {value} |" for name, value in lines if value)
    st.markdown(f"| | |\n|:--|:--|\n{body}")
    m = spot.measurement
    if m is not None:
        noise = " The drop is within noise." if words.within_noise(spot.drop) else ""
        st.caption(f"Measured on {words.conditions_line(m.conditions)}.{noise}")
    else:
        raised = (
            f" The sweep alone says a drop of {words.points(spot.raised_from.value)}; a measured "
            "plan of this policy that saves less lost more, so this one is shown with that."
            if spot.raised_from
            else ""
        )
        st.caption(
            f"Predicted from the sweep of single groups; the size is exact.{raised} Measure it to "
            "know."
        )


def actions_panel(workspace: Workspace, view: Overview, spot: Spot, *, key: str) -> None:
    """Prune and download, tune, measure."""
    export = loaders.plan_job(workspace, "export", spot.plan)
    measuring = loaders.plan_job(workspace, "measure", spot.plan) if not spot.measured else None
    there = export is not None and export.state == "done" and Path(export.result["path"]).is_file()
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=key):
        if export is not None and there:
            _download_link(workspace.store, export)
        else:
            st.button(
                "Prune and download", key=f"{key}-export", type="primary",
                icon=":material/content_cut:", disabled=export is not None and export.active,
                on_click=_export, args=(workspace, view, spot),
                help="Writes the pruned network to a file; its download link appears here.",
            )  # fmt: skip
        if st.button(
            "Tune it", key=f"{key}-tune", icon=":material/equalizer:",
            on_click=_tune, args=(workspace.store, view, spot),
            help="Take this plan to the equalizer and change it group by group.",
        ):  # fmt: skip
            state.go_to("Tune")
        if not spot.measured:
            st.button(
                "Measure", key=f"{key}-measure", icon=":material/straighten:",
                disabled=measuring is not None and measuring.active,
                on_click=_measure, args=(workspace, spot.plan),
                help="Prunes a copy and runs it on the validation images, in the background.",
            )  # fmt: skip
    for job, noun in ((export, "The export"), (measuring, "Measuring")):
        if job is not None and job.state != "done":
            _follow(workspace.store, job, key=f"{key}-{job.task}-job", noun=noun)
    if export is not None and there:
        st.caption(f"{export.result['bytes']:,} bytes, SHA-256")
        st.code(export.result["sha256"], language=None, wrap_lines=True)


def _download_link(store: Store, job: Job) -> None:
    name = escape(Path(job.result["path"]).name)
    link = escape(files.file_link(store, job))
    st.html(
        f'<a class="psvit-button" href="{link}" download="{name}">Download {name}</a>',
        width="content",
    )


def _export(workspace: Workspace, view: Overview, spot: Spot) -> None:
    take_spot(workspace.store, view, spot)
    workspace.export(spot.plan, default_file_name(view.summary, spot.plan))


def _tune(store: Store, view: Overview, spot: Spot) -> None:
    take_spot(store, view, spot)
    set_budget(view.summary, memory_saving(view.summary, spot.plan))


def _measure(workspace: Workspace, plan: PrunePlan) -> None:
    workspace.measure(plan)


def _follow(store: Store, job: Job, *, key: str, noun: str) -> None:
    live(lambda: job_panel(store, job.id, key=key, noun=noun), active=job.active, every=0.5)


# ---- measuring a front -----------------------------------------------------------------------


def measure_front_panel(
    workspace: Workspace, summary: ModelSummary, sweep: SweepView | None,
    conditions: Conditions | None, *, key: str, first: bool,
) -> None:  # fmt: skip
    """Measure plans of every policy in the background; first what it takes.

    Args:
        workspace: The model on its images.
        summary: The model.
        sweep: A finished sweep to plan from; swept first when None.
        conditions: Of the sweep, for the number of images.
        key: Prefix of the widgets' keys.
        first: Whether nothing is there yet, so that this is what to do.
    """
    job = loaders.newest_job(workspace, "pareto")
    if job is not None and job.state != "done":
        seen = job.done
        follow = job.id

        def watch() -> bool:
            now = client.find_job(workspace.store, follow)
            if now.active and now.done != seen:
                st.rerun()  # a plan more: the chart has it
            return job_panel(workspace.store, follow, key=f"{key}-job", noun="Measuring plans")

        live(watch, active=job.active)
        if job.active:
            return
    profile = st.toggle(
        "Also peak memory and latency on this machine", key=f"{key}-profile",
        persist_state="session",
    )  # fmt: skip
    settings = settings_of(profile=profile)
    st.button(
        "Measure a front", key=f"{key}-start", icon=":material/insights:",
        type="primary" if first else "secondary", on_click=_start_front,
        args=(workspace, settings, sweep.key if sweep else None),
    )  # fmt: skip
    st.caption(front_estimate(workspace, summary, settings, sweep, conditions))


def settings_of(*, profile: bool) -> ParetoSettings:
    """Every policy at several savings, planned from the sweep."""
    return ParetoSettings(
        policies=tuple(predict.policies()), savings=SAVINGS, measured_planning=False,
        profile=profile,
    )  # fmt: skip


def front_estimate(
    workspace: Workspace, summary: ModelSummary, settings: ParetoSettings,
    sweep: SweepView | None, conditions: Conditions | None,
) -> str:  # fmt: skip
    """What measuring a front takes, in a sentence."""
    n_plans = len(list(settings.cells()))
    n_images = workspace.subject.limit or (conditions.n_images if conditions else None)
    n_images = n_images or loaders.n_val_images(workspace)
    what = (
        f"{len(settings.policies)} policies × {len(settings.savings)} savings = {n_plans} plans, "
        f"planned from the sweep and measured on {words.images(workspace.subject.limit)}"
    )
    n_cells = 0 if sweep else len(summary.groups) * len(settings.ratios)
    if n_cells:
        what += f", after a sweep of {n_cells} cells, since there is none yet"
    seconds = _front_seconds(workspace, summary, settings, n_cells, n_images) if n_images else None
    if seconds is None:
        return f"{what}. How long it takes is told when the first are done."
    pace = "by the pace of what was measured on this machine"
    return f"{what}: {words.minutes(seconds)}, {pace}. Plans that were measured are kept."


def _front_seconds(
    workspace: Workspace, summary: ModelSummary, settings: ParetoSettings, n_cells: int,
    n_images: int,
) -> float | None:  # fmt: skip
    """What a front takes with the sweep before it; None where this machine has not told yet."""
    one = plan_time(workspace, summary, n_images, profile=settings.profile)
    sweep = sweep_time(workspace.store, summary, n_cells, n_images) if n_cells else None
    if one is None or (n_cells and (sweep is None or sweep.source == "shipped")):
        return None
    return one * len(list(settings.cells())) + (sweep.seconds if sweep else 0.0)


def _start_front(workspace: Workspace, settings: ParetoSettings, sweep_key: str | None) -> None:
    workspace.start_pareto(settings, load_spec(workspace.store, sweep_key) if sweep_key else None)
