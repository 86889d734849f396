"""The Open page."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ui.model import loaders, sweeps
from ui.model.foreign import in_markdown
from ui.model.sweeps import SweepView
from ui.panels.frame import Frame, boot, show_message
from ui.panels.measurement import measure_panel, published_panel
from ui.panels.model import bytes_panel
from ui.panels.open.found import found_panel
from ui.panels.open.images import images_panel
from ui.panels.open.source import source_panel
from ui.panels.picture import picture_panel
from ui.shell import header


def open_page() -> None:
    """Draw the Open page."""
    show_message()
    choice = header.choice()
    examined = source_panel(loaders.open_store(), choice, key="open")
    if examined is not None:
        name = in_markdown(Path(examined).name)
        st.info(
            f"What was found in {name} appears here once it is open. Until then the other pages "
            f"still show {in_markdown(loaders.card_title(choice.model)) or 'no model'}.",
            icon=":material/folder_open:",
        )
        st.stop()
    page = boot()
    left, right = st.columns([3, 2], gap="large")
    with left:
        found_panel(page, key="found")
        images_panel(page.workspace, page.summary, key="data-choice")
    with right:
        bytes_panel(page.summary, key="bytes", dark=page.dark)
        st.header("Baseline", anchor=False)
        measure_panel(page.workspace, None, key="baseline")
        published_panel(page.workspace)
    _picture(page)


def _picture(page: Frame) -> None:
    """Draw the picture of the network; choosing a group in it draws nothing else again."""

    def find_sweep() -> SweepView | None:
        return sweeps.current_sweep(sweeps.list_sweeps(page.store, page.summary))

    @st.fragment
    def drawn() -> None:
        picture_panel(
            page.workspace, page.summary, None, find_sweep, key="open-picture", dark=page.dark
        )

    drawn()
