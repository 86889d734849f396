"""The chosen plan: its numbers, its facts, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import streamlit as st

from psvit_core.jobs.client import Job
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.model import (
    comparison,
    editing,
    formats,
    fronts,
    loaders,
    recovery,
    state,
    stored_weights,
)
from ui.model.foreign import in_markdown
from ui.model.fronts import AXES, Overview, PlanPoint
from ui.panels.job import follow_job
from ui.panels.measurement import measure_button
from ui.panels.overview.front import take_point
from ui.panels.plan import default_file_name
from ui.panels.widgets import action_button, download_link, facts_table

_PLAN = "overview-plan"  # key of the widget that names the chosen plan
_NARROW, _WIDE = 104, 150  # tiles in pixels: three narrow ones fit on a phone


def plan_panel(
    workspace: Workspace, view: Overview, point: PlanPoint, axis: str, *, key: str
) -> None:
    """Draw the chosen plan with its numbers and actions."""
    knee = view.knee(axis)
    _plan_choice(workspace.store, view, point, knee)
    _tiles(view, point, key=f"{key}-tiles")
    actions_panel(workspace, view, point, key=f"{key}-do")
    facts_table(fact for fact in _facts(view, point, axis, knee) if fact[1])
    st.caption(in_markdown(_origin_line(view, point)))


def _plan_choice(store: Store, view: Overview, point: PlanPoint, knee: str | None) -> None:
    options = list(view.points) if point.id in view.points else [point.id, *view.points]
    state.put(_PLAN, point.id)

    def pick() -> None:
        name = state.get(_PLAN)
        if name in view.points:
            take_point(store, view, view.points[name])

    def titled(name: str) -> str:
        one = view.points.get(name, point)
        return one.title + (" · knee" if name == knee else "" if one.measured else " · predicted")

    st.selectbox(
        "Plan",
        options,
        format_func=titled,
        key=_PLAN,
        on_change=pick,
        help="You can also click a plan in the chart. The default is the knee of the front within "
        "3 pp of the baseline: beyond it, losing more accuracy saves little.",
    )


def _tiles(view: Overview, point: PlanPoint, *, key: str) -> None:
    n_bytes, whole = round(point.values["bytes"]), plan_size(view.summary, None).bytes
    suffix, width = ("", _NARROW) if point.measured else (", predicted", _WIDE)
    stored = ""
    if point.weights != stored_weights.FLOAT32:
        stored = f" in {stored_weights.stored_name(point)}"
        if point.measured:
            suffix, width = f" in {stored_weights.accuracy_weights(point)}", _WIDE
    low, high = point.accuracy.low, point.accuracy.high
    saving = formats.relative_change(n_bytes, whole)
    accuracy = formats.percent(point.accuracy.value, 2)
    drop_range = formats.drop_range(point.drop).strip("()")
    tiles = (
        (f"Weights{stored}", formats.megabytes(n_bytes), saving, _WIDE if stored else _NARROW),
        (f"Accuracy{suffix}", accuracy, f"{100 * low:.1f} to {100 * high:.1f}", width),
        (f"Drop{suffix}", formats.points(point.drop.value), drop_range, width),
    )
    with st.container(horizontal=True, gap="small", key=key):
        for label, value, delta, pixels in tiles:
            st.metric(label, value, delta, delta_color="off", delta_arrow="off", width=pixels)


def _facts(
    view: Overview, point: PlanPoint, axis: str, knee: str | None
) -> Iterator[tuple[str, str]]:
    whole, size = plan_size(view.summary, None), plan_size(view.summary, point.plan)
    policies = " and ".join(formats.POLICY_NAMES.get(p, p) for p in point.policies)
    yield "Policy", in_markdown(policies)
    yield "Position", _position(view, point, axis, knee)
    yield "Ranked by", in_markdown(formats.CRITERION_NAMES.get(point.criterion, point.criterion))
    yield "Groups pruned", f"{len(point.plan.kept)} of {len(view.summary.groups)}"
    if point.weights != stored_weights.FLOAT32:
        yield "Bytes", stored_weights.bytes_text(view.summary, point)
    yield "Parameters", f"{size.params:,} of {whole.params:,}"
    for name, a in AXES.items():
        if name != "bytes" and name in point.values:
            unpruned = view.unpruned.get(name)
            saved = (
                f" ({formats.relative_change(point.values[name], unpruned)})" if unpruned else ""
            )
            spread = fronts.quartile_range(point.times) if name == "latency" else ""
            yield a.title, a.format(point.values[name]) + spread + saved


def _position(view: Overview, point: PlanPoint, axis: str, knee: str | None) -> str:
    """Return the plan's position relative to the front."""
    if not point.measured:
        return "predicted"
    axis = axis if view.front(axis) else "bytes"  # as ``Overview.knee`` does
    front = {p.point.point_id: p.overlaps for p in view.front(axis)}
    found = []
    if point.id == knee:
        found.append(f"the knee within 3 pp against {AXES[axis].inline_title}")
    elif point.id in front:
        found.append(f"on the front against {AXES[axis].inline_title}")
    if front.get(point.id):
        found.append("statistically tied with a neighbouring plan (≈)")
    return ", ".join(found) or "behind the front"


def _origin_line(view: Overview, point: PlanPoint) -> str:
    """Return the conditions of the plan's measurement or the origin of its prediction."""
    if point.measurement is not None:
        noise = " The drop is within noise." if formats.within_noise(point.drop) else ""
        before = point.measurement.predicted
        frozen = f" Predicted before: {formats.drop(before)}." if before else ""
        assumed = stored_weights.assumed_line(point)
        return f"Measured on {formats.plan_conditions(point.measurement)}.{noise}{frozen}{assumed}"
    raised = ""
    if point.raised_from:
        raised = (
            f" The sweep alone predicts a drop of {formats.points(point.raised_from.value)}. A "
            "measured plan of this policy that saves less lost more, so that larger drop is shown."
        )
    return (
        f"Predicted from the sweep of single groups ({view.prediction_note}); the size is exact."
        f"{raised} Measure the plan to verify it."
    )


# ---- actions ---------------------------------------------------------------------------------


def actions_panel(workspace: Workspace, view: Overview, point: PlanPoint, *, key: str) -> None:
    """Draw the buttons that prune and download, tune, and measure the plan."""
    store = workspace.store
    # The first button follows the header's choice, the other one is its alternative.
    choices = (True, False) if recovery.used() != "none" else (False, True)
    exports = [loaders.export_job(workspace, point.plan, recovered=r) for r in choices]
    measuring = loaders.plan_job(workspace, "measure", point.plan) if not point.measured else None
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=key):
        for export, recovered in zip(exports, choices, strict=True):
            if (written := _written_file(export)) is not None and export is not None:
                download_link(store, export, written, text=f"Download {written.name}")
            else:
                _export_button(workspace, view, point, export, recovered=recovered, key=key)
        action_button(
            "Edit in Tune",
            _tune,
            store,
            view,
            point,
            key=f"{key}-tune",
            icon=":material/equalizer:",
            help="Opens this plan on the Tune page, to change it group by group.",
        )
        if not point.measured:
            active = measuring is not None and measuring.active
            measure_button(workspace, point.plan, key=f"{key}-measure", disabled=active)
    if recovery.used() != "none" and loaders.lacks_images(workspace):
        st.caption(_without_images(point))
    if view.weights != stored_weights.FLOAT32:
        st.caption("Files written here have fp32 weights. Quantize them on the Export page.")
    drop = point.drop
    text = fronts.loss_warning(*((drop, None) if point.measured else (None, drop)))
    if text:
        st.warning(text, icon=":material/trending_down:")
    names = ("export", "other", "measure")
    for job, name in zip((*exports, measuring), names, strict=True):
        if job is not None and job.state != "done":
            follow_job(store, job, key=f"{key}-{name}-job", every=0.5)
    for export in exports:
        if export is not None and export.written is not None and _written_file(export):
            st.markdown(in_markdown(comparison.gain_text(export)))
            name = Path(export.written.path).name
            st.caption(f"{in_markdown(name)}: {export.written.bytes:,} bytes, SHA-256")
            st.code(export.written.sha256, language=None, wrap_lines=True)


def _without_images(point: PlanPoint) -> str:
    """Return what a model without its images can write, and what that loses."""
    plain = point.measurement.unrecovered if point.measurement else None
    drop = plain.drop if plain else None
    lost = f" Without recovery, this plan loses {formats.drop(drop)}." if drop else ""
    return recovery.NEEDS_IMAGES + lost


def _written_file(export: Job | None) -> Path | None:
    """Return the file of a finished export; None if it no longer exists."""
    if export is None or export.written is None:
        return None
    path = Path(export.written.path)
    return path if path.is_file() else None


def _export_button(
    workspace: Workspace,
    view: Overview,
    point: PlanPoint,
    export: Job | None,
    *,
    recovered: bool,
    key: str,
) -> None:
    first = recovered == (recovery.used() != "none")
    other = "With recovery" if recovered else "Without recovery"
    lacks_images = recovered and loaders.lacks_images(workspace)
    recovers = (
        "Prunes the network, recovers accuracy without training from 256 calibration images, "
        "measures it before and after, and writes the file. Its download link then appears here."
    )
    action_button(
        "Prune and download" if first else other,
        _export,
        workspace,
        view,
        point,
        recovered,
        key=f"{key}-export" if recovered else f"{key}-plain",
        type="primary" if first else "secondary",
        icon=":material/content_cut:",
        disabled=lacks_images or (export is not None and export.active),
        help=(recovery.NEEDS_IMAGES if lacks_images else recovers)
        if recovered
        else "PSViT's own setting: prunes in a single shot and changes no other weight.",
    )


def _export(workspace: Workspace, view: Overview, point: PlanPoint, recovered: bool) -> None:
    take_point(workspace.store, view, point)
    as_pruned = not recovered and recovery.used() != "none"
    name = default_file_name(view.summary, point.plan, as_pruned=as_pruned)
    recovery.export(workspace, point.plan, name, recovered=recovered)


def _tune(store: Store, view: Overview, point: PlanPoint) -> None:
    take_point(store, view, point)
    editing.set_budget(view.summary, memory_saving(view.summary, point.plan))
    state.open_page("Tune")
