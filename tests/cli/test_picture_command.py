"""``psvit picture``: what it writes, and what it refuses before it reads a model."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from psvit_core.cli import main
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import Interval, SensitivityTable
from psvit_core.zoo.cards import shipped_summary
from tests.ui.example import CONDITIONS, rows

NAME = "sdt_v1_digits"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    summary = shipped_summary(NAME)
    assert summary is not None
    table = SensitivityTable(
        summary=summary,
        criterion="l2",
        conditions=dataclasses.replace(CONDITIONS, T=summary.T),
        ratios=(0.1, 0.5),
        baseline_accuracy=Interval(value=0.9, low=0.8, high=0.95),
        rows=tuple(rows(summary, (0.1, 0.5))),
    )
    return table.save(tmp_path / "sweep.json")


def test_picture_and_node_data_of_a_sweep(
    tmp_path: Path, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = shipped_summary(NAME)
    assert summary is not None
    plan = plan_from_ratios(summary, {"stream": 0.5}, criterion="l2")
    files = ["--plan", str(plan.save(tmp_path / "plan.json")), "--sweep", str(sweep)]
    written = ["--out", "net.svg", "--node-data", "net.json"]
    assert main(["picture", NAME, *files, *written, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["colour"], result["groups"], result["out"]) == ("drop", 16, "net.svg")
    assert result["values"]["stream"] == pytest.approx(10.0)
    svg = (tmp_path / "net.svg").read_text(encoding="utf-8")
    assert ET.fromstring(svg).attrib["role"] == "img"
    assert "64 channels, 32 removed (50.0%)" in svg
    data = json.loads((tmp_path / "net.json").read_text(encoding="utf-8"))
    assert data["graph"]["results"]["p_patch_embed_proj_conv3_weight"]["value"] == 10.0


def test_firing_rates_of_a_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"firing": {"block.0.mlp.fc1_lif": 0.25}}))
    assert main(["picture", NAME, "--firing", "m.json", "--out", "net.svg", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["values"] == {"block.0.mlp.hidden": 0.25}
    assert "25 %" in (tmp_path / "net.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Nothing to write. Give --out F.svg"),
        (["--out", "net.png"], "Use for example net.svg"),
        (["--out", "no/net.svg"], "does not exist"),
        (["--out", "n.svg", "--colour", "drop"], "needs --sweep F"),
        (["--out", "n.svg", "--ratio", "0.5"], "Give --sweep"),
        (["--node-data", "n.json", "--colour", "none"], "Choose another"),
        (["--out", "n.svg", "--firing", "bad.json"], "evaluate --json"),
        (["--out", "n.svg", "--firing", "other.json"], "no layer of sdt_v1_digits"),
    ],
)
def test_refusals(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"firing": {"elsewhere.lif": 0.5}}')
    assert main(["picture", NAME, *options]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "n.svg").exists()
