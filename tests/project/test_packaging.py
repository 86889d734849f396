"""``pip install .`` brings the engine and the app, and nothing under a name of its own but one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from psvit_core.cli import app
from psvit_core.cli.arguments import make_parser
from psvit_core.errors import PsvitError
from tests.patience import JOB, JOB_MS, PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *("psvit_core", "ui", "pages", ".streamlit", "app.py", "setup.py", "pyproject.toml"),
    *("MANIFEST.in", "requirements.txt", "requirements-onnx.txt", "requirements-nir.txt"),
    "requirements-cluster.txt",
    *("README.md", "CHANGELOG.md", "LICENSE"),
    "docs/definitions.md",
)
OFFLINE = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "*.pyc", "*.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command: str | Path, **options: object) -> str:
    """Run a command that must succeed; returns what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=JOB,
        check=False,
        **options,  # type: ignore[call-overload]  # cwd and env
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=NOT_SOURCES)
        else:
            (source / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    left_over = source / "build/lib/psvit_core/removed_long_ago.py"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("raise RuntimeError\n")
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


def files_of(folder: Path) -> set[str]:
    """Source files below a folder, by their path in it."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_contains_engine_and_app(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {n.removeprefix("psvit_core/") for n in names if n.startswith("psvit_core/")}
    app_files = {n.removeprefix("_app/") for n in package if n.startswith("_app/")}
    expected = {f"{part}/{name}" for part in ("ui", "pages") for name in files_of(ROOT / part)}
    assert app_files == {"app.py", ".streamlit/config.toml", "docs/definitions.md", *expected}
    assert package - {f"_app/{name}" for name in app_files} == files_of(ROOT / "psvit_core")
    assert {"py.typed", "kernels/csrc/psvit.c", "zoo/weights/sdt_v1_digits.safetensors"} < package
    assert "storage/bundles/sdt_v1_digits.npz" in package


def test_wheel_installs_one_top_level_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"psvit_explorer-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"psvit_core", info}
    assert f"{info}/licenses/LICENSE" in names
    entry_points = zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    assert "psvit = psvit_core.cli:main" in entry_points


def test_version_is_the_newest_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", changelog, flags=re.MULTILINE)
    assert newest is not None and newest[1] == PROJECT["version"]


def test_pre_commit_runs_what_make_lint_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert lint is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint[1].splitlines()]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"entry: (.*)", hooks) == commands


def test_app_runs_from_the_checkout_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    options = make_parser().parse_args(["app", "--port", "8600", "--server.headless", "true"])
    command = app.app_command(options.port, options.streamlit)
    assert command[:5] == [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py")]
    assert command[5:9] == ["--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false"]
    assert command[9:] == ["--server.port", "8600", "--server.headless", "true"]
    assert app.app_environment({"A": "b"}) == {"A": "b", "PYTHONSAFEPATH": "1"}
    own = make_parser().parse_args(["app", "--devices", "cuda:0, cuda:1"])
    assert app.app_environment({}, own.devices)["PSVIT_DEVICES"] == "cuda:0,cuda:1"
    with pytest.raises(PsvitError, match="is no device"):
        app.app_environment({}, "gpu")
    monkeypatch.setattr(app, "_PACKAGE", ROOT / "docs" / "none")
    with pytest.raises(PsvitError, match="contains no app"):
        app.app_script()


# ---- an installed package ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it; what it depends on comes from this one."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = venv / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, wheel)
    return venv


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment variables of a user who has just installed the package."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PSVIT"))}
    own = {"HOME": tmp_path / "home", "XDG_CACHE_HOME": tmp_path / "cache"}
    (tmp_path / "empty").mkdir()
    return {**inherited, **{name: str(path) for name, path in own.items()}}


def snapshot(venv: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file in an environment."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in venv.rglob("*")
        if path.is_file()
    }


def start_app(venv: Path, folder: Path, environment: Mapping[str, str]) -> tuple[str, int]:
    """Start ``psvit app`` on a free port and wait until it answers; (address, process id)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(venv / "bin/psvit"), "app", "--port", str(port), "--server.headless", "true"]
    with (folder.parent / "app.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder.parent / "app.log").read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)
            return f"http://127.0.0.1:{port}", process.pid
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    raise TimeoutError("the app does not answer")


@pytest.fixture
def running(
    installed: Path, tmp_path: Path, environment: dict[str, str]
) -> Iterator[tuple[str, int]]:
    """The installed app, started from a folder that tries to mislead it."""
    folder = tmp_path / "empty"
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit" / "config.toml").write_text(
        '[server]\naddress = "0.0.0.0"\n[browser]\ngatherUsageStats = true\n'
    )
    (folder / "ui").mkdir()
    (folder / "ui" / "__init__.py").write_text("raise RuntimeError('not the app')\n")
    url, pid = start_app(installed, folder, environment)
    yield url, pid
    os.kill(pid, signal.SIGINT)
    if psutil.pid_exists(pid):
        psutil.wait_procs([psutil.Process(pid)], timeout=20)
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "psvit_core.jobs.worker" in command and str(installed) in command[0]:
            process.kill()


@pytest.mark.slow
def test_installed_commands_run(
    installed: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder, psvit = tmp_path / "empty", installed / "bin" / "psvit"
    before = snapshot(installed)
    models = run(psvit, "models", cwd=folder, env=environment)
    assert models.startswith("sdt_v1_digits")
    groups = run(psvit, "groups", "sdt_v1_digits", cwd=folder, env=environment)
    assert "16 channel groups" in groups
    python = installed / "bin" / "python"
    assert run(python, "-m", "psvit_core", "models", cwd=folder, env=environment) == models
    assert snapshot(installed) == before
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_installed_app_answers(
    installed: Path, running: tuple[str, int], tmp_path: Path, browser: Browser
) -> None:
    from playwright.sync_api import expect

    url, pid = running
    before = snapshot(installed)
    listening = [c for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"]
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
    asked: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview", timeout=JOB_MS)
    expect(page.get_by_role("button", name="Prune and download")).to_be_visible(timeout=JOB_MS)
    page.close()
    assert {request.split("/")[2].split(":")[0] for request in asked} == {"127.0.0.1"}
    assert snapshot(installed) == before
    assert sorted(p.name for p in (tmp_path / "empty").rglob("*.py")) == ["__init__.py"]
