"""Tables and verdicts about the policies, from the result file of ``policies.py`` alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._cells import Cell, unpack
from benchmarks._policies_results import (
    EPOCHS,
    POLICIES,
    RECOVERIES,
    SEEDS,
    SETS,
    TUNED,
    Results,
    Row,
    against_published,
    compared,
    criteria_means,
    crossings,
    holds,
    paired,
    tuned,
)
from psvit_core.stats import wilson_interval
from psvit_core.storage.predictions import Array

GOAL = 0.7  # of the published policies' bytes at the same loss


@dataclass(frozen=True)
class Table:
    """Rows of text under column names."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def csv(self) -> str:
        """Return the table as comma-separated values with a header."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.head, *self.rows])
        return text.getvalue()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    return Table(tuple(head), tuple(tuple(row) for row in rows))


def _number(value: float) -> str:
    return f"{value:.3f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g}"


def _interval(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def accuracy(right: Array) -> tuple[float, float, float]:
    """Return an accuracy with its Wilson interval, in percent."""
    low, high = wilson_interval(int(right.sum()), len(right))
    return 100 * float(right.mean()), 100 * low, 100 * high


def in_points(value: Sequence[float]) -> str:
    """Return points with their interval, for reading."""
    return f"{value[0]:+.1f} [{value[1]:+.1f}, {value[2]:+.1f}]"


# ---- accuracies ----------------------------------------------------------------------------------

_ACCURACY_HEAD = (
    *("model", "test_set", "saving_asked_percent", "saving_percent", "policy", "scope", "planned"),
    *("recovery", "seeds", *_interval("accuracy_percent"), "seeds_lowest", "seeds_highest"),
    *_interval("drop_pp"),
)


def accuracy_table(r: Results, savings: Sequence[float]) -> Table:
    """Return every policy with every recovery, at these savings and where else it was recovered."""
    rows: list[list[str]] = []
    for model in r.models:
        shown = [s for s in r.savings if s in savings or r.test(model, "optimal", s, "bn")]
        for spec in SETS:
            base = map(_number, accuracy(r.baseline(model, [spec])))
            rows.append([model, spec, "0", "0", "unpruned", "", "", "none", "1", *base, *[""] * 5])
            for saving in shown:
                for policy in POLICIES:
                    rows += _accuracy_rows(r, model, saving, policy, spec)
    return _table(_ACCURACY_HEAD, rows)


def _accuracy_rows(
    r: Results, model: str, saving: float, policy: str, spec: str
) -> Iterator[list[str]]:
    plan = r.plan(model, policy, saving)
    if plan is None:
        return
    saved = [_percent(saving), _number(100 * plan["saved"])]
    made = [model, spec, *saved, policy, str(plan["scope"]), _how(plan)]
    for recovery in RECOVERIES:
        seeds = SEEDS[:1] if recovery == "none" else SEEDS
        cells = [c for s in seeds if (c := r.test(model, policy, saving, recovery, s))]
        if not cells:
            continue
        right = [r.right(cell, model, [spec]) for cell in cells]
        means = [100 * float(one.mean()) for one in right]
        low, high = wilson_interval(round(float(np.mean([x.sum() for x in right]))), len(right[0]))
        values = [float(np.mean(means)), 100 * low, 100 * high, min(means), max(means)]
        drop = paired(r.baseline(model, [spec]), right[0]) if recovery == "none" else ()
        yield [
            *(*made, recovery, str(len(cells)), *map(_number, values)),
            *([_number(value) for value in drop] or [""] * 3),
        ]


def _how(plan: Cell) -> str:
    n_measured = plan.get("measured")
    return f"{n_measured} plans measured" if n_measured else str(plan["how"])


# ---- optimal against the better published policy -------------------------------------------------

Comparisons = Mapping[str, list[Row]]  # by recovery


def at_the_loss(r: Results, recoveries: Sequence[str] = RECOVERIES) -> Comparisons:
    """Compare where the better published policy loses 3 points, all with the same recovery."""
    return {x: compared(r, x, crossings(r, x)) for x in recoveries}


def recovered_there(r: Results) -> Comparisons:
    """Compare after recovery at the savings where 3 points are lost without one."""
    places = crossings(r, "none")
    return {x: compared(r, x, places) for x in RECOVERIES[1:]}


def main_rows(found: Comparisons) -> Iterator[tuple[str, Row]]:
    """Yield the pooled comparisons of each recovery, or those of its one model."""
    for recovery, rows in found.items():
        for row in [one for one in rows if one[0] == "pooled"] or rows:
            yield recovery, row


def headline_table(found: Comparisons) -> Table:
    """Return the pooled comparisons for reading."""
    head = (
        *("recovery", "where", "images", "published loses, pp", "`optimal` loses, pp"),
        *("`optimal` better by, pp", "at most half"),
    )
    return _table(
        head,
        (
            (recovery, where, images, *map(in_points, numbers), _yes(holds(*numbers)))
            for recovery, (where, images, numbers) in main_rows(found)
        ),
    )


def comparison_table(found: Comparisons) -> Table:
    """Return all comparisons, by model and pooled."""
    head = (
        *("recovery", "where", "images", *_interval("published_loses_pp")),
        *(*_interval("optimal_loses_pp"), *_interval("optimal_better_by_pp"), "at_most_half"),
    )
    rows = [
        (
            *(recovery, where, images),
            *(_number(value) for points in numbers for value in points),
            _yes(holds(*numbers)),
        )
        for recovery, lines in found.items()
        for where, images, numbers in lines
    ]
    return _table(head, rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def by_saving_table(r: Results) -> Table:
    """Return by how much ``optimal`` is better at every saving, no recovery."""
    rows = []
    for model in r.models:
        for saving in r.savings:
            if found := against_published(r, model, saving):
                points, policy = found
                rows.append([model, _percent(saving), policy, *map(_number, points)])
    head = ("model", "saving_percent", "published_policy", *_interval("optimal_better_by_pp"))
    return _table(head, rows)


def worse_savings(r: Results) -> list[tuple[str, float]]:
    """Return where ``optimal`` is significantly worse, up to the saving where 3 points are lost."""
    return [
        (model, saving) for model, saving, _ in _worse(r) if saving <= (r.crossing(model) or 1.0)
    ]


def worse_anywhere(r: Results) -> list[str]:
    """Return where ``optimal`` is significantly worse at any saving, for reading."""
    return [
        f"{_percent(saving)} % (`{model}`, all test images), by "
        f"{in_points((-points[0], -points[2], -points[1]))} points"
        for model, saving, points in _worse(r)
    ]


def _worse(r: Results) -> list[tuple[str, float, Sequence[float]]]:
    return [
        (model, saving, gain[0])
        for model in r.models
        for saving in r.savings
        if (gain := against_published(r, model, saving)) and gain[0][2] < 0
    ]


# ---- bytes at a loss of 3 points -----------------------------------------------------------------


@dataclass(frozen=True)
class Bytes:
    """Fractions of the bytes that remain where 3 points are lost."""

    model: str
    recovery: str  # of optimal
    published: float
    optimal: float
    exact: bool  # False: 3 points were not lost at the largest tested saving

    @property
    def ratio(self) -> float:
        """Bytes of ``optimal`` over those of the better published policy."""
        return self.optimal / self.published


def bytes_at_loss(r: Results, model: str) -> list[Bytes]:
    """Return a model's remaining bytes for every recovery of ``optimal``."""
    theirs = r.bytes_at_loss(model, "published", "none")
    if theirs is None:
        return []
    return [
        Bytes(model, recovery, theirs[0], *ours)
        for recovery in RECOVERIES
        if (ours := r.bytes_at_loss(model, "optimal", recovery))
    ]


def bytes_table(r: Results) -> Table:
    """Return the remaining bytes at a loss of 3 points."""
    head = (
        *("model", "recovery_of_optimal", "published_bytes_percent", "optimal_bytes_percent"),
        *("ratio", "upper_bound", f"at_most_{GOAL}"),
    )
    rows = [
        (
            *(b.model, b.recovery, _number(100 * b.published), _number(100 * b.optimal)),
            *(_number(b.ratio), _yes(not b.exact), _yes(b.ratio <= GOAL)),
        )
        for model in r.models
        for b in bytes_at_loss(r, model)
    ]
    return _table(head, rows)


# ---- criteria, unstructured pruning, fine-tuning, planners ---------------------------------------


def criteria_table(r: Results) -> Table:
    """Return uniform plans by criterion, each at its better scope, on the val images."""
    settings = [json.loads(k) for k in r.cells.cells if k.startswith('["criterion"')]
    names = list(dict.fromkeys(s[2] for s in settings))
    rows = []
    for model in r.models:
        n = (r.cells.get("baseline", model) or {})["val n"]
        for name in names:
            for saving in sorted({s[3] for s in settings}):
                cells = {
                    scope: r.cells.get("criterion", model, name, saving, scope) or {}
                    for scope in ("inner", "all")
                }
                found = [
                    (float(unpack(cell["right"], n).mean()), scope)
                    for scope, cell in cells.items()
                    if "right" in cell
                ]
                if found:
                    best, scope = max(found)
                    rows.append((model, name, _percent(saving), scope, _number(100 * best)))
    return _table(("model", "criterion", "saving_percent", "scope", "accuracy_percent"), rows)


def criteria_order(r: Results) -> str:
    """Return the criteria with their mean accuracies, best first."""
    means = criteria_means(r)
    return ", ".join(f"`{name}` {100 * mean:.1f}" for name, mean in means.items())


_UNSTRUCTURED_HEAD = (
    *("model", "weights_left", "weights", *_interval("optimal_percent")),
    *(*_interval("optimal_both_percent"), *_interval("unstructured_percent"), "optimal_kb"),
    *("unstructured_dense_kb", "unstructured_bitmap_kb", "unstructured_csr_kb"),
    *("unpruned_ms", "optimal_ms", "unstructured_ms"),
)


def unstructured_table(r: Results) -> Table:
    """Return zeros against smaller layers at equal numbers of weights."""
    rows = []
    for model in r.models:
        for saving in r.savings:
            plan = r.plan(model, "optimal", saving)
            cell = plan and r.cells.get("unstructured", model, plan["id"])
            if not cell:
                continue
            ours = [r.test(model, "optimal", saving, x) for x in ("none", "both")]
            accuracies = [
                map(_number, accuracy(r.right(c, model, SETS[:1]))) if c else [""] * 3
                for c in (*ours, cell)
            ]
            sizes = [cell[f"{form} bytes"] / 1e3 for form in ("ours", "dense", "bitmap", "csr")]
            times = [cell[f"{which} ms"] for which in ("full", "ours", "zeros")]
            rows.append(
                (
                    *(model, str(cell["weights"]), str(cell["of"])),
                    *(value for three in accuracies for value in three),
                    *map(_number, [*sizes, *times]),
                )
            )
    return _table(_UNSTRUCTURED_HEAD, rows)


def tuned_table(r: Results) -> Table:
    """Return accuracies after fine-tuning, on the clean test images."""
    rows = []
    for model in r.models:
        for saving in TUNED:
            for policy in ("uniform", "optimal"):
                cells = {
                    0.0: r.test(model, policy, saving),
                    **{epochs: tuned(r, model, policy, saving, epochs) for epochs in EPOCHS},
                }
                rows += [
                    (
                        *(model, _percent(saving), policy, f"{epochs:g}"),
                        *map(_number, accuracy(r.right(cell, model, SETS[:1]))),
                    )
                    for epochs, cell in cells.items()
                    if cell
                ]
    return _table(
        ("model", "saving_percent", "policy", "epochs", *_interval("accuracy_percent")), rows
    )


def planner_table(path: Path) -> Table:
    """Return planner times, from the planners' own benchmark."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    columns = ("groups", "policy", "target", "CPU (s)", "above bound")
    head = ("groups", "policy", "target", "cpu_s", "above_bound")
    return _table(head, [[str(row[c]) for c in columns] for row in rows if row["groups"] == 120])
