"""The glossary, which every page opens from its header."""

from __future__ import annotations

import streamlit as st

from ui.model.glossary import SOURCE, Term, matching, read_glossary


def glossary_button() -> None:
    """Draw the button that opens the glossary over the page."""
    if st.button("Glossary", key="glossary", icon=":material/menu_book:", type="tertiary"):
        _glossary()


@st.cache_resource(show_spinner=False)
def _terms() -> list[Term]:
    return read_glossary(SOURCE.read_text(encoding="utf-8"))


@st.dialog("Glossary", width="large")
def _glossary() -> None:
    words = st.text_input("Find", key="glossary-find", placeholder="e.g. SOPs, knee, prune ratio")
    found = matching(_terms(), words or "")
    for term in found:
        st.markdown(f"**{term.name}**")
        st.markdown(term.text)
    if not found:
        st.markdown("No definition contains this text.")
