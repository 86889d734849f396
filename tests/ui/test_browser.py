"""The browser: it starts, and is found in the same way as by scripts/ensure_chromium.sh."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser import NAMES, chromium_path
from tests.patience import JOB

SCRIPT = Path(__file__).parents[2] / "scripts" / "ensure_chromium.sh"


def fake_program(folder: Path, name: str) -> str:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text("#!/bin/sh\necho Chromium 1.0\n", encoding="utf-8")
    program.chmod(0o755)
    return str(program)


def found_by_script() -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT], capture_output=True, text=True, check=False, timeout=JOB)


def test_a_page_opens(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content("<h1>psvit</h1>")
    assert page.inner_text("h1") == "psvit"
    page.close()


@pytest.mark.parametrize("name", NAMES)
def test_program_on_path_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fake_program(tmp_path / "bin", name)
    monkeypatch.delenv("PSVIT_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert chromium_path() == program
    assert found_by_script().stdout.strip() == program


def test_named_program_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(tmp_path / "bin", "chromium")
    named = fake_program(tmp_path / "mine", "my-chromium")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PSVIT_CHROMIUM", named)
    assert chromium_path() == named
    assert found_by_script().stdout.strip() == named


def test_named_program_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="PSVIT_CHROMIUM"):
        chromium_path()
    script = found_by_script()
    assert script.returncode == 1
    assert "PSVIT_CHROMIUM" in script.stderr
