"""The first steps with a model that has no results yet."""

from __future__ import annotations

import streamlit as st

from psvit_core.records import ModelSummary
from psvit_core.workspace import Workspace
from ui.model import loaders, open_files, state, sweeps
from ui.model.formats import plural


def first_steps_panel(workspace: Workspace, summary: ModelSummary, *, key: str) -> None:
    """Draw what to do first, step by step, with the step that comes next marked."""
    has_images = bool(open_files.current_data(workspace))
    measured = loaders.measurement(workspace, None) is not None
    swept = sweeps.current_sweep(sweeps.list_sweeps(workspace.store, summary)) is not None
    steps = (
        ("Choose its images and check them", has_images, "Open"),
        ("Measure the baseline: is the unpruned accuracy what you expect?", measured, "Open"),
        (
            f"Run a sweep: what each of its {plural(len(summary.groups), 'channel group')} costs",
            swept,
            "Sensitivity",
        ),
        ("Make a plan on Tune, or measure a front of plans here", False, "Tune"),
    )
    st.info(
        "Nothing has been measured for this model yet. These steps lead to a first pruned network:",
        icon=":material/insights:",
    )
    following = next(i for i, (_, done, _) in enumerate(steps) if not done)
    for i, (text, done, page) in enumerate(steps):
        with st.container(
            key=f"{key}-{i}", horizontal=True, vertical_alignment="center", gap="small"
        ):
            icon = "check_circle" if done else "radio_button_unchecked"
            strong = "**" if i == following else ""
            st.markdown(
                f":material/{icon}: {strong}{i + 1}. {text}{strong}" + (" · done" if done else ""),
                width="content",
            )
            if i == following and st.button(f"Go to {page}", key=f"{key}-go", type="primary"):
                state.open_page(page)
    st.markdown(
        "Or do it all in one go: a front measures plans of every policy at several savings, after "
        "a sweep if there is none."
    )
