"""Panels of the Sensitivity page: starting a sweep, its heatmap, one group's curve."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from psvit_core.jobs.engine import SweepSettings
from psvit_core.records import ChannelGroup, ModelSummary, SensitivityRow
from psvit_core.sensitivity.table import DEFAULT_RATIOS
from psvit_core.size import plan_size
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from ui import charts, drafts, loaders, state, sweep_choice, tables, words
from ui.estimate import sweep_time
from ui.heatmap import cell_of, sensitivity_heatmap
from ui.sweep_views import SweepView

RATIO_CHOICES = {"Quick: 25, 50, 75 %": (0.25, 0.5, 0.75), "Full: 10 to 90 %": DEFAULT_RATIOS}
MODE_CHOICES = {"exact": "All in every cell", "progressive": "More where it matters"}
_PACES = {
    "model": "as the last sweep of this model",
    "machine": "by the pace of another model here",
    "shipped": "by the pace of the sweep that ships with the demo, on another machine",
}
ORDER, KINDS = "order", "kinds"  # widget keys; also the names in the URL
ORDERS = {"Network order": False, "Most sensitive first": True}

_LEGEND = (
    "**●** within noise: the 95 % interval includes 0 &ensp; **—** removes nothing: too few units "
    "for this ratio &ensp; **○** gets sharper: more images are to come &ensp; **▨** still to run"
)


_SCALE = {
    "drop": "The colour runs from 0 to 10 pp, the same for every sweep, with more room for small "
    "drops. 3 pp, the reference, is what many call too much.",
    "kl": "The colour runs from 0 to 1 nat, the same for every sweep, with more room for small "
    "values. The outputs move before any answer changes.",
}


def start_panel(workspace: Workspace, summary: ModelSummary, *, key: str, busy: bool) -> None:
    """Choose what to sweep, see how long it will take, start it."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key=key):
        ratios = st.segmented_control(
            "Prune ratios", list(RATIO_CHOICES), default=next(iter(RATIO_CHOICES)), required=True,
            key=f"{key}-ratios", persist_state="session",
            help="Which fractions of a group's units are removed, one group at a time.",
        )  # fmt: skip
        mode = st.segmented_control(
            "Images of a cell", list(MODE_CHOICES), format_func=MODE_CHOICES.__getitem__,
            default="exact", required=True, key=f"{key}-mode", persist_state="session",
            help="Exact: every cell sees all images. Progressive: 64 images in every cell, then "
            "more where little is known yet; its drops have wider intervals.",
        )  # fmt: skip
        criterion = st.selectbox(
            "Rank units by", ["", *words.CRITERIA],
            format_func=lambda name: words.CRITERIA.get(name, words.BEST_CRITERION),
            key=f"{key}-criterion", persist_state="session", width=270,
            help="The importance criterion: units with the least are removed first. Best measured: "
            "reconstruction error, or where the data has no calibration images the L2 norm of "
            "writers and readers.",
        )  # fmt: skip
        chosen = RATIO_CHOICES[ratios or next(iter(RATIO_CHOICES))]
        settings = SweepSettings(ratios=chosen, criterion=criterion or None, mode=mode or "exact")
        st.button(
            "Start sweep", key=f"{key}-start", type="primary", icon=":material/play_arrow:",
            disabled=busy, on_click=_start, args=(workspace, settings),
        )  # fmt: skip
    st.caption(_estimate_line(workspace, summary, settings))


def _estimate_line(workspace: Workspace, summary: ModelSummary, settings: SweepSettings) -> str:
    """How much a sweep is and how long it will take."""
    n_groups, n_ratios = len(summary.groups), len(settings.ratios)
    n_images = loaders.n_val_images(workspace)
    n_cells = n_groups * n_ratios
    size = (
        f"{n_groups} channel groups × {n_ratios} ratios = {n_cells} cells on "
        f"{f'{n_images:,} validation images' if n_images else 'the validation split'}"
    )
    if n_images is None:
        return f"{size}. Check the images on the Open page to see how long it will take."
    estimate = sweep_time(workspace.store, summary, n_cells, n_images)
    if estimate is None:
        return f"{size}. How long it takes here is told as soon as the first cells are done."
    most = "at most " if settings.mode == "progressive" else ""
    by_images = settings.criterion is None or settings.criterion in words.IMAGE_CRITERIA
    ranking = " after the ranking by images" if by_images else ""
    return (
        f"{size}: **{most}{words.minutes(estimate.seconds)}**{ranking}, "
        f"{_PACES[estimate.source]}. What is measured is kept: a sweep goes on where it stopped."
    )


def _start(workspace: Workspace, settings: SweepSettings) -> None:
    if workspace.card is not None and workspace.card.published:
        workspace.measure(None)  # short jobs come first: the baseline stands before any cell
    workspace.start_sweep(settings)
    sweep_choice.forget()  # this page shows the new one, when it is done


def how_measured(view: SweepView) -> None:
    """How the sweep's numbers were measured."""
    if view.conditions is None:
        st.caption("The worker is starting; cells appear here as they are measured.")
        return
    baseline = f" · baseline {words.accuracy(view.baseline)}" if view.baseline else ""
    st.caption(
        f"Measured on {words.conditions_line(view.conditions)} · units ranked by "
        f"{view.criterion}{baseline}"
    )


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a sweep is looked at."""

    metric: str  # drop or kl
    by_sensitivity: bool
    kinds: tuple[str, ...]  # of groups that are shown; all when empty


def view_controls(
    views: list[SweepView], summary: ModelSummary, *, key: str
) -> tuple[SweepView | None, Look]:
    """The sweep that is shown (None while one runs), and how; order and kinds are in the URL."""
    with st.container(horizontal=True, gap="medium", key=key):
        shown = sweep_choice.shown_control(views, key=f"{key}-sweep") if views else None
        metric = st.segmented_control(
            "Colour", list(tables.METRICS), format_func=tables.METRICS.__getitem__, default="drop",
            required=True, key=f"{key}-metric", persist_state="session",
            help="Accuracy drop: percentage points lost against the baseline on the same images. "
            "KL: how far the outputs move, which shows before any answer changes.",
        )  # fmt: skip
        order = st.segmented_control(
            "Order", list(ORDERS), default=next(iter(ORDERS)), required=True, key=ORDER,
            bind="query-params",
        )  # fmt: skip
        kinds = list(dict.fromkeys(group.kind for group in summary.groups))
        chosen = st.pills(
            "Kinds of channel groups", kinds, selection_mode="multi", key=KINDS,
            bind="query-params", format_func=lambda kind: words.KINDS.get(kind, kind),
            help="Show only these; none chosen: all.",
        )  # fmt: skip
    used = sweep_choice.current(views)
    if shown and used and used.key != shown.key:
        st.caption(f"The other pages use {sweep_choice.sweep_title(used)}, until one is chosen.")
    look = Look(
        metric=metric or "drop",
        by_sensitivity=ORDERS[order or next(iter(ORDERS))],
        kinds=tuple(chosen),
    )
    return shown, look


def heatmap_panel(view: SweepView, look: Look, *, key: str, dark: bool) -> tuple[str, float]:
    """The heatmap; returns the selected (group_id, prune_ratio)."""
    selected = _selected(view, key)
    figure = sensitivity_heatmap(
        view.summary, view.ratios, view.rows, metric=look.metric,
        by_sensitivity=look.by_sensitivity, kinds=look.kinds, selected=selected,
        n_images=view.n_images or None, dark=dark,
    )  # fmt: skip
    st.plotly_chart(
        figure, key=f"{key}-chart", theme=None, on_select=lambda: _select(key),
        selection_mode="points", config={"displayModeBar": False},
        alt="Sensitivity of every channel group at every prune ratio",
    )  # fmt: skip
    st.caption(_LEGEND)
    st.caption(_SCALE[look.metric])
    return selected


def _selected(view: SweepView, key: str) -> tuple[str, float]:
    """The choice in the two widgets of ``group_panel``; at first the most sensitive group."""
    groups = [g.group_id for g in view.summary.groups]
    worst = tables.most_sensitive_first(view.summary, view.rows, "drop")[0].group_id
    state.settle(f"{key}-group", groups, worst)
    state.settle(f"{key}-ratio", list(view.ratios), view.ratios[len(view.ratios) // 2])
    return state.chosen(f"{key}-group"), state.chosen(f"{key}-ratio")


def _select(key: str) -> None:
    """Take over a click in the heatmap."""
    name = state.clicked_point(f"{key}-chart")
    if name is not None:
        group_id, ratio = cell_of(name)
        state.choose(f"{key}-group", group_id)
        state.choose(f"{key}-ratio", ratio)


def group_panel(
    workspace: Workspace, view: SweepView, metric: str, *, key: str, dark: bool
) -> None:
    """One group: its curve, the numbers of the selected cell, and the way into the plan.

    The two widgets are the selection; a click in the heatmap sets them.
    """
    store, summary = workspace.store, view.summary
    group_id = st.selectbox(
        "Channel group", [g.group_id for g in summary.groups], key=f"{key}-group",
        format_func=lambda g: summary.by_id[g].label, persist_state="session",
    )  # fmt: skip
    ratio = st.segmented_control(
        "Prune ratio", list(view.ratios), format_func=words.ratio, required=True,
        key=f"{key}-ratio", persist_state="session",
    )  # fmt: skip
    ratio = view.ratios[0] if ratio is None else ratio
    group = summary.by_id[group_id]
    rows = [row for row in view.rows if row.group_id == group_id]
    st.plotly_chart(
        charts.sensitivity_curve(group, rows, metric=metric, selected_ratio=ratio, dark=dark),
        key=f"{key}-curve", theme=None, config={"displayModeBar": False},
        alt=f"Cost of pruning {group.label} alone",
    )  # fmt: skip
    row = next((row for row in rows if row.prune_ratio == ratio), None)
    if row is None:
        st.info("This cell is still to run.")
    elif row.n_pruned == 0:
        st.info(
            f"{words.ratio(ratio)} of {group.n_units} units removes nothing: at least one unit"
            f"{' per head' if group.heads else ''} must go."
        )
    else:
        _cell_numbers(row, summary, view.n_images)
    draft = state.draft(store, summary)
    st.button(
        f"Use {words.ratio(ratio)} in my plan", key=f"{key}-use", type="primary",
        disabled=(row is not None and row.n_pruned == 0)
        or view.criterion not in view.summary.rankings,
        on_click=_use, args=(store, view.summary, group_id, ratio, view.criterion),
    )  # fmt: skip
    removed = drafts.removed_units(draft, summary)
    st.caption(
        f"Your plan removes {removed[group_id]} of {group.n_units} units of this group, and prunes "
        f"{tables.changed_groups(summary, removed)} of {len(removed)} groups."
    )
    _coupled(workspace, group, key=f"{key}-coupled")


def _coupled(workspace: Workspace, group: ChannelGroup, *, key: str) -> None:
    """What shrinks with a group, and how its neurons fire where that was measured."""
    writers, readers = tables.coupled_layers(group)
    title = f"Coupled: {len(writers)} layers write its units, {len(readers)} read them"
    with st.expander(title, key=key):
        st.markdown(
            f"**Written by** {_named(writers)}  \n**Read by** "
            f"{_named(readers) or 'no layer: its units meet in a product of attention'}"
        )
        measured = loaders.measurement(workspace, None)
        if measured is None:
            st.caption("Firing rates come with the baseline: measure it on the Open page.")
        elif rates := tables.firing_rates(group, measured.firing):
            st.markdown(
                "**Firing rates in these modules** "
                + ", ".join(f"`{name}` {words.percent(rate)}" for name, rate in rates.items())
            )


def _named(layers: list[str]) -> str:
    more = f" and {len(layers) - 8} more" if len(layers) > 8 else ""
    return ", ".join(f"`{layer}`" for layer in layers[:8]) + more


def _cell_numbers(row: SensitivityRow, summary: ModelSummary, n_images: int) -> None:
    base = plan_size(summary, None)
    group = summary.by_id[row.group_id]
    noise = " · within noise" if words.within_noise(row.drop) else ""
    lines = {
        "Accuracy drop, paired": f"**{words.drop(row.drop)}**{noise}",
        "Accuracy": words.accuracy(row.accuracy),
        "Measured on": words.seen(row, n_images or None),
        "KL to baseline": f"{row.kl:.4f} nats",
        "Same answer as baseline": words.percent(row.agreement, 2),
        "Removed": f"{row.n_pruned} of {group.n_units} units, "
        f"{base.params - row.size.params:,} parameters",
        "Memory": f"{words.saving(row.size.bytes, base.bytes)} ({words.megabytes(row.size.bytes)})",
    }
    if row.drop_of_all and row.n_images != n_images:
        lines["Drop on all images"] = f"{words.drop_range(row.drop_of_all)} pp"
    body = "\n".join(f"| {name} | {value} |" for name, value in lines.items())
    st.markdown(f"| | |\n|:--|:--|\n{body}")


def _use(store: Store, summary: ModelSummary, group_id: str, ratio: float, criterion: str) -> None:
    draft = state.draft(store, summary)
    changed = drafts.with_ratio(draft, summary, group_id, ratio, criterion)
    state.set_draft(store, summary, changed)


def table_panel(view: SweepView, *, key: str) -> None:
    """All measured cells as a table, and as CSV."""
    with st.expander(f"All {len(view.rows)} measured cells as a table", key=f"{key}-open"):
        frame = tables.sensitivity_rows(view.summary, view.rows)
        st.dataframe(
            frame, key=key, hide_index=True, height=420,
            column_config={
                "prune_ratio": st.column_config.NumberColumn(format="percent"),
                "accuracy": st.column_config.NumberColumn(format="percent"),
                "agreement": st.column_config.NumberColumn(format="percent"),
                "memory_saving": st.column_config.NumberColumn(format="percent"),
                "drop_pp": st.column_config.NumberColumn(format="%.2f"),
                "drop_low_pp": st.column_config.NumberColumn(format="%.2f"),
                "drop_high_pp": st.column_config.NumberColumn(format="%.2f"),
                "kl_nats": st.column_config.NumberColumn(format="%.4f"),
                "sops": st.column_config.NumberColumn(format="%.0f"),
            },
        )  # fmt: skip
        st.download_button(
            "Download CSV", frame.to_csv(index=False), file_name="sensitivity.csv",
            mime="text/csv", key=f"{key}-csv", icon=":material/download:", on_click="ignore",
        )  # fmt: skip
