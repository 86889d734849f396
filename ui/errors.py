"""What a user sees when something goes wrong: one message, never a traceback."""

from __future__ import annotations

import streamlit as st

from psvit_core.errors import PsvitError


def show_error(error: Exception) -> bool:
    """Show an error that a script did not handle; the server logs its traceback.

    Returns:
        True: Streamlit shows nothing of its own.
    """
    if isinstance(error, PsvitError):
        st.error(str(error), icon=":material/error:")
    else:
        st.error(
            f"Something went wrong here ({type(error).__name__}). The server's log has the whole "
            "story; reload the page to go on.",
            icon=":material/error:",
        )
    return True
