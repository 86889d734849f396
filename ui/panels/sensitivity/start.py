"""Settings of a sweep, its estimated time, and the button that starts it."""

from __future__ import annotations

import streamlit as st

from psvit_core.records import DEFAULT_RATIOS, IMAGE_CRITERIA, ModelSummary, SweepSettings
from psvit_core.workspace import Workspace
from ui.model import formats, loaders, sweeps
from ui.model.durations import sweep_time
from ui.panels.widgets import action_button

RATIO_CHOICES = {"Quick: 25, 50, 75 %": (0.25, 0.5, 0.75), "Full: 10 to 90 %": DEFAULT_RATIOS}
MODE_CHOICES = {"exact": "All", "progressive": "Adaptive"}
_FIRST_RATIOS = next(iter(RATIO_CHOICES))
_SOURCES = {  # of an estimate
    "model": "estimated from the last sweep of this model",
    "machine": "estimated from another model's sweep on this machine",
    "shipped": "estimated from the sweep that ships with the demo, made on another machine",
}


def start_panel(workspace: Workspace, summary: ModelSummary, *, key: str, busy: bool) -> None:
    """Draw the settings of a sweep and the button that starts it."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key=key):
        settings = _settings(key=key)
        action_button(
            "Start sweep",
            _start,
            workspace,
            settings,
            key=f"{key}-start",
            type="primary",
            icon=":material/play_arrow:",
            disabled=busy,
        )
    st.caption(_estimate_line(workspace, summary, settings))


def _settings(*, key: str) -> SweepSettings:
    ratios = st.segmented_control(
        "Prune ratios",
        list(RATIO_CHOICES),
        default=_FIRST_RATIOS,
        required=True,
        key=f"{key}-ratios",
        persist_state="session",
        help="The fractions of a group's units that are removed, one group at a time.",
    )
    mode = st.segmented_control(
        "Images per cell",
        list(MODE_CHOICES),
        format_func=MODE_CHOICES.__getitem__,
        default="exact",
        required=True,
        key=f"{key}-mode",
        persist_state="session",
        help="All: every cell is measured on all images. Adaptive: 64 images for every cell, then "
        "more where the result is uncertain; intervals are wider.",
    )
    criterion = st.selectbox(
        "Rank units by",
        ["", *formats.CRITERION_NAMES],
        format_func=lambda name: formats.CRITERION_NAMES.get(name, formats.DEFAULT_CRITERION_NAME),
        key=f"{key}-criterion",
        persist_state="session",
        width=270,
        help="The importance criterion: the least important units are removed first. Best "
        "measured: reconstruction error, or the L2 norm of writers and readers if the data has no "
        "calibration images.",
    )
    return SweepSettings(
        ratios=RATIO_CHOICES[ratios or _FIRST_RATIOS],
        criterion=criterion or None,
        mode=mode or "exact",
    )


def _estimate_line(workspace: Workspace, summary: ModelSummary, settings: SweepSettings) -> str:
    """Return the number of cells in a sweep and its estimated time."""
    n_groups, n_ratios = len(summary.groups), len(settings.ratios)
    n_images = loaders.n_val_images(workspace)
    n_cells = n_groups * n_ratios
    images = f"{n_images:,} validation images" if n_images else "the validation split"
    size = f"{n_groups} channel groups × {n_ratios} ratios = {n_cells} cells on {images}"
    if n_images is None:
        return f"{size}. Check the images on the Open page to get an estimate of the time."
    estimate = sweep_time(workspace.store, summary, n_cells, n_images)
    if estimate is None:
        return f"{size}. An estimate of the time appears after the first cells."
    ranks_by_images = settings.criterion is None or settings.criterion in IMAGE_CRITERIA
    ranking = " after ranking the units on images" if ranks_by_images else ""
    sooner = " An adaptive sweep may finish sooner." if settings.mode == "progressive" else ""
    return (
        f"{size}: **{formats.rough_duration(estimate.seconds)}**{ranking}, "
        f"{_SOURCES[estimate.source]}.{sooner} Results are stored: a stopped "
        "sweep continues from there."
    )


def _start(workspace: Workspace, settings: SweepSettings) -> None:
    if workspace.card is not None and workspace.card.published:
        workspace.measure(None)  # short jobs run first: the baseline is measured before any cell
    workspace.start_sweep(settings)
    sweeps.forget_choice()  # so that this page shows the new sweep when it is done
