"""Tables of ``docs/results.md``, from the result file of ``policies.py`` alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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
from psvit_core.outcomes import Array
from psvit_core.stats import wilson_interval


def accuracy(right: Array) -> str:
    """Accuracy in percent with its Wilson interval."""
    low, high = wilson_interval(int(right.sum()), len(right))
    return f"{100 * right.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def interval(value: Sequence[float]) -> str:
    """Points with their interval."""
    return f"{value[0]:+.1f} [{value[1]:+.1f}, {value[2]:+.1f}]"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown lines of a table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def accuracy_tables(r: Results, savings: Sequence[float]) -> list[str]:
    """Every policy with every recovery, at these savings and where else it was recovered."""
    lines = []
    for model in r.models:
        lines += [f"### {model}", ""]
        base = ", ".join(f"{s}: {accuracy(r.baseline(model, [s]))}" for s in SETS)
        lines += [f"Unpruned, test accuracy in % [95 % Wilson interval]: {base}.", ""]
        for spec in SETS:
            head = (
                f"`{spec}` test: saving", "policy (scope, planned)", "none", "paired drop, pp",
                "bn", "lsq", "both",
            )  # fmt: skip
            shown = [s for s in r.savings if s in savings or r.test(model, "optimal", s, "bn")]
            rows = [row for s in shown for p in POLICIES if (row := _row(r, model, s, p, spec))]
            lines += table(head, rows)
    return lines


def _row(r: Results, model: str, saving: float, policy: str, spec: str) -> list[str] | None:
    plan, cell = r.plan(model, policy, saving), r.test(model, policy, saving)
    if plan is None or cell is None:
        return None
    right = r.right(cell, model, [spec])
    return [
        f"{100 * saving:.4g} % ({100 * plan['saved']:.1f})",
        f"{policy} ({plan['scope']}, {_how(plan)})",
        accuracy(right),
        interval(paired(r.baseline(model, [spec]), right)),
        *(_recovered(r, model, saving, policy, recovery, spec) for recovery in RECOVERIES[1:]),
    ]


def _how(plan: Cell) -> str:
    n_measured = plan.get("measured")
    return f"{n_measured} plans measured" if n_measured else str(plan["how"])


def _recovered(r: Results, model: str, saving: float, policy: str, recovery: str, spec: str) -> str:
    cells = [c for s in SEEDS if (c := r.test(model, policy, saving, recovery, s))]
    if not cells:
        return "not measured"
    right = [r.right(c, model, [spec]) for c in cells]
    if len(cells) == 1:
        return f"{accuracy(right[0])}, 1 seed"
    values = [100 * float(x.mean()) for x in right]
    low, high = wilson_interval(round(float(np.mean([x.sum() for x in right]))), len(right[0]))
    spread = f"{min(values):.1f}..{max(values):.1f}"
    return f"{np.mean(values):.1f} [{100 * low:.1f}, {100 * high:.1f}], {len(cells)} seeds {spread}"


def headline(r: Results, recoveries: Sequence[str] = RECOVERIES) -> list[str]:
    """Where the better published policy loses 3 pp: how much ``optimal`` loses there."""
    found = {x: compared(r, x, crossings(r, x)) for x in recoveries}
    return _comparison_table(found)


def recovered_there(r: Results) -> list[str]:
    """The same comparison after recovery, where 3 pp are lost without one."""
    places = crossings(r, "none")
    return _comparison_table({x: compared(r, x, places) for x in RECOVERIES[1:]})


def _comparison_table(found: dict[str, list[Row]]) -> list[str]:
    rows = [
        [recovery, where, images, *map(interval, numbers), "yes" if holds(*numbers) else "no"]
        for recovery, lines in found.items()
        for where, images, numbers in lines
    ]
    head = (
        "recovery", "where", "images", "published loses, pp", "optimal loses, pp",
        "optimal better by, pp", "at most half, and equality excluded",
    )  # fmt: skip
    return table(head, rows) if rows else ["Not measured.", ""]


def verdicts(r: Results) -> list[str]:
    """What was set out to be shown, and whether these numbers show it."""
    lines = []
    alike = Results(r.cells, ("predicted",))
    for results, recovery, how in (
        (r, "none", ""), *((r, x, f", after recovery {x}") for x in RECOVERIES[1:]),
        (alike, "none", ", all plans predicted from the table alone"),
    ):  # fmt: skip
        rows = compared(results, recovery, crossings(results, recovery))
        for where, images, numbers in [row for row in rows if row[0] == "pooled"] or rows:
            said = "holds" if holds(*numbers) else "does not hold"
            lines.append(
                f"- At the loss of 3 points{how} ({where}; {images}): `optimal` loses "
                f"{numbers[1][0]:+.1f} points where the better published policy loses "
                f"{numbers[0][0]:+.1f}. At most half, equality excluded: {said}."
            )
    for model in r.models:
        theirs = r.bytes_at_loss(model, "published", "none")
        ours = [(x, m) for m in RECOVERIES if (x := r.bytes_at_loss(model, "optimal", m))]
        if theirs and ours:
            (left, reached), method = min(ours)
            ratio = left / theirs[0]
            lines.append(
                f"- {model}: `optimal` with recovery {method} needs "
                f"{'' if reached else 'at most '}{ratio:.2f} of the published policies' bytes at a "
                f"loss of 3 points. Goal 0.7: {'holds' if ratio <= 0.7 else 'does not hold'}."
            )
    worse = [
        f"{model} {100 * saving:.4g} %"
        for model in r.models
        for saving in r.savings
        if saving <= (r.crossing(model) or 1.0)
        and (gain := against_published(r, model, saving))
        and gain[0][2] < 0
    ]
    where = ", ".join(worse)
    lines.append(
        "- No worse than the better published policy within the interval at this and any smaller "
        "tested saving: " + (f"does not hold ({where})." if worse else "holds.")
    )
    return [*lines, ""]


def size_table(r: Results) -> list[str]:
    """Remaining bytes at a loss of 3 pp."""
    rows = []
    for model in r.models:
        theirs = r.bytes_at_loss(model, "published", "none")
        if theirs is None:
            continue
        for recovery in RECOVERIES:
            ours = r.bytes_at_loss(model, "optimal", recovery)
            if ours is None:
                continue
            bound = "" if ours[1] else "at most "
            ratio = ours[0] / theirs[0]
            rows.append(
                [model, recovery, f"{100 * theirs[0]:.1f} %", f"{bound}{100 * ours[0]:.1f} %",
                 f"{bound}{ratio:.2f}", "yes" if ratio <= 0.7 else "no"]
            )  # fmt: skip
    head = (
        "model", "recovery of optimal", "better of psvit and prime, no recovery", "optimal",
        "ratio", "at most 0.7",
    )  # fmt: skip
    return table(head, rows)


def smaller_table(r: Results) -> list[str]:
    """``optimal`` against the better published policy at every saving, no recovery."""
    rows = []
    for saving in r.savings:
        found = [against_published(r, model, saving) for model in r.models]
        if any(found):
            cells = [f"{interval(x[0])} ({x[1]})" if x else "" for x in found]
            rows.append([f"{100 * saving:.4g} %", *cells])
    return table(("saving", *r.models), rows)


def criteria_table(r: Results) -> list[str]:
    """Uniform plans by criterion, each at its better scope, on the val images."""
    lines = []
    settings = [json.loads(k) for k in r.cells.cells if k.startswith('["criterion"')]
    names = list(dict.fromkeys(s[2] for s in settings))
    savings = sorted({s[3] for s in settings})
    for model in r.models:
        n = (r.cells.get("baseline", model) or {})["val n"]
        rows = []
        for name in names:
            row = [name]
            for saving in savings:
                found = [
                    (float(unpack(cell["right"], n).mean()), scope)
                    for scope in ("inner", "all")
                    if "right"
                    in (cell := r.cells.get("criterion", model, name, saving, scope) or {})
                ]
                if not found:
                    row.append("not measured")
                    continue
                best, scope = max(found)
                row.append(f"{100 * best:.1f} ({scope})")
            rows.append(row)
        lines += table((f"{model}: criterion", *(f"{100 * s:.4g} %" for s in savings)), rows)
    order = ", ".join(f"{name} {100 * mean:.1f}" for name, mean in criteria_means(r).items())
    lines += [f"Mean over both models and all savings, in %: {order}.", ""]
    return lines


def unstructured_table(r: Results) -> list[str]:
    """Zeros against smaller layers at equal numbers of weights."""
    rows = []
    for model in r.models:
        for saving in r.savings:
            plan = r.plan(model, "optimal", saving)
            cell = plan and r.cells.get("unstructured", model, plan["id"])
            if not cell:
                continue
            ours = r.test(model, "optimal", saving)
            recovered = r.test(model, "optimal", saving, "both")
            rows.append(
                [
                    model, f"{cell['weights']:,} of {cell['of']:,}",
                    accuracy(r.right(ours, model, SETS[:1])) if ours else "",
                    accuracy(r.right(recovered, model, SETS[:1])) if recovered else "",
                    accuracy(r.right(cell, model, SETS[:1])),
                    f"{cell['ours bytes'] / 1e3:.0f}",
                    " / ".join(
                        f"{cell[f'{form} bytes'] / 1e3:.0f}" for form in ("dense", "bitmap", "csr")
                    ),
                    " / ".join(f"{cell[f'{which} ms']:.1f}" for which in ("full", "ours", "zeros")),
                ]
            )  # fmt: skip
    head = (
        "model", "weights left", "optimal", "optimal + both", "unstructured", "optimal, kB",
        "unstructured dense / bitmap / CSR, kB", "ms an image: unpruned / optimal / unstructured",
    )  # fmt: skip
    return table(head, rows)


def tuned_table(r: Results) -> list[str]:
    """After fine-tuning."""
    rows = []
    for model in r.models:
        for saving in TUNED:
            for policy in ("uniform", "optimal"):
                if (none := r.test(model, policy, saving)) is None:
                    continue
                cells = [none, *(tuned(r, model, policy, saving, e) for e in EPOCHS)]
                found = [
                    accuracy(r.right(c, model, SETS[:1])) if c else "not measured" for c in cells
                ]
                rows.append([model, f"{100 * saving:.4g} %", policy, *found])
    return table(("model", "saving", "policy", "none", "after 1 epoch", "after 5 epochs"), rows)


def planner_table(path: Path) -> list[str]:
    """Planner time, from the planners' own benchmark."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    head = ("groups", "policy", "target", "CPU (s)", "above bound")
    return table(head, [[str(row[c]) for c in head] for row in rows if row["groups"] == 120])
