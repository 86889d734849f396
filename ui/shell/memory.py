"""Memory of closed sessions goes back to the system.

Streamlit collects garbage after every run of a script unless ``runner.postScriptGC`` is off. Here
that took 83 % of the interpreter's time with 20 people at work. Python collects by itself often
enough; what is left is done once Streamlit has forgotten closed sessions.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress

import streamlit as st

_PAUSE = 3.0  # seconds after Streamlit may forget a session
_lock = threading.Lock()
_timers: list[threading.Timer] = []  # the one that waits
_later: list[bool] = []  # not empty if sessions have closed since it was started


def give_back() -> None:
    """Collect garbage, and return what the C library has kept of it to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _closed(_: object) -> None:
    """Give memory back once this session is forgotten: at most once in that time for all."""
    with _lock:
        if _timers:
            _later[:] = [True]
        else:
            _start()


def _start() -> None:
    wait = float(st.get_option("server.disconnectedSessionTTL"))  # for a reconnection
    timer = threading.Timer(wait + _PAUSE, _due)
    timer.daemon = True
    _timers.append(timer)
    timer.start()


def _due() -> None:
    give_back()
    with _lock:
        _timers.clear()
        if _later:
            _later.clear()
            _start()


@st.cache_resource(scope="session", on_release=_closed, show_spinner=False)
def watch_session() -> object:
    """Remember this session; Streamlit calls ``_closed`` when it is disconnected."""
    return object()
