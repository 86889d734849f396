"""``psvit latency`` and ``psvit plan --latency``, from a table whose times are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psvit_core.cli import latency as command
from psvit_core.cli import main
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import LatencyTable, LayerLatency, Machine
from psvit_core.zoo.cards import shipped_summary

NAME = "e_spikeformer_digits"


def known_table() -> LatencyTable:
    """Return a table of two layers: 8 ms in proportion to the first group's units, and 1 ms."""
    summary = shipped_summary(NAME)
    assert summary is not None
    first = summary.groups[0]
    ends = (first.n_units, 1)
    return LatencyTable(
        model=NAME,
        weights_hash=summary.weights_hash,
        machine=Machine(device="cpu", processor="P", threads=1, torch="2", kernels="plain"),
        precision="float32",
        T=summary.T,
        batch=1,
        input_shape=summary.input_shape,
        full_widths={g.group_id: g.n_units for g in summary.groups},
        total_ms=10.0,
        rest_ms=1.0,
        rest_slope_ms=0.0,
        layers=(
            LayerLatency(
                name="wide",
                kind="Conv2d",
                groups=(first.group_id,),
                widths=tuple((n,) for n in ends),
                ms=tuple(8.0 * n / first.n_units for n in ends),
            ),
            LayerLatency(name="head", kind="Linear", groups=(), widths=((),), ms=(1.0,)),
        ),
    )


@pytest.fixture(autouse=True)
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    batches: list[int] = []

    def measured(session: object, batch: int, progress: object) -> LatencyTable:
        batches.append(batch)
        return known_table()

    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "measure_latency", measured)
    return batches


def test_layers_and_a_plan(
    tmp_path: Path, known: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = shipped_summary(NAME)
    assert summary is not None
    plan = plan_from_ratios(summary, {summary.groups[0].group_id: 0.5}, criterion="l2")
    path, out = plan.save(tmp_path / "plan.json"), tmp_path / "table.json"
    options = ["--plan", str(path), "--batch", "2", "--out", str(out)]
    assert main(["latency", NAME, *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert known == [2]
    assert sum(result["layers"].values()) == result["unpruned_ms"] == 10.0
    assert result["layers"] == {"wide": 8.0, "head": 1.0, "(between layers)": 1.0}
    assert result["predicted_ms"] == pytest.approx(6.0)
    assert result["predicted_saving"] == pytest.approx(0.4)
    assert result["predicted_layers"]["wide"] == pytest.approx(4.0)
    assert LatencyTable.load(out) == known_table()
    assert main(["latency", NAME, *options]) == 0
    text = capsys.readouterr().out
    assert "10.00 ms measured: 9.00 in 2 layers, 1.00 between them" in text
    assert "6.00 ms predicted, saves 40.0%" in text
    assert "8.000 ->    4.000 ms  wide (Conv2d)" in text


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", NAME, "--out", str(tmp_path)]) == 2
    other = shipped_summary("sdt_v1_digits")
    assert other is not None
    plan = plan_from_ratios(other, {other.groups[0].group_id: 0.5}, criterion="l2")
    path = plan.save(tmp_path / "plan.json")
    assert main(["latency", NAME, "--plan", str(path)]) == 2
    assert "Create a plan for this model" in capsys.readouterr().err
