"""The pages without a browser: empty states open without error; nothing of the UI loads torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from ui import loaders

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py"))


@pytest.fixture(autouse=True)
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    yield
    loaders.open_store.clear()


@pytest.mark.parametrize("page", PAGES)
def test_empty_state(page: str) -> None:
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=30).run()
    assert not app.exception
    assert not app.error


def test_main_shows_the_model_page() -> None:
    app = AppTest.from_file(str(ROOT / "ui" / "main.py"), default_timeout=30).run()
    assert not app.exception
    assert app.selectbox(key="model").value == "sdt_v1_digits"
    assert any("Channel group" in text.value for text in app.markdown)


def test_plan_moves_by_slider_and_undo() -> None:
    app = AppTest.from_file(str(ROOT / "pages" / "plan.py"), default_timeout=30).run()
    whole = app.metric[1].value
    slider = app.slider[3]
    slider.set_value(50).run()
    assert int(app.metric[1].value.replace(",", "")) < int(whole.replace(",", ""))
    app.button(key="presets-undo").click().run()
    assert app.metric[1].value == whole
    assert app.slider[3].value == 0


def test_no_torch_in_the_interface() -> None:
    program = (
        "import json, sys, app, ui.head, ui.panels_export, ui.panels_measure, ui.panels_sweep\n"
        "heavy = {'torch', 'torchvision', 'spikingjelly', 'timm'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == []
