"""Session state: widget values, the draft with its undo history, messages for the next run.

All access to the session goes through here. Widgets named here keep their value in the URL (model,
images, files) or in the session. Everything else that must survive a reload is in the store.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.storage.store import Store, digest
from ui.model import drafts, saved_plans
from ui.model.drafts import Draft
from ui.model.foreign import in_markdown

MODEL = "model"  # widget keys; also the names in the URL
IMAGES = "images"
RECOVERY = "recovery"
FILE = "file"
CHECKPOINT = "checkpoint"
DATA = "data"
ENTRY = "entry"  # of a checkpoint file with several state dicts: the one to load
ARGUMENTS = "arguments"  # of a checkpoint file: what its tensors do not reveal
COMPARED = "compare-a/{}"  # session key by weights hash: the first plan on the Compare page
BROWSER = "browser"  # session key: whose plans it edits; empty or missing: those of all browsers
SHOWN = "shown-model"  # session key: description of the model that the page shows
PAGES = Path(__file__).parents[2] / "pages"
_UNDO_STEPS = 50
_CLICKED, _POSTPONED = "clicked-button", "postponed-action"


# ---- values --------------------------------------------------------------------------------------


def get(key: str, default: Any = None) -> Any:
    """Return the value of a key, or ``default``."""
    return st.session_state.get(key, default)


def put(key: str, value: Any) -> None:
    """Set a value. For a widget's key: only before the widget is drawn, or in a callback.

    An equal value is not set again: Streamlit would send it to the browser and overwrite what the
    user may just have chosen there.
    """
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value


def pop(key: str) -> Any:
    """Return the value of a key and delete it; None if it has none."""
    return st.session_state.pop(key, None)


def pop_flag(key: str) -> bool:
    """Return whether a key was set to a true value, and delete it."""
    return bool(st.session_state.pop(key, False))


def ensure_option(key: str, options: list[Any], default: Any) -> None:
    """Set a widget's value to ``default`` if it is not among its options, before it is drawn."""
    if st.session_state.get(key) not in options:
        st.session_state[key] = default


def set_default(key: str, default: Any) -> None:
    """Set a widget's value if it has none, before it is drawn."""
    st.session_state.setdefault(key, default)


def restore_values(*keys: str) -> None:
    """Set the remembered values of widgets again, before they are drawn.

    A quick page switch may stop a run halfway. Unless the values are set again, the widgets, or the
    URL that they are bound to, then lose them.
    """
    for key in keys:
        if key in st.session_state:
            st.session_state[key] = st.session_state[key]
        elif f"remembered/{key}" in st.session_state:
            st.session_state[key] = st.session_state[f"remembered/{key}"]


def remember_values(*keys: str) -> None:
    """Remember the values of widgets for ``restore_values``, after they were drawn."""
    for key in keys:
        if key in st.session_state:
            st.session_state[f"remembered/{key}"] = st.session_state[key]


def clicked_point(key: str) -> str | None:
    """Return the custom data of the point clicked in a chart, in the chart's callback."""
    points = st.session_state[key].selection.points
    return points[0]["customdata"] if points else None


def uploaded(key: str) -> bytes | None:
    """Return the content of an uploaded file, in the uploader's callback."""
    file = st.session_state[key]
    return file.getvalue() if file is not None else None


def resettable_key(name: str) -> str:
    """Return the key of a widget that ``reset_widget`` can reset."""
    return f"{name}-{st.session_state.get(f'resets/{name}', 0)}"


def reset_widget(name: str) -> None:
    """Make the next run recreate a widget with its initial value."""
    st.session_state[f"resets/{name}"] = st.session_state.get(f"resets/{name}", 0) + 1


def key_of_content(name: str, content: object) -> str:
    """Return the key of a widget whose options are ``content``: a new one whenever that changes.

    The browser keeps a list's value by its options' positions, so that new options need a new
    widget. Old options that come back need one, too: the browser may have forgotten the widget of
    the first time while the server still knows it, and then shows the first option.
    """
    kept = f"contents/{name}"
    number, before = st.session_state.get(kept, (0, None))
    now = digest(content)
    if before != now:
        number += 1
        st.session_state[kept] = number, now
    return f"{name}/{number}"


# ---- clicks --------------------------------------------------------------------------------------


def note_click(key: str) -> None:
    """Remember that a button was clicked, until ``take_click`` or ``forget_click``."""
    st.session_state[_CLICKED] = key


def take_click(key: str) -> bool:
    """Return whether this button was the one clicked last, once."""
    if st.session_state.get(_CLICKED) != key:
        return False
    forget_click()
    return True


def forget_click() -> None:
    """Forget a click that no button took: the page was drawn whole, and its button is gone."""
    st.session_state.pop(_CLICKED, None)


def postpone(action: Callable[[], object]) -> None:
    """Make the next run call ``action`` before it draws anything, as a callback would be."""
    st.session_state[_POSTPONED] = action


def run_postponed() -> None:
    """Call what the previous run postponed; an error that a user can cause becomes a message."""
    action = st.session_state.pop(_POSTPONED, None)
    if action is None:
        return
    try:
        action()
    except PsvitError as error:
        leave_error(error)


def tab_id() -> str:
    """Return a name of this browser tab's session."""
    found: str = st.session_state.setdefault("tab", uuid.uuid4().hex[:8])
    return found


# ---- the draft -----------------------------------------------------------------------------------


def draft(store: Store, summary: ModelSummary) -> Draft:
    """Return the session's draft for this model; at first the stored one, or an empty one."""
    key = _draft_key(summary)
    if key not in st.session_state:
        stored = drafts.load_draft(store, summary, _browser())
        st.session_state[_seen_key(summary)] = stored
        st.session_state[key] = stored or drafts.empty_draft(summary)
        for direction, steps in drafts.load_history(store, summary, _browser()).items():
            _history(summary, direction).extend(steps)
    found: Draft = st.session_state[key]
    return found


def set_draft(store: Store, summary: ModelSummary, new: Draft, gesture: str | None = None) -> None:
    """Replace the draft; ``undo`` restores the old one.

    A draft that another tab has stored meanwhile is saved as a plan, with a notice.

    Args:
        store: The store that makes the draft survive a reload.
        summary: The model.
        new: The new draft.
        gesture: Name of the drag or key press that the change belongs to. Changes of one gesture
            are undone together, and stored by ``save_pending_draft``, after the page has answered.
    """
    key, old = f"gesture/{summary.weights_hash}", draft(store, summary)
    if new != old:  # a browser may report one edit twice, when the page answers slowly
        if gesture is None or st.session_state.get(key) != gesture:
            history = _history(summary)
            history.append(old)
            del history[:-_UNDO_STEPS]
        _history(summary, "redo").clear()
        st.session_state[key] = gesture
    if gesture is None:
        _put_draft(store, summary, new)
    else:
        st.session_state[_draft_key(summary)] = new
        st.session_state[f"unsaved/{summary.weights_hash}"] = True


def save_pending_draft(store: Store, summary: ModelSummary) -> None:
    """Store the draft of the last gesture, if it is not stored yet."""
    if pop_flag(f"unsaved/{summary.weights_hash}"):
        _save_draft(store, summary, draft(store, summary))


def can_undo(summary: ModelSummary) -> bool:
    """Return whether a change can be undone."""
    return bool(_history(summary))


def can_redo(summary: ModelSummary) -> bool:
    """Return whether a change can be redone."""
    return bool(_history(summary, "redo"))


def undo(store: Store, summary: ModelSummary) -> None:
    """Undo the last change of the draft."""
    _swap(store, summary, "undo", "redo")


def redo(store: Store, summary: ModelSummary) -> None:
    """Redo the change undone last."""
    _swap(store, summary, "redo", "undo")


def _swap(store: Store, summary: ModelSummary, source: str, target: str) -> None:
    if history := _history(summary, source):
        _history(summary, target).append(draft(store, summary))
        st.session_state.pop(f"gesture/{summary.weights_hash}", None)
        _put_draft(store, summary, history.pop())


def _put_draft(store: Store, summary: ModelSummary, new: Draft) -> None:
    st.session_state[_draft_key(summary)] = new
    _save_draft(store, summary, new)


def _save_draft(store: Store, summary: ModelSummary, new: Draft) -> None:
    seen, stored = (
        st.session_state.get(_seen_key(summary)),
        drafts.load_draft(store, summary, _browser()),
    )
    lost = drafts.lost_draft(stored, seen, new)
    if lost is not None:
        name = saved_plans.save_plan(store, summary, lost.plan, "From another tab", lost.tab).name
        st.toast(
            "Another tab has changed this model's plan as well. This tab's plan is now the current "
            f"one. The other plan is saved on the Compare page: {in_markdown(name)}.",
            icon=":material/tab:",
        )
    with store.optional():  # the tab keeps it in any case
        own = dataclasses.replace(new, tab=tab_id())
        drafts.save_draft(store, summary, own, _browser())
        undo, redo = _history(summary), _history(summary, "redo")
        drafts.save_history(store, summary, undo, redo, _browser())
    st.session_state[_seen_key(summary)] = new


# ---- other tabs ----------------------------------------------------------------------------------


def draft_from_elsewhere(store: Store, summary: ModelSummary) -> Draft | None:
    """Return the stored plan if another tab wrote it and this tab's user has not answered yet."""
    own, seen = draft(store, summary), st.session_state.get(_seen_key(summary))
    stored = drafts.load_draft(store, summary, _browser())
    known = [own, seen, st.session_state.get(_declined_key(summary))]
    if stored is None or stored.tab == tab_id():
        return None
    if any(stored.plan.kept == one.plan.kept for one in known if one is not None):
        return None
    return None if seen is None and stored.empty else stored


def take_draft_from_elsewhere(store: Store, summary: ModelSummary, other: Draft) -> None:
    """Make another tab's plan the draft of this tab, too; undo brings this tab's own back."""
    st.session_state[_seen_key(summary)] = other
    set_draft(store, summary, other)


def decline_draft_from_elsewhere(summary: ModelSummary, other: Draft) -> None:
    """Keep this tab's plan, and mention this plan of another tab no more."""
    st.session_state[_declined_key(summary)] = other


def _browser() -> str:
    found: str = st.session_state.get(BROWSER, "")
    return found


def _history(summary: ModelSummary, direction: str = "undo") -> list[Draft]:
    entries: list[Draft] = st.session_state.setdefault(f"{direction}/{summary.weights_hash}", [])
    return entries


def _draft_key(summary: ModelSummary) -> str:
    return f"draft/{summary.weights_hash}"


def _declined_key(summary: ModelSummary) -> str:
    return f"declined/{summary.weights_hash}"


def _seen_key(summary: ModelSummary) -> str:
    return f"seen/{summary.weights_hash}"


def plan_id(plan: PrunePlan) -> str:
    """Return the name of a plan that is neither saved nor current among the compared ones."""
    return f"measured/{digest(plan.to_dict()['kept'])}"


# ---- pages ---------------------------------------------------------------------------------------


def open_page(title: str) -> None:
    """Switch to another page by its title; model and images stay."""
    # Without parameters given, Streamlit refuses to clear those that the header's fields have in
    # the URL. The header writes them again.
    st.switch_page(PAGES / f"{title.lower().replace('-', '')}.py", query_params={})


# ---- messages ------------------------------------------------------------------------------------


def leave_message(text: str, kind: str = "success") -> None:
    """Store a message (success, warning or error) for the next run to show.

    Args:
        text: The message, in markdown.
        kind: ``success``, ``warning`` or ``error``.
    """
    st.session_state["message"] = (kind, text)


def leave_error(error: PsvitError) -> None:
    """Store an error's text as a message for the next run."""
    leave_message(in_markdown(str(error)), "error")


def pop_message() -> tuple[str, str] | None:
    """Return the message for this run as (kind, text), and delete it."""
    message: tuple[str, str] | None = st.session_state.pop("message", None)
    return message
