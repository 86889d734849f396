"""Shared configuration: one thread, reproducible examples, reference data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for processes that tests start

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

settings.register_profile(
    "psvit",
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=(HealthCheck.too_slow,),  # the machine may be busy
)
settings.load_profile("psvit")
torch.set_num_threads(1)


#: Folders and files whose tests of a vector take long; elsewhere every vector runs by default.
_HEAVY = {
    "core",
    "importance",
    "incremental",
    "metrics",
    "plan",
    "planners",
    "recover",
    "sensitivity",
    "test_sizing",
}
#: Vectors of deep or large networks: their heavy tests run with the slow ones only.
_SLOWEST = {
    *("sdt_v2_kd", "sdt_v3", "sdt_v3_large_base"),
    *("spikingresformer_cifar", "max_former_cifar", "ms_qkformer_cifar"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark heavy tests as slow, but not those of one vector of most families; CI runs them too.

    A browser test that fails runs again: browser, server and worker share the cores with other
    tests, and such a run says little about the page. The summary lists every test that ran again.
    """
    from tests.tiny import NAMES, QUICK_NAMES

    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.flaky(reruns=2))
        parameters = getattr(item, "callspec", None)
        if parameters is None or not {item.path.parent.name, item.path.stem} & _HEAVY:
            continue
        vectors = {v for v in parameters.params.values() if isinstance(v, str)} & {*NAMES}
        if vectors - ({*QUICK_NAMES} - _SLOWEST):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print why tests ran again; pytest itself only names them."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"{report.nodeid} ran again after")
        terminalreporter.write_line(report.longreprtext)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start a headless Chromium for the session; tests open their own contexts in it.

    There is one for all tests, because Playwright cannot start twice in a process.
    """
    from playwright.sync_api import sync_playwright

    from tests.browser import FLAGS, chromium_path

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def reference() -> Path:
    """Return the folder of the reference data: ``vectors``, ``groups``, ``manifests``."""
    return Path(__file__).parent / "reference"
