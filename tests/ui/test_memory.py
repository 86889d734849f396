"""Memory of closed sessions: given back once, soon after their end, and not after every run."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ui.shell import memory

ROOT = Path(__file__).resolve().parents[2]


def test_sessions_that_end_together_are_tidied_up_after_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(memory, "_PAUSE", 0.2)
    monkeypatch.setattr(memory, "give_back", lambda: done.append("now"))
    for _ in range(5):
        memory._ended(None)
    (timer,) = memory._waiting
    timer.join()
    assert done == ["now"]


def test_memory_can_be_given_back_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.give_back()

    def missing(_: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    memory.give_back()


def test_no_garbage_is_collected_after_every_run() -> None:
    settings = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["runner"]["postScriptGC"] is False
