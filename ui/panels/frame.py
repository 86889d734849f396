"""The start of every page: find the model's description, or show what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from psvit_core.files import is_file
from psvit_core.records import ModelSummary
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import list_models, model_card
from ui.model import consent, loaders, state
from ui.model.foreign import in_code, in_markdown
from ui.model.loaders import Choice
from ui.panels.job import job_panel, live
from ui.panels.model import card_panel
from ui.panels.widgets import show_warnings
from ui.shell import header, links, theme

_MESSAGES = {"success": st.success, "warning": st.warning, "error": st.error}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The model, images and store that a page works on."""

    store: Store
    workspace: Workspace
    summary: ModelSummary
    dark: bool  # theme of this browser


def boot() -> Frame:
    """Return what the page works on; stop the script if weights or the description are missing."""
    store, choice = loaders.open_store(), header.choice()
    state.put(state.SHOWN, None)
    dark = theme.is_dark()
    show_message()
    _stop_without_weights(choice)
    summary = choice.model_workspace(store).summary()
    if summary is None:
        _wait_for_summary(store, choice)
        st.stop()
    assert summary is not None
    links.open_shared_plan(store, summary)
    state.put(state.SHOWN, summary)
    show_message()
    workspace = choice.workspace(store)
    caution = loaders.chance_caution(workspace, summary)
    show_warnings([caution] if caution else [])
    return Frame(store=store, workspace=workspace, summary=summary, dark=dark)


def show_message() -> None:
    """Show the message, in markdown, that the previous run left, if there is one."""
    message = state.pop_message()
    if message:
        kind, text = message
        _MESSAGES[kind](text)


def _stop_without_weights(choice: Choice) -> None:
    """Show what is missing and stop if there is no file to read weights from."""
    if choice.model not in list_models():
        if not choice.model:
            st.info("Choose a model file above, or upload one on the Open page.")
            st.stop()
        if not is_file(choice.model):
            st.error(f"File not found on this machine: {in_markdown(choice.model)}")
            st.stop()
        return
    card = model_card(choice.model)
    if card.weights is None and choice.checkpoint is None:
        card_panel(card, None)
        st.info(
            "The weights of this model are not included. Choose its checkpoint above, or upload it "
            "on the Open page. Its channel groups and sizes are then read from the file.",
            icon=":material/folder_open:",
        )
        st.stop()
    if choice.checkpoint is not None and not is_file(choice.checkpoint):
        st.error(f"Checkpoint not found on this machine: {in_markdown(choice.checkpoint)}")
        st.stop()


def _stop_without_consent(choice: Choice) -> None:
    """Ask and stop if the file was named by a link, not by the user."""
    named = choice.model if state.get(state.MODEL) == loaders.OPEN_FILE else None
    asked = consent.missing(named, choice.checkpoint)
    if asked:
        st.info(
            f"This page's address names a file: {', '.join(map(in_code, asked))}. It is not read "
            "before you ask for it.",
            icon=":material/link:",
        )
        st.button("Read this file", key="consent", on_click=consent.give, args=tuple(asked))
        st.stop()


def _wait_for_summary(store: Store, choice: Choice) -> None:
    describer = choice.model_workspace(store)
    job = loaders.newest_job(describer, "summary")
    if job is None or job.state == "done":  # done, but written by another version
        _stop_without_consent(choice)
        job = describer.request_summary()
    job_id = job.id

    def wait() -> bool:
        name = in_markdown(Path(choice.model).name)
        st.markdown(f"Reading **{name}**: channel groups, shapes and rankings.")
        return job_panel(store, job_id, key="summary")

    live(wait, active=job.active)
