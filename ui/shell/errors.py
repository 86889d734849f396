"""Errors on screen: one message, never a traceback."""

from __future__ import annotations

import streamlit as st

from psvit_core.errors import PsvitError
from ui.model.foreign import in_markdown


def show_error(error: Exception) -> bool:
    """Show an error that a page did not handle; the server logs its traceback.

    Returns:
        True, so that Streamlit does not show the error itself.
    """
    if isinstance(error, PsvitError):
        st.error(in_markdown(str(error)), icon=":material/error:")
    else:
        st.error(
            f"Something went wrong ({type(error).__name__}). Reload the page to continue; the "
            "server's log has the details.",
            icon=":material/error:",
        )
    return True
