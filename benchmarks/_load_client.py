"""A browser tab without a browser: speaks the protocol of Streamlit's pages over a websocket.

It does what costs the server something: it runs pages and fragments, also those that run by
themselves every few seconds, sends edits of the equalizer, and follows a measurement as the page's
own script does. It draws nothing.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import json
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlencode, urlsplit

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Delta_pb2 import Delta
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect

EQUALIZER, LIVE = "psvit_equalizer", "psvit_live"
_ANSWER = 90.0  # seconds to wait for an answer


class LoadError(Exception):
    """The app answered with an error, or not at all."""


@dataclass
class Component:
    """A component of the page."""

    id: str
    fragment: str  # that draws it; empty: the page itself
    data: dict[str, Any]


@dataclass
class Edits:
    """The edits of an equalizer, numbered as its browser does."""

    sender: str
    seq: int = 0
    sent: dict[str, int] = field(default_factory=dict)  # percent by group, the last of each


class Tab:
    """One tab with a session of its own.

    Args:
        url: Address of the app.
        name: Its name in errors; also names it as a sender of edits.
        pool: Runs the requests that a page's script makes beside the websocket.
    """

    def __init__(self, url: str, name: str, pool: Executor) -> None:
        self.name = name
        self.components: dict[str, Component] = {}
        self.errors: list[str] = []  # that the page showed
        self.elsewhere = 0  # times that it told of a plan from another tab
        self.foreign = 0  # values of a plan that this tab has not asked for
        self.followed: dict[str, list[int]] = {}  # units removed by the plan of each measurement
        self.edits = Edits(sender=name)
        self.updates = 0  # times that the equalizer was drawn
        self.owns: Callable[[int], bool] = lambda percent: True  # whether a value may be its own
        self._url = url
        self._pool = pool
        self._cookies = http.cookiejar.CookieJar()
        self._ask = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._cookies))
        self._pages: dict[str, str] = {}  # hash by path
        self._query = ""
        self._page = ""
        self._cached: dict[str, ForwardMsg] = {}
        self._timers: dict[str, float] = {}  # interval of each fragment that runs by itself
        self._news = asyncio.Condition()
        self._ended = 0  # whole runs of a page's script
        self._socket: ClientConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._fault: BaseException | None = None

    # ---- what a user does ------------------------------------------------------------------------

    async def open(self, path: str, query: dict[str, str]) -> float:
        """Open a page as a new session; return the seconds until it was complete."""
        begun = time.perf_counter()
        self._query = urlencode(query)
        await self._request(f"{self._url}/{path}?{self._query}")
        cookies = "; ".join(f"{c.name}={c.value}" for c in self._cookies)
        host = urlsplit(self._url).netloc
        self._socket = await connect(
            f"ws://{host}/_stcore/stream",
            subprotocols=["streamlit"],  # type: ignore[list-item]  # a NewType of str
            origin=self._url,  # type: ignore[arg-type]
            additional_headers={"Cookie": cookies} if cookies else {},
            max_size=None,
        )
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._tick())]
        await self._run(page_name=path)
        return time.perf_counter() - begun

    async def visit(self, path: str) -> float:
        """Go to another page; return the seconds until it was complete."""
        begun = time.perf_counter()
        self._timers.clear()
        self._page = self._pages[path]
        await self._run()
        return time.perf_counter() - begun

    async def edit(self, weights: str, percents: dict[str, int]) -> float:
        """Edit groups with the equalizer; return the seconds until its figures came."""
        begun = time.perf_counter()
        self.edits.seq += 1
        self.edits.sent |= percents
        number = self.edits.seq
        entry = {"seq": number, "gesture": number, "percents": percents, "locks": {}}
        message = {"sender": self.edits.sender, "weights": weights, "edits": [entry]}
        await self._trigger(EQUALIZER, "edit", message)
        await self._until(lambda: self._acknowledged() >= number, "the figures of an edit")
        return time.perf_counter() - begun

    def _drawn_since(self, before: int) -> bool:
        return self.updates > before

    def _acknowledged(self) -> int:
        ack = self.components[EQUALIZER].data.get("ack") or {}
        return int(ack["seq"]) if ack.get("sender") == self.edits.sender else 0

    async def measured(self) -> bool:
        """Follow the measurement of the plan to its end; return whether the page shows a result."""
        while (job := str(self.components[EQUALIZER].data.get("live") or "")) != "":
            seen, found = "", {"active": True}
            while found["active"]:
                query = urlencode({"seen": seen})
                found = json.loads(await self._request(f"{self._url}/progress/{job}?{query}"))
                seen = str(found.get("stamp", ""))
            before = self.updates
            await self._trigger(LIVE, "ended", job)
            await self._until(partial(self._drawn_since, before), "the end of a job")
        return self.components[EQUALIZER].data.get("measured") is not None

    async def close(self) -> None:
        """Close the tab."""
        for task in self._tasks:
            task.cancel()
        if self._socket is not None:
            await self._socket.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- the protocol ----------------------------------------------------------------------------

    async def _request(self, address: str) -> bytes:
        def ask() -> bytes:
            with self._ask.open(address, timeout=_ANSWER) as answer:
                return bytes(answer.read())

        return await asyncio.get_running_loop().run_in_executor(self._pool, ask)

    async def _run(self, page_name: str = "") -> None:
        """Run the page, and wait until it is complete."""
        before = self._ended
        await self._send(page_name=page_name)
        await self._until(lambda: self._ended > before, "a page")

    async def _trigger(self, name: str, event: str, value: object) -> None:
        """Send an event of a component."""
        if name not in self.components:
            raise LoadError(f"{self.name}: the page has no component {name}")
        found = self.components[name]
        widget = f"$$STREAMLIT_INTERNAL_KEY_{found.id}__events"
        payload = json.dumps({"event": event, "value": value})
        await self._send(fragment=found.fragment, trigger=(widget, payload))

    async def _send(
        self,
        *,
        page_name: str = "",
        fragment: str = "",
        trigger: tuple[str, str] | None = None,
        auto: bool = False,
    ) -> None:
        message = BackMsg()
        state = message.rerun_script
        state.query_string = self._query
        state.page_script_hash = self._page
        state.page_name = page_name
        state.fragment_id = fragment
        state.is_auto_rerun = auto
        state.context_info.url = self._url
        state.context_info.color_scheme = "light"
        state.cached_message_hashes.extend(self._cached)
        if trigger is not None:
            widget = state.widget_states.widgets.add()
            widget.id, widget.json_trigger_value = trigger
        assert self._socket is not None
        await self._socket.send(message.SerializeToString())

    async def _until(self, done: Callable[[], bool], what: str) -> None:
        async def wait() -> None:
            async with self._news:
                await self._news.wait_for(lambda: self._fault is not None or done())

        try:
            await asyncio.wait_for(wait(), _ANSWER)
        except TimeoutError:
            raise LoadError(f"{self.name}: {what} did not come in {_ANSWER:.0f} s") from None
        if self._fault is not None:
            raise LoadError(f"{self.name}: the connection broke: {self._fault}")

    async def _read(self) -> None:
        """Take what the server sends."""
        assert self._socket is not None
        try:
            async for raw in self._socket:
                message = ForwardMsg()
                message.ParseFromString(raw if isinstance(raw, bytes) else raw.encode())
                self._take(message)
                async with self._news:
                    self._news.notify_all()
            raise ConnectionError("the server closed it")
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._fault = error
            async with self._news:
                self._news.notify_all()

    def _take(self, message: ForwardMsg) -> None:
        kind = message.WhichOneof("type")
        if kind == "ref_hash":
            message = self._cached[message.ref_hash]
            kind = message.WhichOneof("type")
        elif message.metadata.cacheable:
            self._cached[message.hash] = message
        if kind == "navigation":
            pages = message.navigation.app_pages
            self._pages |= {page.url_pathname: page.page_script_hash for page in pages}
            self._page = message.navigation.page_script_hash or self._page
        elif kind == "delta":
            self._take_delta(message.delta)
        elif kind == "auto_rerun":
            self._timers[message.auto_rerun.fragment_id] = message.auto_rerun.interval
        elif kind == "stop_auto_rerun":
            for name in message.stop_auto_rerun.fragment_ids:
                self._timers.pop(name, None)
        elif kind == "script_finished":
            self._ended += message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY

    def _take_delta(self, delta: Delta) -> None:
        if delta.WhichOneof("type") != "new_element":
            return
        element = delta.new_element
        kind = element.WhichOneof("type")
        if kind == "bidi_component":
            found = element.bidi_component
            data = json.loads(found.json or found.mixed.json or "{}")
            name = found.component_name.rsplit(".", 1)[-1]
            self.components[name] = Component(found.id, delta.fragment_id, data)
            if name == EQUALIZER:
                self._look_at(data)
        elif kind == "alert" and element.alert.format == element.alert.ERROR:
            self.errors.append(element.alert.body)
        elif kind == "exception":
            self.errors.append(element.exception.message)
        elif kind == "markdown":
            self.elsewhere += "was changed in another tab" in element.markdown.body

    def _look_at(self, data: dict[str, Any]) -> None:
        """Note whose plan the equalizer shows, and which one is measured."""
        self.updates += 1
        values = data["values"]
        self.foreign += sum(1 for percent, *_ in values if percent and not self.owns(percent))
        if data.get("live"):
            self.followed[data["live"]] = [removed for _, removed, _ in values]

    async def _tick(self) -> None:
        """Run the fragments that run by themselves, as a browser does."""
        due: dict[str, float] = {}
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            due = {name: due.get(name, now + span) for name, span in self._timers.items()}
            for name, moment in due.items():
                if now >= moment:
                    due[name] = now + self._timers.get(name, _ANSWER)
                    await self._send(fragment=name, auto=True)
