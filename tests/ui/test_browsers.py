"""Plans of several people at one app: each browser has its own, where the app is told so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from starlette.responses import HTMLResponse, PlainTextResponse

from psvit_core.storage.store import Store
from tests.ui.conftest import OpenPage, Server, run_apart, start_server
from tests.ui.example import put_sweep, summary
from tests.ui.test_tabs import MLP, press, slider
from ui.model import drafts
from ui.shell.access import AccessError
from ui.shell.browsers import COOKIE, BrowserNames, has_own_plans

MODEL = summary("sdt_v1_digits")


def test_plans_are_apart_where_others_reach_the_app() -> None:
    assert not has_own_plans({}, exposed=False)
    assert has_own_plans({}, exposed=True)
    assert has_own_plans({"PSVIT_PLANS": "own"}, exposed=False)
    assert not has_own_plans({"PSVIT_PLANS": "shared"}, exposed=True)
    with pytest.raises(AccessError, match=r"must be own .* or shared .* got 'mine'"):
        has_own_plans({"PSVIT_PLANS": "mine"}, exposed=False)


def test_drafts_of_browsers_are_stored_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    group = MODEL.groups[0].group_id
    of = {
        name: drafts.with_ratio(drafts.empty_draft(MODEL), MODEL, group, ratio)
        for name, ratio in (("", 0.25), ("a" * 32, 0.5), ("b" * 32, 0.75))
    }
    for name, draft in of.items():
        drafts.save_draft(store, MODEL, draft, name)
        drafts.save_history(store, MODEL, [draft], [], name)
    for name, draft in of.items():
        assert drafts.load_draft(store, MODEL, name) == draft
        assert drafts.load_history(store, MODEL, name)["undo"] == [draft]
    assert drafts.load_draft(store, MODEL, "c" * 32) is None


def answer(
    separate: bool, cookie: str = "", kind: type = HTMLResponse, scheme: str = "http"
) -> str:
    """Return the cookie that an answer sets; empty without one."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "scheme": scheme,
        "headers": [(b"cookie", cookie.encode())] if cookie else [],
    }
    app = BrowserNames(kind("page"), separate)
    run_apart(app(scope, None, send))  # type: ignore[arg-type]  # nothing is read
    headers = dict(sent[0]["headers"])
    return headers.get(b"set-cookie", b"").decode()


def test_the_first_page_names_the_browser() -> None:
    first, second = answer(True), answer(True)
    found = re.fullmatch(
        rf"{COOKIE}=([0-9a-f]{{32}}); Max-Age=31536000; Path=/; HttpOnly; SameSite=Lax", first
    )
    assert found
    assert first != second
    assert answer(True, scheme="https").endswith("; Secure")
    assert answer(True, f"{COOKIE}={found[1]}") == ""  # it has one
    assert answer(True, f"{COOKIE}=../{'a' * 32}") != ""  # which is none of ours
    assert answer(True, kind=PlainTextResponse) == ""
    assert answer(False) == ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = start_server(tmp_path, PSVIT_PLANS="own")
    put_sweep(server.store, MODEL)
    yield server
    server.kill()
    server.end_workers()


@pytest.mark.slow
def test_two_browsers_edit_plans_of_their_own(server: Server, open_page: OpenPage) -> None:
    title = "Spike-driven+Transformer+(v1),+digits"
    address = f"{server.url}/tune?images=64&model={title}"
    ann = open_page(address)
    press(ann, MLP, "PageUp", "PageUp")
    bob = open_page(address)
    expect(slider(bob, MLP)).to_have_attribute("aria-valuenow", "0")
    press(bob, MLP, "PageUp")
    ann.wait_for_timeout(4000)  # the page looks for other tabs' plans every 3 s
    expect(ann.get_by_text("was changed in another tab")).to_have_count(0)
    for page, percent in ((ann, "20"), (bob, "10")):
        page.reload()  # and each finds its own again
        expect(slider(page, MLP)).to_have_attribute("aria-valuenow", percent)
