"""What twenty people do at one app: browse, edit and measure, each with a plan of their own."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

from benchmarks._load_client import Tab
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import ModelSummary
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import model_card
from ui.model.drafts import locked_reason

QUERY_IMAGES = "250"  # of the demo's 750: what many people at once would choose
PAGES = ("sensitivity", "compare", "jobs", "export", "open", "finetune")
_THINK = (2.0, 6.0)  # seconds between two actions of a person
_EDITING = 0.65  # share of a person's actions that are edits; the others visit another page
_LOOKING = 0.5  # share of edits whose measurement is waited for


@dataclass
class Found:
    """What was seen, seconds."""

    opened: list[float] = field(default_factory=list)
    edits: list[float] = field(default_factory=list)
    visits: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)  # from the edit to the result on the page
    errors: list[str] = field(default_factory=list)


@dataclass
class Crowd:
    """Some tabs of different browsers at one app.

    Args:
        url: Address of the app.
        model: The model that all of them edit.
        count: Number of tabs.
        pool: Runs their requests beside the websocket.
    """

    url: str
    model: ModelSummary
    count: int
    pool: ThreadPoolExecutor
    images: str = QUERY_IMAGES
    tabs: list[Tab] = field(default_factory=list)
    found: Found = field(default_factory=Found)

    def percents_of(self, number: int) -> list[int]:
        """Return the values that a tab gives its groups; no two tabs share one."""
        return list(range(30 + number, 91, self.count))

    async def open(self, pause: float = 0.5) -> None:
        """Open all tabs, one after another."""
        title = model_card(self.model.model).title
        query = {"model": title, "images": self.images}
        for number in range(self.count):
            tab = Tab(self.url, f"tab{number}", self.pool)
            tab.owns = set(self.percents_of(number)).__contains__
            self.tabs.append(tab)
            self.found.opened.append(await tab.open("tune", query))
            await asyncio.sleep(pause)

    async def work(self, seconds: float) -> None:
        """Let everybody work at once."""
        until = time.monotonic() + seconds
        people = (self._person(tab, n, until) for n, tab in enumerate(self.tabs))
        results = await asyncio.gather(*people, return_exceptions=True)
        self.found.errors += [repr(error) for error in results if error is not None]

    async def _person(self, tab: Tab, number: int, until: float) -> None:
        rng = random.Random(number)
        await asyncio.sleep(rng.uniform(0.0, _THINK[1]))  # people do not begin in the same instant
        while time.monotonic() < until:
            if rng.random() < _EDITING:
                begun = time.perf_counter()
                for _ in range(rng.randint(1, 3)):
                    self.found.edits.append(await self.edit(number, rng))
                if rng.random() < _LOOKING and await tab.measured():
                    self.found.measured.append(time.perf_counter() - begun)
            else:
                self.found.visits.append(await tab.visit(rng.choice(PAGES)))
                await asyncio.sleep(rng.uniform(*_THINK))
                self.found.visits.append(await tab.visit("tune"))
            await asyncio.sleep(rng.uniform(*_THINK))

    async def edit(self, number: int, rng: random.Random) -> float:
        """Change one group of a tab's plan; return the seconds until its figures came."""
        tab = self.tabs[number]
        groups = [g.group_id for g in self.model.groups if locked_reason(g) is None]
        untouched = [group_id for group_id in groups if group_id not in tab.edits.sent]
        group_id, value = rng.choice(untouched or groups), rng.choice(self.percents_of(number))
        return await tab.edit(self.model.weights_hash, {group_id: value})

    async def close(self) -> None:
        """Close all tabs."""
        await asyncio.gather(*(tab.close() for tab in self.tabs))

    # ---- judgement -------------------------------------------------------------------------------

    def faults(self, store: Store) -> list[str]:
        """Return what went wrong: errors, and anything of one plan in another tab."""
        faults = list(self.found.errors)
        for tab in self.tabs:
            faults += [f"{tab.name}: {text}" for text in tab.errors]
            if tab.foreign:
                faults.append(f"{tab.name}: {tab.foreign} values of other plans")
            if tab.elsewhere:
                faults.append(f"{tab.name}: was told {tab.elsewhere} times of another tab's plan")
            faults += self._foreign_measurements(store, tab)
        seen = [job for tab in self.tabs for job in tab.followed]
        if len(seen) > len(set(seen)):
            faults.append("two tabs followed the same measurement")
        return faults

    def _foreign_measurements(self, store: Store, tab: Tab) -> Iterator[str]:
        """Yield the measurements of a tab that measured another plan than the one that it shows."""
        done = {job.id: job for job in client.list_jobs(store) if job.state == "done"}
        groups = self.model.groups
        for job_id, removed in tab.followed.items():
            plan = done[job_id].plan if job_id in done else None
            if plan is None:
                continue  # a newer edit has dropped it
            kept = plan.kept
            own = [g.n_units - len(kept.get(g.group_id, range(g.n_units))) for g in groups]
            if own != removed:
                yield f"{tab.name}: measurement {job_id} is of another plan"


def measurements(store: Store) -> list[Job]:
    """Return the finished measurements that edits have started, in the order in which they ran."""
    jobs = [j for j in client.list_jobs(store) if j.task == "measure" and j.owner and j.started]
    return sorted((j for j in jobs if j.state == "done"), key=lambda j: j.started or 0.0)


def waits(jobs: Sequence[Job]) -> list[float]:
    """Return how long measurements waited before they began, seconds, shortest first."""
    return sorted((job.started or 0.0) - job.created for job in jobs)


def rank(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of sorted values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def server_of(url: str) -> psutil.Process:
    """Return the process of the app at an address, which this process has started."""
    port = url.rpartition(":")[2]
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # ended, also as a zombie
            command = process.cmdline()
            if "streamlit" in command and port in command:
                return process
    raise LookupError(f"no app at {url}")


@dataclass(frozen=True)
class Memory:
    """The memory of a process at one moment, MB."""

    own: float  # what it has to itself
    resident: float  # with what it shares with others, such as code of libraries


def memory_of(process: psutil.Process) -> Memory:
    """Return the memory of a process."""
    now = process.memory_full_info()
    return Memory(own=now.uss / 1e6, resident=now.rss / 1e6)


def megabytes(process: psutil.Process) -> float:
    """Return the memory that a process has to itself, MB."""
    return memory_of(process).own


@contextmanager
def pool_for(tabs: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads for the requests of so many tabs: each may hold one that waits for news."""
    with ThreadPoolExecutor(2 * tabs) as pool:
        yield pool
