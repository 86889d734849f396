"""The one door to session state: choices, the draft with its undo steps, messages for the next run.

Widgets named here keep their value in the URL (model, images, files) or in the session; everything
else that must outlive a reload is in the store.
"""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path
from typing import Any

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary
from psvit_core.store import Store
from ui import drafts, kept
from ui.drafts import Draft

MODEL = "model"  # widget keys; also the names in the URL
IMAGES = "images"
FILE = "file"
CHECKPOINT = "checkpoint"
DATA = "data"
PAGES = Path(__file__).parents[1] / "pages"
_UNDO_STEPS = 50


# ---- choices ---------------------------------------------------------------------------------


def chosen(key: str, default: Any = None) -> Any:
    """The value under a key, or ``default``."""
    return st.session_state.get(key, default)


def choose(key: str, value: Any) -> None:
    """Set a value; for a widget's key only before the widget is drawn or in a callback.

    A value that stands already is not set again: that would be sent to the browser, over what the
    user may just have chosen there.
    """
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value


def taken(key: str) -> bool:
    """Whether this key was set to something true; forgets it."""
    return bool(st.session_state.pop(key, False))


def settle(key: str, options: list[Any], default: Any) -> None:
    """Give a widget's key a value that is among ``options``, before the widget is drawn."""
    if st.session_state.get(key) not in options:
        st.session_state[key] = default


def settle_first(key: str, default: Any) -> None:
    """Give a widget's key a value to begin with, before the widget is drawn."""
    st.session_state.setdefault(key, default)


def hold(*keys: str) -> None:
    """Before the widgets of these keys are drawn: have them keep their value, and the URL too.

    A quick page switch may stop a run half-way; what the URL had put into a widget is then lost,
    or the URL itself, unless the value is set again.
    """
    for key in keys:
        if key in st.session_state:
            st.session_state[key] = st.session_state[key]
        elif f"held/{key}" in st.session_state:
            st.session_state[key] = st.session_state[f"held/{key}"]


def note(*keys: str) -> None:
    """After the widgets of these keys were drawn: remember their value for ``hold``."""
    for key in keys:
        if key in st.session_state:
            st.session_state[f"held/{key}"] = st.session_state[key]


def clicked_point(key: str) -> str | None:
    """The custom data of the point that was clicked in a chart, inside its callback."""
    points = st.session_state[key].selection.points
    return points[0]["customdata"] if points else None


def uploaded(key: str) -> bytes | None:
    """The content of an uploaded file, inside its callback."""
    file = st.session_state[key]
    return file.getvalue() if file is not None else None


def fresh_key(name: str) -> str:
    """The key of a widget that ``renew_key`` empties."""
    return f"{name}-{st.session_state.get(f'turn/{name}', 0)}"


def renew_key(name: str) -> None:
    """Have the next run draw the widget anew."""
    st.session_state[f"turn/{name}"] = st.session_state.get(f"turn/{name}", 0) + 1


# ---- the draft -------------------------------------------------------------------------------


def draft(store: Store, summary: ModelSummary) -> Draft:
    """The plan being made for this model: of this session, else the one kept in the store."""
    key = _draft_key(summary)
    if key not in st.session_state:
        stored = drafts.load_draft(store, summary)
        st.session_state[_seen_key(summary)] = stored
        st.session_state[key] = stored or drafts.empty_draft(summary)
    found: Draft = st.session_state[key]
    return found


def set_draft(store: Store, summary: ModelSummary, new: Draft, gesture: str | None = None) -> None:
    """Replace the draft; the old one can be had back by ``undo``.

    What another tab has written since is kept as a plan of its own, and told.

    Args:
        store: Where the draft is kept over a reload.
        summary: The model.
        new: The draft from now on.
        gesture: Name of the drag or key press that this belongs to; what one gesture changes in
            several steps is one step to undo. Its draft is written by ``keep_draft``, when the
            answer is on its way.
    """
    same = f"gesture/{summary.weights_hash}"
    if gesture is None or st.session_state.get(same) != gesture:
        steps = _steps(summary)
        steps.append(draft(store, summary))
        del steps[:-_UNDO_STEPS]
    _steps(summary, "redo").clear()
    st.session_state[same] = gesture
    if gesture is None:
        _put_draft(store, summary, new)
    else:
        st.session_state[_draft_key(summary)] = new
        st.session_state[f"unsaved/{summary.weights_hash}"] = True


def keep_draft(store: Store, summary: ModelSummary) -> None:
    """Write the draft of the last gesture, if that was not done yet."""
    if taken(f"unsaved/{summary.weights_hash}"):
        _save_draft(store, summary, draft(store, summary))


def can_undo(summary: ModelSummary) -> bool:
    """Whether there is a step to take back."""
    return bool(_steps(summary))


def can_redo(summary: ModelSummary) -> bool:
    """Whether there is a step to do again."""
    return bool(_steps(summary, "redo"))


def undo(store: Store, summary: ModelSummary) -> None:
    """Take the last change of the draft back."""
    _step(store, summary, "undo", "redo")


def redo(store: Store, summary: ModelSummary) -> None:
    """Do again what was taken back last."""
    _step(store, summary, "redo", "undo")


def _step(store: Store, summary: ModelSummary, source: str, target: str) -> None:
    if steps := _steps(summary, source):
        _steps(summary, target).append(draft(store, summary))
        st.session_state.pop(f"gesture/{summary.weights_hash}", None)
        _put_draft(store, summary, steps.pop())


def _put_draft(store: Store, summary: ModelSummary, new: Draft) -> None:
    st.session_state[_draft_key(summary)] = new
    _save_draft(store, summary, new)


def _save_draft(store: Store, summary: ModelSummary, new: Draft) -> None:
    seen, stored = st.session_state.get(_seen_key(summary)), drafts.load_draft(store, summary)
    lost = drafts.lost_draft(stored, seen, new)
    if lost is not None:
        name = kept.keep_plan(store, summary, lost.plan, "From another tab", lost.tab).name
        st.toast(
            "Another tab has changed this model's plan, too. This tab's is the current one now; "
            f"the other is kept on the Compare page: {name}.",
            icon=":material/tab:",
        )
    tab = st.session_state.setdefault("tab", uuid.uuid4().hex[:8])
    drafts.save_draft(store, summary, dataclasses.replace(new, tab=tab))
    st.session_state[_seen_key(summary)] = new


def _steps(summary: ModelSummary, direction: str = "undo") -> list[Draft]:
    steps: list[Draft] = st.session_state.setdefault(f"{direction}/{summary.weights_hash}", [])
    return steps


def _draft_key(summary: ModelSummary) -> str:
    return f"draft/{summary.weights_hash}"


def _seen_key(summary: ModelSummary) -> str:
    return f"seen/{summary.weights_hash}"


# ---- pages -----------------------------------------------------------------------------------


def go_to(title: str) -> None:
    """Switch to the page of this title; model and images stay."""
    st.switch_page(PAGES / f"{title.lower()}.py")


# ---- messages --------------------------------------------------------------------------------


def tell(text: str, kind: str = "success") -> None:
    """Leave a message (success, warning, error) for the next run of the page."""
    st.session_state["message"] = (kind, text)


def tell_error(error: PsvitError) -> None:
    """Leave an error of the core as a message."""
    tell(str(error), "error")


def take_message() -> tuple[str, str] | None:
    """The message left for this run (kind, text), once."""
    message: tuple[str, str] | None = st.session_state.pop("message", None)
    return message
