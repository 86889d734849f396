"""``requirements.lock`` is whole, exact, and says nothing about where packages come from."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts import write_lock
from scripts.write_lock import canonical, lock_text

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
LINES = LOCK.replace("\\\n", "").splitlines()
ENTRY = re.compile(r"([a-z0-9-]+)==([A-Za-z0-9.!+-]+)((?:\s+--hash=sha256:[0-9a-f]{64})+)")
PINS = {m[1]: m[2] for m in map(ENTRY.fullmatch, LINES) if m is not None}


def test_every_line_is_a_version_with_a_hash() -> None:
    entries = [line for line in LINES if not line.startswith("#")]
    assert [line for line in entries if not ENTRY.fullmatch(line)] == []
    assert len(PINS) == len(entries) > 50
    assert list(PINS) == sorted(PINS)
    assert "://" not in LOCK and "--index" not in LOCK and "--find-links" not in LOCK
    assert not re.search(r"(?<!\w)/\w", LOCK)  # no path


def test_it_satisfies_the_requirements() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    wanted = [Requirement(line) for line in text.splitlines() if line and line[0] != "#"]
    assert len(wanted) > 15
    for requirement in wanted:
        assert requirement.specifier.contains(PINS[canonical(requirement.name)]), requirement


@pytest.mark.skipif(
    (sys.platform, platform.machine(), sys.version_info[:2]) != ("linux", "x86_64", (3, 11)),
    reason="the lock is for Python 3.11 on Linux x86_64",
)
def test_what_its_packages_need_is_in_it() -> None:
    """As the packages installed here say, where they have the same version."""
    compared, missing = 0, []
    for found in importlib.metadata.distributions():
        if PINS.get(canonical(found.name)) != found.version:
            continue
        compared += 1
        for needed in map(Requirement, found.requires or ()):
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            version = PINS.get(canonical(needed.name), "")
            if not version or not needed.specifier.contains(version, prereleases=True):
                missing.append(f"{found.name}: {needed}")
    assert missing == []
    assert compared > 10


def test_the_same_versions_give_the_same_file() -> None:
    packages = [
        {
            "metadata": {"name": name.replace("-", "_"), "version": version},
            "download_info": {
                "url": "file:///somewhere/else.whl",
                "archive_info": {
                    "hashes": {"sha256": re.findall(f"^{name}==.*?:(\\w+)$", LOCK, re.M | re.S)[0]}
                },
            },
        }
        for name, version in reversed(PINS.items())
    ]
    assert lock_text(packages) == LOCK


def test_another_platform_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["write_lock.py"])
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    with pytest.raises(SystemExit, match="The lock is for Linux x86_64 CPython"):
        write_lock.main()
