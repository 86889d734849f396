"""Which sweep colours, predicts and plans: the one that says most, or the one chosen on a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from psvit_core.zoo.cards import list_models, model_card
from ui import state, words
from ui.sweep_views import SweepView

_CHOSEN = "sweep-chosen"  # key of the sweep that this session chose, on any page
_CONTROL = "random"  # the criterion that others are compared with: no plan should come from it


def best(views: Sequence[SweepView], data: str = "") -> SweepView | None:
    """The complete sweep that says most, None without one.

    One of other images, or of the random control, only where there is no other; then most images,
    most ratios, all images in every cell; of equal ones the first, which is the newest.

    Args:
        views: Sweeps, the newest first.
        data: The images that are worked on, as a data specification or its kind; empty: any.
    """

    def says(v: SweepView) -> tuple[bool, bool, int, int, bool]:
        same = not data or data in (_data(v), _data(v).partition(":")[0])
        return same, v.criterion != _CONTROL, v.n_images, len(v.ratios), v.mode == "exact"

    return max((view for view in views if view.complete), key=says, default=None)


def _data(view: SweepView) -> str:
    return view.conditions.data if view.conditions else ""


def current(views: Sequence[SweepView]) -> SweepView | None:
    """The complete sweep that was chosen in this session, else the best; None without one."""
    key = state.chosen(_CHOSEN)
    chosen = next((v for v in views if v.complete and v.key == key), None)
    data = (state.chosen(state.DATA) or "").strip()
    if not data and views and views[0].summary.model in list_models():
        data = model_card(views[0].summary.model).data
    return chosen or best(views, data)


def forget() -> None:
    """Choose none any more: the Sensitivity page shows the newest, others use the best."""
    state.choose(_CHOSEN, None)


def sweep_title(view: SweepView) -> str:
    """A sweep in one line."""
    ratios = (
        ", ".join(f"{100 * r:g}" for r in view.ratios) + words.GAP + "%"
        if len(view.ratios) <= 4
        else f"{len(view.ratios)} ratios"
    )
    n_images = f"{view.n_images:,} images" if view.n_images else ""
    mode = "progressive" if view.mode == "progressive" else ""
    return " · ".join(filter(None, [view.criterion, ratios, n_images, mode]))


def shown_control(views: Sequence[SweepView], *, key: str) -> SweepView:
    """The sweep to look at, of all that there are; at first the newest."""

    def title(view: SweepView) -> str:
        return f"{sweep_title(view)} · {'complete' if view.complete else 'unfinished'}"

    titles = _titles(views, title)
    chosen = _selectbox("Sweep shown", titles, str(views[0].key), key=key)
    return next(view for view in views if view.key == chosen)


def used_line(views: Sequence[SweepView], what: str, *, key: str) -> SweepView | None:
    """Say which sweep a page uses, as a choice where there are several; returns it.

    Args:
        views: All sweeps of the model.
        what: What comes from it, for example "Predictions".
        key: The widget's key.
    """
    used = current(views)
    if used is None:
        return None
    titles = _titles([view for view in views if view.complete], sweep_title)
    if len(titles) == 1:
        st.caption(f"{what}: {sweep_title(used)}")
    else:
        chosen = _selectbox(what, titles, str(used.key), key=key)
        used = next(view for view in views if view.key == chosen)
    if used.criterion == _CONTROL:
        st.warning(
            "This sweep ranks units at random, as a control: plans made from it remove random "
            "units. Sweep with another criterion on the Sensitivity page, and use that one."
        )
    return used


def _titles(views: Sequence[SweepView], title: Callable[[SweepView], str]) -> dict[str, str]:
    """Titles by key; with the images' name where there are several."""
    several = len({_data(view) for view in views}) > 1
    return {str(view.key): title(view) + (f" · {_data(view)}" if several else "") for view in views}


def _selectbox(label: str, titles: dict[str, str], default: str, *, key: str) -> str:
    """A choice among sweeps by key; what is chosen holds on all pages."""
    known = state.chosen(_CHOSEN)
    state.choose(key, known if known in titles else default)
    return st.selectbox(
        label, list(titles), format_func=titles.__getitem__, key=key, width=380,
        on_change=lambda: state.choose(_CHOSEN, state.chosen(key)),
    )  # fmt: skip
