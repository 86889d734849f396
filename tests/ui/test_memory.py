"""Memory of closed sessions: given back once they are forgotten, and not after every run."""

from __future__ import annotations

import ctypes
import threading
import time
import tomllib
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import streamlit as st
from streamlit import runtime
from streamlit.runtime.memory_session_storage import MemorySessionStorage
from streamlit.runtime.session_manager import SessionInfo
from streamlit.runtime.websocket_session_manager import WebsocketSessionManager

from tests.patience import PATIENCE
from ui.shell import memory

ROOT = Path(__file__).resolve().parents[2]


def test_sessions_that_close_together_are_tidied_up_after_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[float] = []
    started = time.monotonic()
    monkeypatch.setattr(memory, "_PAUSE", 0.0)
    monkeypatch.setattr(st, "get_option", lambda name: 0.5)
    monkeypatch.setattr(memory, "give_back", lambda: done.append(time.monotonic() - started))
    for _ in range(20):
        memory._closed(None)
    while memory._timers:
        assert time.monotonic() - started < PATIENCE
        time.sleep(0.01)
    assert len(done) == 2 and done[0] >= 0.5 and done[1] >= 1.0  # for those that closed meanwhile
    memory._closed(None)
    assert len(memory._timers) == 1
    memory._timers[0].cancel()
    memory._timers.clear()


class Session:
    """What the manager of sessions needs of one."""

    id = "a"


@pytest.mark.parametrize(("seconds", "kept"), [(0, False), (60, True)])
def test_sessions_are_dropped_once_nobody_can_return_to_them(
    seconds: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MemorySessionStorage(ttl_seconds=seconds)
    unused: Any = None
    manager = WebsocketSessionManager(storage, unused, unused, None)
    session: Any = Session()
    storage.save(SessionInfo(client=None, session=session))
    reference = weakref.ref(session)
    del session
    monkeypatch.setattr(runtime, "exists", lambda: True)
    monkeypatch.setattr(runtime, "get_instance", lambda: SimpleNamespace(_session_mgr=manager))
    assert reference() is not None  # Streamlit drops it when the next one closes
    memory.give_back()
    assert (reference() is not None) is kept


def test_an_error_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no memory")

    monkeypatch.setattr(memory, "_timers", [threading.Timer(60, print)])
    monkeypatch.setattr(memory, "give_back", fail)
    with pytest.raises(OSError, match="no memory"):
        memory._due()
    assert not memory._timers  # so the next session that closes starts one


def test_memory_can_be_given_back_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.give_back()

    def missing(_: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    memory.give_back()
    memory.limit_arenas()


def test_no_garbage_is_collected_after_every_run() -> None:
    settings = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["runner"]["postScriptGC"] is False
