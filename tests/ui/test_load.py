"""Several people at one app: no error, nothing of one plan elsewhere, order, memory.

What takes how long is measured by ``benchmarks/load.py``. The tabs here are its tabs.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks._load_people import Crowd, measurements, megabytes, pool_for, server_of
from psvit_core.jobs import client, workers
from tests.ui.conftest import Server, run_apart, start_server
from tests.ui.example import put_sweep, summary

MODEL = summary("sdt_v1_digits")
PEOPLE = 8
TTL = ("--server.disconnectedSessionTTL", "1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """An app whose browsers have plans of their own."""
    server = start_server(tmp_path, drag=True, options=TTL, PSVIT_PLANS="own")
    put_sweep(server.store, MODEL)
    yield server
    server.kill()
    server.end_workers()


@pytest.mark.slow
def test_eight_people_at_one_app(server: Server) -> None:
    with pool_for(PEOPLE) as pool:
        crowd = Crowd(server.url, MODEL, PEOPLE, pool, images="64")
        edits, opened, closed = run_apart(_together(crowd, server))
    assert crowd.faults(server.store) == []
    log = (server.cache / "server.log").read_text(encoding="utf-8")
    assert "Traceback" not in log

    jobs = measurements(server.store)
    owners = [job.owner for job in jobs]
    # All had asked before the worker began: each got a turn before anybody had a second one.
    assert len(set(owners[:PEOPLE])) == PEOPLE
    assert (len(jobs), edits) == (2 * PEOPLE, 2 * PEOPLE + 2)  # two were dropped for a newer one
    assert not [job for job in client.list_jobs(server.store) if job.active]
    assert closed < opened + 40.0  # MB: what eight sessions held has been given back


async def _together(crowd: Crowd, server: Server) -> tuple[int, float, float]:
    """Let everybody edit and measure twice; return edits, and memory before and after, MB."""
    rng = random.Random(0)
    process = server_of(server.url)
    await crowd.open(pause=0.0)
    for tab in crowd.tabs:  # pages load what they need once
        await tab.visit("compare")
        await tab.visit("tune")
    full = megabytes(process)
    edits = 0
    with workers.worker_lock(server.store, "cpu") as free:  # until all have asked
        assert free
        for number in range(crowd.count):
            # The first person edits again and again, and keeps nobody waiting.
            for _ in range(3 if number == 0 else 1):
                await crowd.edit(number, rng)
                edits += 1
    workers.ensure_worker(server.store)
    for turn in range(2):
        shown = await asyncio.gather(*(tab.measured() for tab in crowd.tabs))
        assert all(shown)
        for number in range(crowd.count if turn == 0 else 0):
            await crowd.edit(number, rng)
            edits += 1
    await crowd.close()
    await asyncio.sleep(5)
    return edits, full, megabytes(process)
