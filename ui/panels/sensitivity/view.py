"""A sweep on screen: controls of the view, the heatmap, the table."""

from __future__ import annotations

import streamlit as st

from psvit_core.records import ModelSummary
from ui.charts.heatmap import HeatmapSettings, cell_of, sensitivity_heatmap
from ui.model import formats, picked, state, sweeps, tables
from ui.model.foreign import in_markdown
from ui.model.sweeps import SweepView
from ui.panels.sweep_choice import select_shown_sweep
from ui.panels.widgets import NO_TOOLBAR, csv_button

ORDER, KINDS = "order", "kinds"  # widget keys; also the names in the URL
ORDERS = {"Network order": False, "Most sensitive first": True}
_FIRST_ORDER = next(iter(ORDERS))
_LEGEND = (
    "**●** within noise: the 95 % interval includes 0 &ensp; **—** too few units to remove any at "
    "this ratio &ensp; **○** provisional: more images follow &ensp; **▨** not measured yet"
)
_SCALE = {
    "drop": "The colour scale runs from 0 to 10 pp for every sweep, with finer steps for small "
    "drops. The reference, 3 pp, is a common limit for an acceptable drop.",
    "kl": "The colour scale runs from 0 to 1 nat for every sweep, with finer steps for small "
    "values. Outputs change before any prediction does.",
}
_COLUMN_FORMATS = {
    "prune_ratio": "percent",
    "accuracy": "percent",
    "agreement": "percent",
    "memory_saving": "percent",
    "drop_pp": "%.2f",
    "drop_low_pp": "%.2f",
    "drop_high_pp": "%.2f",
    "kl_nats": "%.4f",
    "sops": "%.0f",
}


def view_controls(
    views: list[SweepView], summary: ModelSummary, *, key: str
) -> tuple[SweepView | None, HeatmapSettings]:
    """Draw the controls of the view; order and kinds are also in the URL.

    Args:
        views: The model's sweeps; empty while one is running.
        summary: The model.
        key: Prefix of the widgets' keys.

    Returns:
        (the chosen sweep, None while one is running; how it is displayed).
    """
    with st.container(horizontal=True, gap="medium", key=key):
        shown = select_shown_sweep(views, key=f"{key}-sweep")
        metric = st.segmented_control(
            "Colour",
            list(tables.METRIC_NAMES),
            format_func=tables.METRIC_NAMES.__getitem__,
            default="drop",
            required=True,
            key=f"{key}-metric",
            persist_state="session",
            help="Accuracy drop: percentage points lost compared with the baseline on the same "
            "images. KL: how far the outputs move, even if no prediction changes.",
        )
        order = st.segmented_control(
            "Order",
            list(ORDERS),
            default=_FIRST_ORDER,
            required=True,
            key=ORDER,
            bind="query-params",
        )
        kinds = st.pills(
            "Kinds of channel groups",
            list(dict.fromkeys(group.kind for group in summary.groups)),
            selection_mode="multi",
            key=KINDS,
            bind="query-params",
            format_func=lambda kind: formats.KIND_NAMES.get(kind, kind),
            help="Shows only these kinds; without a choice, all.",
        )
    settings = HeatmapSettings(
        metric=metric or "drop",
        by_sensitivity=ORDERS[order or _FIRST_ORDER],
        kinds=tuple(kinds),
    )
    return shown, settings


def used_line(views: list[SweepView], shown: SweepView | None) -> None:
    """Say which sweep the other pages use, if it is not the shown one."""
    used = sweeps.current_sweep(views)
    if shown and used and used.key != shown.key:
        st.caption(
            f"The other pages use {in_markdown(sweeps.sweep_title(used))} until you choose one."
        )


def heatmap_panel(view: SweepView, settings: HeatmapSettings, *, key: str, dark: bool) -> None:
    """Draw the heatmap; a click on a cell selects it in the widgets of ``group_panel``."""
    figure = sensitivity_heatmap(
        view.summary,
        view.ratios,
        view.rows,
        settings,
        selected=_selected_cell(view, key),
        n_images=view.n_images or None,
        dark=dark,
    )
    st.plotly_chart(
        figure,
        key=f"{key}-chart",
        theme=None,
        on_select=lambda: _select_clicked(key),
        selection_mode="points",
        config=NO_TOOLBAR,
        alt="Sensitivity of every channel group at every prune ratio",
    )
    st.caption(_LEGEND)
    st.caption(_SCALE[settings.metric])


def _selected_cell(view: SweepView, key: str) -> tuple[str, float]:
    """Return the selected (group_id, prune_ratio); by default of the most sensitive group."""
    groups = [g.group_id for g in view.summary.groups]
    picked.fill_field(view.summary)
    worst = tables.most_sensitive_first(view.summary, view.rows, "drop")[0].group_id
    state.ensure_option(f"{key}-group", groups, worst)
    state.ensure_option(f"{key}-ratio", list(view.ratios), view.ratios[len(view.ratios) // 2])
    return state.get(f"{key}-group"), state.get(f"{key}-ratio")


def _select_clicked(key: str) -> None:
    name = state.clicked_point(f"{key}-chart")
    if name is not None:
        group_id, ratio = cell_of(name)
        state.put(f"{key}-group", group_id)
        state.put(f"{key}-ratio", ratio)


def table_panel(view: SweepView, *, key: str) -> None:
    """Draw all measured cells as a table, with a CSV download."""
    columns = {
        name: st.column_config.NumberColumn(format=text) for name, text in _COLUMN_FORMATS.items()
    }
    with st.expander(f"All {len(view.rows)} measured cells as a table", key=f"{key}-open"):
        frame = tables.sensitivity_rows(view.summary, view.rows)
        st.dataframe(frame, key=key, hide_index=True, height=420, column_config=columns)
        csv_button(frame, "sensitivity.csv", key=f"{key}-csv")
