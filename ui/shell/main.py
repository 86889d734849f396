"""The script that runs before every page: settings, page list, header.

It must not lie next to the ``pages/`` folder: Streamlit would take that for its own page list, and
then open a deep link to a fresh server without this script.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ui.model import state
from ui.model.loaders import open_store
from ui.shell.browsers import browser_name
from ui.shell.header import draw_header
from ui.shell.memory import watch_session
from ui.shell.status import watch_panel

SHELL = Path(__file__).parent
SUBTITLES = {
    "Overview": "Choose a trade-off between the network's size and its accuracy.",
    "Sensitivity": "What each channel group costs when only that group is pruned.",
    "Tune": "Set how much to remove from each channel group, guided by its measured sensitivity.",
    "Compare": "Plans side by side: sizes, drops, changes by class, differences.",
    "Fine-tune": "Regain accuracy: recover without training, then train the pruned network.",
    "Export": "Write the pruned network to a file and download it.",
    "Jobs": "Background jobs, finished jobs, and the files they wrote.",
    "Open": "Choose a model and its images, and inspect what was found.",
}
FIRST = "Overview"  # the page at the app's root


def _name(title: str) -> str:
    """Return a page's file name and URL path."""
    return title.lower().replace("-", "")


st.set_page_config(page_title="PSViT explorer", page_icon=str(SHELL / "icon.png"), layout="wide")
st.logo(SHELL / "logo.svg", size="medium")
st.html(SHELL / "style.css")
page = st.navigation(
    [
        st.Page(state.PAGES / f"{_name(title)}.py", title=title, default=title == FIRST)
        for title in SUBTITLES
    ],
    position="top",
)
watch_session()
state.put(state.BROWSER, browser_name(state.tab_id()))
state.run_postponed()
draw_header(page.title, SUBTITLES[page.title])
watch_panel(open_store())
page.run()
state.forget_click()
