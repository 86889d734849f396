"""The command ``sweep`` with a Ray of its own: started for the command, gone at its end."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from psvit_core.cli import main
from psvit_core.cluster.runtime import load_ray
from psvit_core.records import SensitivityTable


@pytest.mark.slow
def test_the_command_starts_ray_and_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSVIT_DEMO", "0")
    tables = []
    for engine in ("ray", "local"):
        monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / engine))
        out = tmp_path / f"{engine}.json"
        words = ["sweep", "sdt_v1_digits", "--limit", "24", "--ratios", "0.5", "--out", str(out)]
        assert main([*words, "--engine", engine, "--recover", "none"]) == 0
        tables.append(SensitivityTable.load(out))
    assert tables[0] == tables[1]
    assert not load_ray().is_initialized()
    children = psutil.Process().children(recursive=True)
    assert [c.name() for c in children if "ray" in c.name() or c.name() == "gcs_server"] == []
