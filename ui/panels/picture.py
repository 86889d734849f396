"""The picture of the network, collapsible, for the pages Open and Tune."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from psvit_core.picture import (
    GroupValues,
    bytes_values,
    firing_values,
    network_svg,
    sensitivity_values,
)
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.workspace import Workspace
from ui.components.picture import picture
from ui.model import loaders, picked, state
from ui.model.foreign import in_markdown
from ui.model.sweeps import SweepView
from ui.panels.widgets import action_button

_BYTES, _DROP, _FIRING = "Bytes", "Sensitivity", "Firing rate"


def picture_panel(
    workspace: Workspace,
    summary: ModelSummary,
    plan: PrunePlan | None,
    find_sweep: Callable[[], SweepView | None],
    *,
    key: str,
    dark: bool,
) -> None:
    """Draw the picture in an expander; what is closed is not computed.

    Args:
        workspace: The model on its images.
        summary: The model.
        plan: The plan whose removed part is hatched.
        find_sweep: Returns the sweep that colours the groups; None before one has begun.
        key: Prefix of the widgets' keys.
        dark: Theme.
    """
    with st.expander(
        "Picture of the network", key=f"{key}-open", icon=":material/schema:", on_change="rerun"
    ) as box:
        if not box.open:
            return
        view = find_sweep()
        values = _values(workspace, summary, view, key)
        picture(
            network_svg(summary, plan, values, theme="dark" if dark else "light"),
            summary.groups,
            chosen=picked.picked_group(summary),
            key=key,
            on_choose=picked.pick_group,
        )
        st.caption(
            "Bars are as long as groups have channels; what the plan removes is hatched. The thick "
            "lines on the left are residual streams. Arrows lead from what layers read to what "
            "they compute. Click a group, or press Enter on it, to choose it. Arrow keys move."
        )
        _next_steps(summary, plan, values, view, key)


def _values(
    workspace: Workspace, summary: ModelSummary, view: SweepView | None, key: str
) -> GroupValues:
    """Draw the choice of colours, and return the values that it names."""
    measured = loaders.measurement(workspace, None)
    firing = firing_values(summary, measured.firing) if measured else None
    rows = view.rows if view else ()
    options = [_DROP] if rows else []
    options += [_BYTES, *([_FIRING] if firing and firing.by_group else [])]
    state.ensure_option(f"{key}-colour", options, options[0])
    colour = st.segmented_control(
        "Colour",
        options,
        required=True,
        key=f"{key}-colour",
        persist_state="session",
        help="Sensitivity: accuracy drop when the group alone is pruned, from the sweep. Bytes: of "
        "the tensors that have its channels. Firing rate: measured for the baseline, of the "
        "neurons beside its layers.",
    )
    if colour == _DROP and rows:
        return sensitivity_values(rows)
    return firing if colour == _FIRING and firing else bytes_values(summary)


def _next_steps(
    summary: ModelSummary,
    plan: PrunePlan | None,
    values: GroupValues,
    view: SweepView | None,
    key: str,
) -> None:
    chosen = picked.picked_group(summary)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.download_button(
            "Download SVG",
            network_svg(summary, plan, values),
            file_name="network.svg",
            mime="image/svg+xml",
            key=f"{key}-svg",
            icon=":material/download:",
            on_click="ignore",
        )
        if chosen and view:
            action_button(
                f"Show {in_markdown(summary.by_id[chosen].label)} in the heatmap",
                state.open_page,
                "Sensitivity",
                key=f"{key}-heatmap",
                icon=":material/grid_on:",
            )
