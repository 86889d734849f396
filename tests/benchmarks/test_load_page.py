"""The section on many people at one app."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from benchmarks._load_page import HEADING, memory_rows, section
from benchmarks._load_people import Memory, memory_of, rank, server_of
from benchmarks._report import RESULTS, stored_section

ABOUT = {"tabs": 20, "model": "m", "images": "250", "cpus": 2, "session kept (s)": 10}


def test_the_table() -> None:
    row = {"what": "edits, p95", "value": "0.61", "unit": "s", "note": "500 of 20 tabs"}
    text = section({"rows": [row], "settings": ABOUT})
    assert text.startswith(HEADING)
    assert "| edits, p95 | 0.61 s | 500 of 20 tabs |" in text


def test_the_page_has_the_stored_section() -> None:
    page = (RESULTS.parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert stored_section(RESULTS / "load.json", section) in page


def test_memory_is_stated_in_all_for_a_session_and_after_closing() -> None:
    own = {
        "before": 200.0,
        "opened": 250.0,
        "worked": 305.0,
        "closed": 306.0,
        "after": 215.0,
        "again": 217.0,
    }
    memory = {name: Memory(own=value, resident=value + 100) for name, value in own.items()}
    rows = {row["what"]: row for row in memory_rows(memory, 20, 20, 900.0)}
    assert rows["all 21 sessions"]["value"] == "105.00"
    assert rows["one session"]["value"] == "5.00"
    assert rows["app, 20 s later"]["value"] == "215.00"
    assert rows["kept of all sessions"]["value"] == "15.00"
    assert rows["app, after 20 other sessions"]["value"] == "217.00"
    assert rows["kept of the others"]["value"] == "2.00"
    text = section({"rows": list(rows.values()), "settings": ABOUT})
    assert "| app, after the work | 305.00 MB | with Chromium's session; resident 405 MB |" in text
    assert "| app, all sessions just closed | 306.00 MB | resident 406 MB |" in text


def test_the_memory_of_a_process() -> None:
    found = memory_of(psutil.Process())
    assert found.own > 0 and found.resident > 0


def test_ranks() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert (rank(values, 0.5), rank(values, 0.95), rank([], 0.5)) == (51.0, 96.0, 0.0)


def test_the_server_is_found_beside_a_zombie() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody has asked
        assert psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE
        with pytest.raises(LookupError, match="no app"):
            server_of("http://127.0.0.1:8599")
        program = [sys.executable, "-c", "input()", "streamlit", "8599"]
        with subprocess.Popen(program, stdin=subprocess.PIPE) as server:
            assert server_of("http://127.0.0.1:8599").pid == server.pid
            server.kill()
