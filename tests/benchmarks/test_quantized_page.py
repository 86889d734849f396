"""The table of docs/quantize.md is that of the stored result."""

from __future__ import annotations

from benchmarks._quantized_page import section
from benchmarks._report import RESULTS, stored


def test_the_page_has_the_stored_result() -> None:
    page = (RESULTS.parents[1] / "docs" / "quantize.md").read_text(encoding="utf-8")
    assert section(stored("quantized")) in page


def test_ratios_and_losses_are_those_of_the_rows() -> None:
    rows = stored("quantized")["rows"]
    first = {r["model"]: r for r in rows if (r["network"], r["weights"]) == ("unpruned", "fp32")}
    assert len(first) == len(rows) / 6
    for row in rows:
        whole = first[row["model"]]
        assert row["ratio"] == round(row["file (bytes)"] / whole["file (bytes)"], 4)
        if row["drop (points)"]:
            lost = whole["accuracy (%)"][0] - row["accuracy (%)"][0]
            assert abs(row["drop (points)"][0] - lost) < 0.011


def test_the_steps_are_those_of_the_rows() -> None:
    document = stored("quantized")
    steps = document["settings"]["steps"]
    names = [(step["network"], step["format"]) for step in steps]
    whole, int8 = steps[0], "pruned, recovered, int8"
    assert names[0] == ("unpruned", "torch") and names[-1] == (int8, "ONNX")
    assert {name for name, _ in names} == {"unpruned", "pruned", "pruned, recovered", int8}
    assert whole["latency, batch 1"] == whole["latency, batch 32"] == 1
    for step in steps:
        assert step["ratio"] == round(step["file (bytes)"] / whole["file (bytes)"], 4)
        if step["drop (points)"]:
            lost = whole["accuracy (%)"][0] - step["accuracy (%)"][0]
            assert abs(step["drop (points)"][0] - lost) < 0.011
    rows = {(r["model"], r["network"], r["weights"]): r for r in document["rows"]}
    row = rows["sdt_v1_cifar10", "pruned, recovered", "int8"]
    step = steps[names.index((int8, "torch"))]
    for column in ("file (bytes)", "accuracy (%)", "drop (points)"):
        assert step[column] == row[column]
    assert steps[-1]["file (bytes)"] == row["ONNX (bytes)"]
