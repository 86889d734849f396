"""Memory of closed sessions goes back to the system.

Streamlit collects garbage after every run of a script unless ``runner.postScriptGC`` is off. Here
that took 83 % of the interpreter's time with 20 people at work. Python collects by itself often
enough; what is left is done once closed sessions can no longer be reconnected.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress
from typing import Any

import streamlit as st
from streamlit import runtime

_PAUSE = 3.0  # seconds after Streamlit may forget a session
_lock = threading.Lock()
_timers: list[threading.Timer] = []  # the one that is running, if any
_later: list[bool] = []  # not empty if sessions have closed since it was started
_M_ARENA_MAX, _ARENAS = -8, 2  # of glibc's mallopt


def limit_arenas() -> None:
    """Limit glibc to two malloc arenas, because each one retains freed memory.

    By default threads get arenas of their own, up to eight per core, and Streamlit runs scripts in
    threads.
    """
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def forget_sessions() -> None:
    """Drop closed sessions whose time to reconnect is over.

    Streamlit itself drops them when the next session closes, which takes long if few people use the
    app.
    """
    if not runtime.exists():
        return
    manager: Any = runtime.get_instance()._session_mgr  # Streamlit offers no other way
    with manager._storage_lock:
        expired = manager._session_storage._cache.expire()
    del expired  # not under the lock: a session ends itself when nothing refers to it


def give_back() -> None:
    """Drop closed sessions, and return their memory to the system."""
    forget_sessions()
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _closed(_: object) -> None:
    """Plan ``give_back`` for when this session can no longer reconnect, once for all sessions."""
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
    try:
        give_back()
    finally:  # the next sessions get their turn, whatever went wrong
        with _lock:
            _timers.clear()
            if _later:
                _later.clear()
                _start()


@st.cache_resource(scope="session", on_release=_closed, show_spinner=False)
def watch_session() -> object:
    """Remember this session; Streamlit calls ``_closed`` when it is disconnected."""
    return object()
