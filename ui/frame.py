"""What every page begins with: the model's description, or a word on why there is none yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from psvit_core.records import ModelSummary
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import list_models, model_card
from ui import head, links, loaders, state, theme
from ui.loaders import Choice
from ui.panels_job import job_panel, live
from ui.panels_model import card_panel

_MESSAGES = {"success": st.success, "warning": st.warning, "error": st.error}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a page works on."""

    store: Store
    workspace: Workspace
    summary: ModelSummary
    dark: bool  # theme of this browser


def boot() -> Frame:
    """Find out what the page works on; tells what is missing and stops the script where it must."""
    store, choice = loaders.open_store(), head.choice()
    dark = theme.is_dark()
    show_message()
    _stop_without_weights(choice)
    summary = choice.describer(store).summary()
    if summary is None:
        _wait_for_summary(store, choice)
        st.stop()
    assert summary is not None
    links.open_plan(store, summary)
    show_message()
    return Frame(store=store, workspace=choice.workspace(store), summary=summary, dark=dark)


def show_message() -> None:
    """Show the message left for this run, if there is one."""
    message = state.take_message()
    if message:
        kind, text = message
        _MESSAGES[kind](text)


def _stop_without_weights(choice: Choice) -> None:
    """Say what is missing and stop, where there is no file to read weights from."""
    if choice.model not in list_models():
        if not choice.model:
            st.info("Give the path of a pruned .safetensors file above.")
            st.stop()
        if not Path(choice.model).is_file():
            st.error(f"There is no file {choice.model!r} on this machine.")
            st.stop()
        return
    card = model_card(choice.model)
    if card.weights is None and choice.checkpoint is None:
        card_panel(card, None)
        st.info(
            "The weights of this model are not included. Give its checkpoint file above, or choose "
            "or upload it on the Open page; its channel groups and sizes are read from there.",
            icon=":material/folder_open:",
        )
        st.stop()
    if choice.checkpoint is not None and not Path(choice.checkpoint).is_file():
        st.error(f"There is no checkpoint file {choice.checkpoint!r} on this machine.")
        st.stop()


def _wait_for_summary(store: Store, choice: Choice) -> None:
    describer = choice.describer(store)
    job = loaders.newest_job(describer, "summary")
    if job is None or job.state == "done":  # done, but in a form of another version
        job = describer.request_summary()
    job_id = job.id

    def wait() -> bool:
        st.write(f"Reading **{Path(choice.model).name}**: its channel groups, shapes and rankings.")
        return job_panel(store, job_id, key="summary", noun="Reading the model")

    live(wait, active=job.active)
