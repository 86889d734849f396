"""Runs before every page: the page list.

It stands in ``ui/`` because Streamlit takes a ``pages/`` folder beside this script for a page list
of its own, and then opens a cold deep link without this script.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ui.head import draw_head

UI = Path(__file__).parent
PAGES = UI.parent / "pages"
QUESTIONS = {
    "Overview": "Pick a trade-off: how small the network gets, and how accurate it stays.",
    "Sensitivity": "What each channel group costs when part of it is removed, the rest untouched.",
    "Tune": "How much to remove from each channel group: handles on its measured sensitivity.",
    "Compare": "Plans side by side: size, drop, which classes lose, where they differ.",
    "Fine-tune": "Win accuracy back: recover without training, then train the pruned network.",
    "Export": "Write the pruned network to a file and take it away.",
    "Jobs": "What runs in the background, what has ended, and the files that were written.",
    "Open": "Choose a model and its images; see what was found in it.",
}

FIRST = "Overview"  # where the app opens


def _name(title: str) -> str:
    """A page's file and place in the URL."""
    return title.lower().replace("-", "")


st.set_page_config(page_title="PSViT explorer", page_icon=str(UI / "icon.png"), layout="wide")
st.logo(UI / "logo.svg", size="medium")
st.html(UI / "style.css")
page = st.navigation(
    [
        st.Page(PAGES / f"{_name(title)}.py", title=title, default=title == FIRST)
        for title in QUESTIONS
    ],
    position="top",
)
draw_head(page.title, QUESTIONS[page.title])
page.run()
