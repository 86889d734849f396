"""The benchmark of the policies: its cells, and the numbers on its page."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._cells import Cells, pack, unpack
from benchmarks._policies_page import missing, write_page
from benchmarks._policies_report import (
    accuracy_table,
    at_the_loss,
    bytes_table,
    headline_table,
    worse_anywhere,
)
from benchmarks._policies_results import Results, at_loss, criteria_means, paired
from benchmarks._report import RESULTS
from benchmarks.policies import SAVINGS
from psvit_core.importance import CRITERIA
from psvit_core.plan.build import default_criterion
from psvit_core.records import WEIGHT_CRITERIA

HEAD = {
    "benchmark": "policies",
    "threads": 1,
    "machine": "made",
    "criterion": "l1",
    "versions": {"torch": "2"},
}
N = 200


def right(n_correct: int) -> dict[str, Any]:
    """Cell fields in which the first images of both test sets are right."""
    packed = pack(np.arange(N) < n_correct)
    return {"digits right": packed, "digits:distorted right": packed}


def keep(cells: Cells, settings: list[Any], cell: dict[str, Any]) -> None:
    """Store a cell."""
    cells.make(settings, lambda: cell)


def filled(path: Path, n_prime: int = 40) -> Cells:
    """Two published policies and optimal at two savings, with made-up numbers."""
    cells = Cells(path, HEAD)
    keep(cells, ["baseline", "m"], {"n": N, "val n": N, "bytes": 1000, **right(190)})
    lost = {
        ("psvit", 0.2): 2,
        ("prime", 0.2): 4,
        ("psvit", 0.4): 60,
        ("prime", 0.4): n_prime,
        ("optimal", 0.2): 0,
        ("optimal", 0.4): 8,
    }
    for (policy, saving), n in lost.items():
        name = f"{policy}{saving}"
        plan = {"id": name, "saved": saving, "val accuracy": 0.9, "val kl": 0.1}
        keep(cells, ["plan", "m", policy, saving, "inner", "predicted"], plan)
        keep(cells, ["test", "m", name, "none", 0], right(190 - n))
    return cells


def test_cells_resume(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    first = Cells(path, HEAD)
    first.make(["a", 0.4, "x"], lambda: {"value": 1})
    again = Cells(path, HEAD)
    assert again.has(["a", 0.4, "x"])
    assert again.make(["a", 0.4, "x"], lambda: pytest.fail("measured twice")) == {"value": 1}
    assert again.get("a", 0.5, "x") is None
    assert again.head == first.head


def test_cells_of_another_engine_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    Cells(path, HEAD).write()
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "engine": "older"}))
    with pytest.raises(SystemExit, match="was written by engine version older"):
        Cells(path, HEAD)
    assert Cells(path).head["engine"] == "older"  # a report reads it as it is


def test_pack() -> None:
    bits = np.array([True, False, True, True, False, False, True, False, True, True])
    assert unpack(pack(bits), len(bits)).tolist() == bits.tolist()


def test_the_best_plan_is_chosen_by_accuracy_then_kl(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "cells.json", HEAD)
    plans = {
        ("inner", "predicted"): (0.9, 0.3),
        ("all", "predicted"): (0.95, 0.5),
        ("all", "measured"): (0.95, 0.4),
    }
    for (scope, how), (accuracy, kl) in plans.items():
        plan = {"id": scope + how, "val accuracy": accuracy, "val kl": kl}
        keep(cells, ["plan", "m", "prime", 0.4, scope, how], plan)
    unreached = {"unreached": "too far"}
    keep(cells, ["plan", "m", "prime", 0.4, "inner", "measured"], unreached)
    best = cells.best_plan("m", "prime", 0.4)
    assert best is not None
    assert (best["scope"], best["how"]) == ("all", "measured")
    assert cells.best_plan("m", "prime", 0.9) is None


def test_paired_by_hand() -> None:
    better, worse = np.arange(100) < 90, np.arange(100) < 80
    value, low, high = paired(better, worse)
    assert value == pytest.approx(10)
    assert 0 < low < 10 < high
    same = paired(better, better)
    assert same[0] == 0
    assert same[1] < 0 < same[2]


def test_bytes_at_a_loss_of_three_points() -> None:
    assert at_loss([]) is None
    assert rounded(at_loss([(0.4, 5.0), (0.2, 1.0)])) == (0.7, True)  # half way
    assert rounded(at_loss([(0.2, 6.0)])) == (0.9, True)  # from the unpruned model
    assert rounded(at_loss([(0.2, -0.5), (0.6, 2.9)])) == (0.4, False)


def rounded(found: tuple[float, bool] | None) -> tuple[float, bool] | None:
    return found and (round(found[0], 9), found[1])


def test_results_by_hand(tmp_path: Path) -> None:
    r = Results(filled(tmp_path / "cells.json"))
    assert r.models == ["m"]
    near, far = r.best_published("m", 0.2), r.best_published("m", 0.4)
    assert near and far
    assert (near[0], far[0]) == ("psvit", "prime")
    assert near[1] == pytest.approx(1.0)
    assert far[1] == pytest.approx(20.0)
    assert r.crossing("m") is None  # neither 1 nor 20 points are near 3
    assert headline_table(at_the_loss(r)).rows == ()
    assert r.drop("m", "optimal", 0.4) == pytest.approx(4.0)
    left = round(1 - (0.2 + 2 / 19 * 0.2), 9)
    assert rounded(r.bytes_at_loss("m", "published", "none")) == (left, True)
    assert r.test("m", "uniform", 0.4) is None
    assert any("psvit 40 %, prime 40 % predicted only" in x for x in missing(r, (0.4,)))
    assert bytes_table(r).rows[0][:3] == ("m", "none", f"{100 * left:.3f}")
    assert worse_anywhere(r) == []


def test_the_headline_by_hand(tmp_path: Path) -> None:
    cells = filled(tmp_path / "cells.json", n_prime=7)
    r = Results(cells)
    assert r.crossing("m") == 0.4  # 3.5 points
    clean, both = headline_table(at_the_loss(r)).rows
    assert clean[:3] == ("none", "m, 40 %, prime", "200 clean")
    assert [points.split()[0] for points in clean[3:6]] == ["+3.5", "+4.0", "-0.5"]
    assert clean[6] == both[6] == "no"
    page = write_page(cells, tmp_path / "docs", RESULTS / "planners.json", (0.2, 0.4))
    said = " ".join(page.read_text(encoding="utf-8").split("## What does not hold")[1].split())
    assert (
        "Question 1, recovery `none` (m, 40 %, prime; 200 clean): `optimal` loses 4.0 points where "
        "the better published policy loses 3.5." in said
    )


def test_accuracies_by_hand(tmp_path: Path) -> None:
    table = accuracy_table(Results(filled(tmp_path / "cells.json")), (0.2, 0.4))
    rows = [dict(zip(table.head, row, strict=True)) for row in table.rows]
    assert len(rows) == 2 * (1 + 6)  # per test set: the unpruned model and six plans
    assert rows[0]["policy"] == "unpruned" and rows[0]["accuracy_percent"] == "95.000"
    (found,) = [
        row
        for row in rows
        if (row["test_set"], row["policy"], row["saving_asked_percent"])
        == ("digits", "optimal", "40")
    ]
    assert (found["accuracy_percent"], found["drop_pp"], found["planned"]) == (
        *("91.000", "4.000"),
        "predicted",
    )
    assert table.csv().splitlines()[0] == ",".join(table.head)


def test_a_published_policy_may_take_its_plan_for_a_larger_saving(tmp_path: Path) -> None:
    cells = filled(tmp_path / "cells.json")
    better = {"id": "far", "saved": 0.6, "val accuracy": 0.92, "val kl": 0.1}
    for policy in ("prime", "optimal"):
        keep(cells, ["plan", "m", policy, 0.6, "inner", "measured"], better)
    plans = [cells.best_plan("m", policy, 0.4) for policy in ("prime", "optimal")]
    assert [plan and plan["id"] for plan in plans] == ["far", "optimal0.4"]
    assert (cells.best_plan("m", "prime", 0.4, ("predicted",)) or {})["id"] == "prime0.4"


def test_the_default_criteria_are_the_best_of_the_table() -> None:
    means = criteria_means(Results(Cells(RESULTS / "policies.json")))
    assert set(means) == set(CRITERIA)
    assert next(iter(means)) == default_criterion(CRITERIA)
    assert next(n for n in means if n in WEIGHT_CRITERIA) == default_criterion(WEIGHT_CRITERIA)


def test_the_page_is_written_from_the_cells_alone(tmp_path: Path) -> None:
    cells = filled(tmp_path / "cells.json")
    for name, scope, n in (("l1", "all", 20), ("l1", "inner", 40), ("random", "inner", 10)):
        cell = {"right": pack(np.arange(N) < n)}
        keep(cells, ["criterion", "m", name, 0.4, scope], cell)
    keep(cells, ["tuned", "m", "optimal0.4", 1.0], right(188))
    size = {f"{form} bytes": 1000 for form in ("ours", "dense", "bitmap", "csr")}
    times = {f"{which} ms": 1.0 for which in ("full", "ours", "zeros")}
    zeros = {"weights": 50, "of": 100, **size, **times, **right(150)}
    keep(cells, ["unstructured", "m", "optimal0.4"], zeros)
    page = write_page(cells, tmp_path / "docs", RESULTS / "planners.json", (0.2, 0.4))
    text = page.read_text(encoding="utf-8")
    assert "savings, in %: `l1` 20.0, `random` 5.0." in text
    folder = tmp_path / "docs" / "results"
    tables = {
        path.stem: list(csv.DictReader(path.read_text().splitlines()))
        for path in folder.glob("*.csv")
    }
    assert all(f"results/{name}.csv" in text for name in tables)
    assert len(tables) == text.count(".csv)")
    assert tables["criteria"][0] == {
        "model": "m",
        "criterion": "l1",
        "saving_percent": "40",
        "scope": "inner",
        "accuracy_percent": "20.000",
    }
    tuned = [
        (row["policy"], row["epochs"], row["accuracy_percent"]) for row in tables["fine_tuning"]
    ]
    assert tuned == [("optimal", "0", "91.000"), ("optimal", "1", "94.000")]
    (unstructured,) = tables["unstructured"]
    assert (unstructured["weights_left"], unstructured["unstructured_percent"]) == ("50", "75.000")
    for name in ("policies", "recovery", "unstructured"):
        assert f"results/{name}.svg" in text
        assert (folder / f"{name}.svg").read_text().count("<path") > 5


@pytest.mark.slow
def test_the_stored_page_is_the_generated_one(tmp_path: Path) -> None:
    docs = RESULTS.parents[1] / "docs"
    cells = Cells(RESULTS / "policies.json")
    page = write_page(cells, tmp_path, RESULTS / "planners.json", SAVINGS)
    assert page.read_text(encoding="utf-8") == (docs / "results.md").read_text(encoding="utf-8")
    for path in (tmp_path / "results").glob("*.csv"):
        assert path.read_bytes() == (docs / "results" / path.name).read_bytes()
