"""How a report looks in a browser: alone, readable, on paper."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, ConsoleMessage, Request

from psvit_core.records import Subject
from psvit_core.report import collect, write_page
from psvit_core.storage.shipped import DemoStore
from psvit_core.zoo.cards import shipped_summary


def _note_url(asked: list[str], request: Request) -> None:
    asked.append(request.url)


def _note_text(said: list[str], message: ConsoleMessage) -> None:
    said.append(message.text)


def test_a_page_opens_alone_and_can_be_read(browser: Browser, tmp_path: Path) -> None:
    store = DemoStore(tmp_path / "store")
    model = shipped_summary("sdt_v1_digits")
    assert model is not None
    path = write_page(collect(store, Subject(), model), tmp_path / "report.html")
    store.close()
    for scheme, width in (("light", 1000), ("dark", 390)):
        context = browser.new_context(viewport={"width": width, "height": 800})
        page = context.new_page()
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        asked: list[str] = []
        said: list[str] = []
        page.on("request", partial(_note_url, asked))
        page.on("console", partial(_note_text, said))
        page.goto(path.as_uri())
        figure = page.get_by_role("img", name="Measured plans: accuracy against memory")
        assert figure.is_visible()
        assert (asked, said) == ([path.as_uri()], [])
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.evaluate(AXE_SCRIPT)
        found = page.evaluate("() => axe.run({ resultTypes: ['violations'] })")
        assert [v["id"] for v in found["violations"]] == []
        paper = page.pdf(format="A4")
        assert paper.startswith(b"%PDF")
        context.close()
