"""The section on CIFAR-10: its rows, its verdict, and that the stored page has it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks._cifar10_page import section
from benchmarks._report import RESULTS


def row(policy: str, saving: float, pruned: float, recovered: float | None) -> dict[str, Any]:
    def numbers(value: float) -> list[float]:
        return [value, value - 0.4, value + 0.4]

    return {
        "saving": saving,
        "policy": policy,
        "bytes": 4_000_000,
        "pruned": numbers(pruned),
        "recovered": None if recovered is None else numbers(recovered),
        "used": "lsq",
    }


def document(
    ours: float = 1.0, recovered: float = 0.2, finetuned: float = 0.1, n_bytes: int = 2_000_000
) -> dict[str, Any]:
    rows = [
        row("optimal", 0.2668, 1.0, recovered) | {"finetuned": [finetuned, finetuned - 0.4, 1.0]},
        row("psvit", 0.3, 9.0, 2.0),
        row("prime", 0.3, 3.0, 1.0),
        row("optimal", 0.3, ours, 0.5),
        row("zeros, values alone", 0.3, 0.1, None),
    ]
    search = [(0.35, 4.0), (0.28, 1.0), (0.31, 3.5), (0.29, 2.0)]
    about = {
        "model": "m",
        "unpruned": [80.9, 80.1, 81.6],
        "bytes": 5_820_000,
        "search": search,
        "smallest": row("optimal", 0.6, 20.0, 2.9) | {"bytes": n_bytes},
        "training": {"epochs": 1, "lr": 5e-4, "batch": 128},
    }
    return {"settings": about, "rows": rows}


def test_rows() -> None:
    text = section(document())
    assert "`m` (80.90 [80.10, 81.60] % of the" in text
    assert "5.82 MB" in text
    assert "| 30.00 % | `prime` | 4.00 | 3.00 | 2.60 to 3.40 | 1.00 | 0.60 to 1.40 |  |  |" in text
    assert "| 30.00 % | zeros, values alone | 4.00 | 0.10 | -0.30 to 0.50 |  |  |  |  |" in text
    assert (
        "| 26.68 % | `optimal` | 4.00 | 1.00 | 0.60 to 1.40 | 0.20 | -0.20 to 0.60 | 0.10 |" in text
    )


def test_how_near_the_saving_is() -> None:
    text = " ".join(section(document()).split())
    assert "loses 2.00 points at 29.0 % saved and 3.50 at 31.0 %" in text


@pytest.mark.parametrize(("ours", "met"), [(1.5, "met"), (1.51, "not met")])
def test_half_of_the_better_policy(ours: float, met: str) -> None:
    text = " ".join(section(document(ours)).split())
    assert f"Measured: {ours:.2f} against 3.00 (`prime`): {met}." in text


@pytest.mark.parametrize(
    ("recovered", "said"),
    [
        (0.2, "0.20: met. That is not significantly more than nothing."),
        (0.5, "0.50: met. That is significantly more than nothing."),
        (0.6, "0.60: not met. That is significantly more than nothing."),
    ],
)
def test_half_a_point_after_recovery(recovered: float, said: str) -> None:
    assert said in " ".join(section(document(recovered=recovered)).split())


@pytest.mark.parametrize(("finetuned", "met"), [(0.4, "met"), (0.41, "not met"), (-1.5, "met")])
def test_no_loss_after_fine_tuning(finetuned: float, met: str) -> None:
    text = " ".join(section(document(finetuned=finetuned)).split())
    assert f"Measured: {finetuned:.2f} [{finetuned - 0.4:.2f}, 1.00]: {met}." in text


@pytest.mark.parametrize(
    ("n_bytes", "said"), [(2_800_000, "0.70: met"), (2_900_000, "0.72: not met")]
)
def test_bytes_at_three_points(n_bytes: int, said: str) -> None:
    text = " ".join(section(document(n_bytes=n_bytes)).split())
    assert f"MB against 4.00 MB (`prime`), a ratio of {said}." in text
    assert "loses 2.90 [2.50, 3.30] on the test pictures" in text


def test_the_page_has_the_stored_section() -> None:
    stored = json.loads((RESULTS / "cifar10.json").read_text(encoding="utf-8"))
    page = (RESULTS.parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    assert section(stored) in page
    assert len({row["saving"] for row in stored["rows"]}) == 3
