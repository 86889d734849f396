"""Text that was not written by us is shown as it is, on every page and in every kind of element."""

from __future__ import annotations

import dataclasses
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from streamlit.testing.v1 import AppTest

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import FileReport, Interval, Measurement, PrunePlan, Sizing, Subject
from psvit_core.records.jobs import InspectRequest
from psvit_core.storage.store import Store
from psvit_core.tasks.fingerprints import file_stamp
from tests import made
from tests.patience import PATIENCE
from tests.ui.conftest import OpenPage, Server, settled, start_server
from tests.ui.example import put_sweep, summary
from ui.charts.classes import class_changes_chart
from ui.model import comparison, loaders, open_files, saved_plans, state
from ui.model.foreign import in_chart, in_code, in_markdown

QUICK = ("jobs", "compare")  # pages that are drawn in the default suite
ROOT = Path(__file__).parents[2]
PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py"))
PICTURE = "![x](http://evil.example/p.png)"
HOSTILE = f"{PICTURE}[y](http://evil.example)<img src=x> :red[z] `c` ** $e$"
#: What would be drawn as a picture, a link or a style. Every element's own texts have none of it.
LIVE = re.compile(r"(?<!\\)!?\[[xy](?<!\\)\]\(|(?<!\\)<img|https?://evil|(?<!\\):red\[")

CODE = re.compile(r"(?<!\\)(`+)(?!`).*?(?<!`)\1(?!`)")

TEXTS = (
    "plain text",
    HOSTILE,
    "http://evil.example www.evil.example me@evil.example mailto:me@evil.example",
    ":material/delete: :streamlit: :smile: :red[x] :green-badge[x] ::x :::x",
    "a -- b -> c <- d <-> e >= f <= g ~= h",
    "# a",
    "1. a",
    "12) a",
    "- a",
    "+ a",
    "> a",
    "a * b * c __d__ _e_ ~~f~~ ~g~ ``h`` `i",
    "$x$ $$y$$ \\(z\\) &lt; &amp; <b>x</b> <!-- c --> <http://evil.example>",
    "C:\\models\\*.pth | a | b",
    "[ref]: http://evil.example",
    "sdt_v1_digits __init__ _x",
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Iterator[Store]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PSVIT_WARM", "0")  # no worker
    loaders.open_store.clear()
    yield Store()
    loaders.open_store.clear()


# ---- every page, with hostile text wherever the store has room for it ----------------------------


def hostile_plan() -> PrunePlan:
    model = summary("sdt_v1_digits")
    plan = plan_from_ratios(model, {model.groups[0].group_id: 0.5}, criterion="l2")
    return dataclasses.replace(plan, policy=HOSTILE)


def hostile_measurement(plan: PrunePlan | None) -> Measurement:
    model = summary("sdt_v1_digits")
    some = Interval(value=0.5, low=0.4, high=0.6)
    return Measurement(
        model=HOSTILE,
        weights_hash=model.weights_hash,
        conditions=dataclasses.replace(made.CONDITIONS, data=f"folder:{HOSTILE}"),
        accuracy=some,
        baseline_accuracy=some,
        drop=Interval(value=1.0, low=0.5, high=1.5),
        plan=plan,
        size=plan_size(model, plan),
        sops=1.0,
        macs_real=1.0,
        energy_pj=1.0,
        firing={},
        per_class={HOSTILE: (10, 5, 9), "other": (10, 9, 9)},
        warnings=(f"Something is odd about {HOSTILE}.",),
    )


def put_job(store: Store, number: int, task: str, state: str, **changed: Any) -> None:
    subject = Subject(model="sdt_v1_digits", data=changed.pop("data", f"folder:{HOSTILE}"))
    params = {"subject": subject.to_dict(), **changed.pop("params", {})}
    now = time.time() - number
    client.save(
        store,
        Job(
            id=f"job{number}",
            task=task,
            title=f"Title {HOSTILE}",
            params=params,
            state=state,
            what=HOSTILE,
            created=now,
            started=now,
            **changed,
        ),
    )


def fill(store: Store) -> None:
    """Put hostile text everywhere: plans, jobs of every state, results, uploads."""
    model, plan = summary("sdt_v1_digits"), hostile_plan()
    put_sweep(store, model)
    saved_plans.save_plan(store, model, plan, HOSTILE[: saved_plans.MAX_NAME])
    upload = open_files.save_upload(store, f"{HOSTILE}.pth".replace("/", "_"), io.BytesIO(b"12"))
    measured = {"measurement": hostile_measurement(plan).to_dict()}
    asked = {"plan": plan.to_dict(), "profile": False}
    put_job(store, 1, "measure", "done", params=asked, result=measured, data=None)
    for number, name in enumerate(("failed", "cancelled", "interrupted", "queued"), 2):
        put_job(store, number, "measure", name, params=asked, error=HOSTILE, done=1, total=5)
        put_job(store, number + 10, f"task {HOSTILE}", name, error=HOSTILE)
    path = store.place("exports", "job9", "![x](x).safetensors")
    path.write_bytes(b"1")
    result = {"path": str(path), "bytes": 1, "sha256": HOSTILE, "warnings": [HOSTILE]}
    export = {"plan": plan.to_dict(), "file_name": path.name, "measure": True}
    put_job(store, 9, "export", "done", params=export, result=result, data=None, ended=1.0)
    report = FileReport(
        path=str(upload),
        bytes=2,
        n_tensors=1,
        n_values=1,
        fits=(),
        nearest=None,
        notes=(HOSTILE,),
        sizings=(
            Sizing(
                family="sdt_v1",
                title="SDT",
                size={HOSTILE: HOSTILE},
                parameters=1,
                n_groups=1,
                cards=(),
                choices=(),
                cautions=(HOSTILE,),
            ),
        ),
    )
    request = InspectRequest(path=str(upload), stamp=tuple(file_stamp(str(upload))))
    put_job(
        store, 20, "inspect", "done", params=request.to_dict(), result={"report": report.to_dict()}
    )


def is_live(text: str) -> bool:
    return LIVE.search(CODE.sub("", text)) is not None


def shown(app: AppTest) -> list[str]:
    """Return all texts that a page's browser draws as Markdown."""
    found: list[str] = []

    def collect(message: Any) -> None:
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                many = value if field.is_repeated else [value]
                for one in many.values() if hasattr(many, "values") else many:
                    if hasattr(one, "ListFields"):
                        collect(one)
            elif field.name in ("body", "label", "help", "text") and isinstance(value, str):
                found.append(value)

    def walk(block: Any) -> None:
        if (proto := getattr(block, "proto", None)) is not None and block.type not in PLAIN:
            collect(proto)
        for child in getattr(block, "children", {}).values():
            walk(child)

    walk(app._tree)
    return found


PLAIN = ("html", "code", "plotly_chart", "arrow_data_frame", "dataframe")


@pytest.mark.parametrize(
    "page",
    [page if page in QUICK else pytest.param(page, marks=pytest.mark.slow) for page in PAGES],
)
def test_no_page_draws_what_others_wrote(page: str, store: Store) -> None:
    fill(store)
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=PATIENCE)
    app.session_state["models-source"] = "upload"
    app.run()
    assert not app.exception
    texts = shown(app)
    assert len(texts) > 5
    if page in ("compare", "jobs", "open", "export"):
        assert any(r"!\[x\](" in text for text in texts)  # it is there, and escaped
    assert [text for text in texts if is_live(text)] == []


@pytest.mark.parametrize("field", ["file", "checkpoint", "data", "arguments", "plan", "entry"])
@pytest.mark.parametrize("page", ["open", pytest.param("overview", marks=pytest.mark.slow)])
def test_the_url_is_not_drawn(page: str, field: str, store: Store) -> None:
    app = AppTest.from_file(str(ROOT / "ui" / "shell" / "main.py"), default_timeout=PATIENCE)
    app.query_params[field] = HOSTILE if field != "data" else f"folder:{HOSTILE}"
    if field in ("file", "arguments", "entry"):
        app.query_params["model"] = loaders.model_titles(store)[loaders.OPEN_FILE]
    app.session_state[state.FILE] = HOSTILE if field != "checkpoint" else ""
    if page != "overview":
        app.switch_page(str(ROOT / "pages" / f"{page}.py"))
    app.run()
    assert not app.exception
    assert [text for text in shown(app) if is_live(text)] == []


# ---- the helper ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_markdown_has_no_live_part(text: str) -> None:
    escaped = in_markdown(text)
    plain = escaped.replace("\N{WORD JOINER}", "")
    assert re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", plain) == text  # nothing is lost
    assert not LIVE.search(escaped)


def test_several_lines_become_one() -> None:
    assert in_markdown("a\n\n    b\r\n# c\u2028d") == "a b # c d"
    assert in_code("a\n\nb") == "`a b`"


def test_code_cannot_be_ended() -> None:
    assert in_code("a`b``c") == "``` a`b``c ```"


def test_chart_text_is_no_html() -> None:
    text = '<a href="http://evil.example">x</a> %{y} & <br>'
    assert in_chart(text) == (
        '&lt;a href="http://evil.example"&gt;x&lt;/a&gt; &#37;{y} &amp; &lt;br&gt;'
    )


def test_charts_show_names_as_text(store: Store) -> None:
    entry = comparison.compared_plan(
        "<a href='http://evil.example'>plan</a>",
        hostile_plan(),
        None,
        [hostile_measurement(hostile_plan())],
        comparison.finished_jobs(store, summary("sdt_v1_digits")),
        [],
    )
    figure = class_changes_chart(comparison.class_rows([entry]), [entry.name])
    drawn = figure.to_json()
    assert drawn is not None and "<a href" not in drawn and "<img" not in drawn
    assert "&lt;img" in drawn.encode().decode("unicode_escape")


# ---- in a browser --------------------------------------------------------------------------------


@pytest.mark.slow
def test_texts_are_drawn_unchanged(browser: Browser, tmp_path: Path) -> None:
    """Streamlit itself draws each text as it is: it replaces more than Markdown does."""
    script = tmp_path / "script.py"
    script.write_text(
        "import streamlit as st\n"
        "from ui.model.foreign import in_code, in_markdown\n"
        "st.title('Texts')\n"
        f"for i, text in enumerate({TEXTS!r}):\n"
        "    st.container(key=f'text-{i}').markdown(in_markdown(text))\n"
        "    st.container(key=f'label-{i}').button(in_markdown(text), key=f'b{i}')\n"
        "    st.container(key=f'alert-{i}').error(f'Wrong: {in_markdown(text)}')\n"
        "    st.container(key=f'gray-{i}').markdown(f':gray[{in_markdown(text)}]')\n"
        "    st.container(key=f'code-{i}').markdown(in_code(text))\n",
        encoding="utf-8",
    )
    server = start_server(tmp_path, script=str(script))
    try:
        page = browser.new_page()
        page.goto(server.url)
        settled(page)
        kinds = {"text": "", "label": "", "alert": "Wrong: ", "gray": "", "code": ""}
        drawn = {
            (kind, text): page.locator(f".st-key-{kind}-{at}").inner_text()
            for at, text in enumerate(TEXTS)
            for kind in kinds
        }
        assert {k: v.replace("\N{WORD JOINER}", "").strip() for k, v in drawn.items()} == {
            (kind, text): f"{kinds[kind]}{text}" for kind, text in drawn
        }
        assert page.locator("[class*=st-key-] a").count() == 0
        assert page.locator("[class*=st-key-] img").count() == 0
        page.close()
    finally:
        server.kill()


@pytest.mark.parametrize(
    "link",
    [
        f"?file={PICTURE}&model=Open+a+file",
        pytest.param(
            f"?model=QKFormer+10-384+(weights+not+included)&checkpoint={PICTURE}",
            marks=pytest.mark.slow,
        ),
        pytest.param(f"open?data=folder:{PICTURE}", marks=pytest.mark.slow),
    ],
)
def test_a_link_makes_no_request(link: str, server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/{link}")  # the fixture checks that no request leaves
    expect(page.get_by_text("![x](").first).to_be_visible()
    page.goto(f"{server.url}/jobs")
    settled(page)
    assert page.locator("a[href*=evil], img[src*=evil]").count() == 0
