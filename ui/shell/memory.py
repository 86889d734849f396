"""Memory of closed sessions goes back to the system.

Streamlit collects garbage after every run of a script unless ``runner.postScriptGC`` is off. Here
that took 0.1 s of all sessions' time, five times as long as the run itself. Python collects by
itself often enough; what is left is done once sessions have ended.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress

import streamlit as st

_PAUSE = 1.0  # seconds after a session's end: others may end with it
_waiting: list[threading.Timer] = []


def give_back() -> None:
    """Collect garbage, and return what the C library has kept of it to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _ended(_: object) -> None:
    """Give memory back soon, once for all sessions that end now."""
    for timer in _waiting:
        timer.cancel()
    timer = threading.Timer(_PAUSE, give_back)
    timer.daemon = True
    _waiting[:] = [timer]
    timer.start()


@st.cache_resource(scope="session", on_release=_ended, show_spinner=False)
def watch_session() -> object:
    """Remember this session, whose end is then noticed."""
    return object()
