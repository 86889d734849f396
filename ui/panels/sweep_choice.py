"""Widgets that choose among the sweeps of a model; the choice is shared by all pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from ui.model import recovery, state, sweeps
from ui.model.foreign import in_markdown
from ui.model.sweeps import SweepView

_WIDTH = 380  # pixels


def select_shown_sweep(views: Sequence[SweepView], *, key: str) -> SweepView | None:
    """Choose the sweep to display among all sweeps; the newest is preselected.

    Without any, which means that one is running, the field names that one and returns None.
    """
    if not views:
        st.selectbox(
            "Sweep shown", ["the running sweep"], key=f"{key}-running", width=_WIDTH, disabled=True
        )
        return None

    def title(view: SweepView) -> str:
        return f"{sweeps.sweep_title(view)} · {'complete' if view.complete else 'unfinished'}"

    titles = _titles(views, title)
    chosen = _selectbox("Sweep shown", titles, str(views[0].key), key=key)
    return next(view for view in views if view.key == chosen)


def select_used_sweep(views: Sequence[SweepView], what: str, *, key: str) -> SweepView | None:
    """Name the sweep that a page uses, as a choice where there are several, and return it.

    Args:
        views: All sweeps of the model.
        what: What the page takes from the sweep, for example "Predictions".
        key: The widget's key.
    """
    used = sweeps.current_sweep(views)
    if used is None:
        _other_condition(views, key=f"{key}-other")
        return None
    views = sweeps.under_recovery(views)
    titles = _titles([view for view in views if view.complete], sweeps.sweep_title)
    if len(titles) == 1:
        st.caption(f"{what}: {in_markdown(sweeps.sweep_title(used))}")
    else:
        chosen = _selectbox(what, titles, str(used.key), key=key)
        used = next(view for view in views if view.key == chosen)
    if used.criterion == sweeps.CONTROL:
        st.warning(
            "This sweep ranks units at random, as a control, so plans made from it remove random "
            "units. Run a sweep with another criterion on the Sensitivity page and choose it here."
        )
    return used


def _other_condition(views: Sequence[SweepView], *, key: str) -> None:
    """Say that a complete sweep is there under the other recovery, with a button that takes it."""
    if sweeps.best_sweep(views) is None:
        return
    without = recovery.used() != "none"
    what = "networks as pruned" if without else "networks whose readers were refitted"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=key):
        st.info(
            f"This model's sweep is of {what}, so it does not hold for the recovery chosen at the "
            "top. Run a sweep on the Sensitivity page, or use the sweep as it is.",
            icon=":material/healing:",
        )
        st.button(
            "Numbers without recovery" if without else "Numbers with recovery",
            key=f"{key}-take",
            on_click=state.put,
            args=(state.RECOVERY, "none" if without else "auto"),
        )


def _titles(views: Sequence[SweepView], title: Callable[[SweepView], str]) -> dict[str, str]:
    """Return titles by key, with the data set's name where the sweeps use several."""
    several = len({sweeps.data_name(view) for view in views}) > 1
    return {
        str(view.key): title(view) + (f" · {sweeps.data_name(view)}" if several else "")
        for view in views
    }


def _selectbox(label: str, titles: dict[str, str], default: str, *, key: str) -> str:
    """Draw the choice by key and store it for all pages."""
    known = state.get(sweeps.CHOSEN)
    state.put(key, known if known in titles else default)
    return st.selectbox(
        label,
        list(titles),
        format_func=titles.__getitem__,
        key=key,
        width=_WIDTH,
        on_change=lambda: state.put(sweeps.CHOSEN, state.get(key)),
    )
