"""``docs/results.md`` and its plots, from the result file of ``policies.py`` alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._cells import HOWS, PUBLISHED, Cell, Cells, unpack
from psvit_core.outcomes import Array
from psvit_core.stats import paired_drop_interval, wilson_interval

POLICIES = ("uniform", "psvit", "prime", "optimal")
RECOVERIES = ("none", "bn", "lsq", "both")
SETS = ("digits", "digits:distorted")
LOSS, NEAR = 3.0, 1.0  # pp: the papers' loss, and what counts as near it
SEEDS = (0, 1, 2)
TUNED, EPOCHS = (0.4, 0.55, 0.7), (1.0, 5.0)  # fine-tuning: savings, epochs


class Results:
    """The cells as numbers.

    Args:
        cells: The result file.
        hows: Of the plans that were made in these ways.
    """

    def __init__(self, cells: Cells, hows: Sequence[str] = HOWS) -> None:
        self.cells, self.hows = cells, hows
        self.models = [json.loads(k)[1] for k in cells.cells if k.startswith('["baseline"')]
        settings = [json.loads(k) for k in cells.cells if k.startswith('["plan"')]
        self.savings = sorted({s[3] for s in settings})

    def plan(self, model: str, policy: str, saving: float) -> Cell | None:
        """The chosen plan of a policy at a saving."""
        return self.cells.best_plan(model, policy, saving, self.hows)

    def right(self, cell: Cell, model: str, sets: Sequence[str] = SETS) -> Array:
        """Which test images a final model gets right."""
        n = (self.cells.get("baseline", model) or {})["n"]
        return np.concatenate([unpack(cell[f"{spec} right"], n) for spec in sets])

    def baseline(self, model: str, sets: Sequence[str] = SETS) -> Array:
        """Which test images the unpruned model gets right."""
        return self.right(self.cells.get("baseline", model) or {}, model, sets)

    def test(
        self, model: str, policy: str, saving: float, recovery: str = "none", seed: int = 0
    ) -> Cell | None:
        """The test cell of a policy's chosen plan."""
        plan = self.plan(model, policy, saving)
        seed = 0 if recovery == "none" else seed
        return self.cells.get("test", model, plan["id"], recovery, seed) if plan else None

    def drop(
        self, model: str, policy: str, saving: float, recovery: str = "none",
        sets: Sequence[str] = SETS[:1],
    ) -> float | None:  # fmt: skip
        """Points lost on the test images, mean over seeds; None where it is not measured."""
        seeds = SEEDS[:1] if recovery == "none" else SEEDS
        cells = [c for s in seeds if (c := self.test(model, policy, saving, recovery, s))]
        if not cells:
            return None
        left = float(np.mean([self.right(cell, model, sets).mean() for cell in cells]))
        return 100 * (float(self.baseline(model, sets).mean()) - left)

    def best_published(
        self, model: str, saving: float, recovery: str = "none"
    ) -> tuple[str, float] | None:
        """The published policy that loses less on the test images, and how much."""
        found = [
            (policy, drop)
            for policy in PUBLISHED
            if (drop := self.drop(model, policy, saving, recovery)) is not None
        ]
        return min(found, key=lambda item: item[1], default=None)

    def crossing(self, model: str, recovery: str = "none") -> float | None:
        """The tested saving where the better published policy's loss is nearest to 3 pp.

        The larger of equally near ones; None where none is within ``NEAR``.
        """
        found = [
            (abs(best[1] - LOSS), -saving)
            for saving in self.savings
            if (best := self.best_published(model, saving, recovery))
        ]
        off, saving = min(found, default=(NEAR + 1, 0.0))
        return -saving if off <= NEAR else None

    def bytes_at_loss(self, model: str, policy: str, recovery: str) -> tuple[float, bool] | None:
        """Remaining fraction of the bytes where 3 pp are lost, linear between measured plans.

        Args:
            model: Which.
            policy: ``optimal``, or ``published``: the better of the two at each saving.
            recovery: Which.

        Returns:
            (fraction, whether 3 pp were lost at all: otherwise it is that of the largest saving).
        """
        points = []
        for saving in self.savings:
            if policy == "published":
                found = self.best_published(model, saving, recovery)
                name, drop = found or ("", None)
            else:
                name, drop = policy, self.drop(model, policy, saving, recovery)
            plan = self.plan(model, name, saving) if drop is not None else None
            if plan and drop is not None:
                points.append((plan["saved"], drop))
        return at_loss(points)


def at_loss(points: Iterable[tuple[float, float]]) -> tuple[float, bool] | None:
    """Remaining fraction of the bytes where ``LOSS`` is first reached.

    Args:
        points: (fraction saved, drop in pp).

    Returns:
        As ``Results.bytes_at_loss``; None without points.
    """
    line = [(0.0, 0.0), *sorted(points)]
    if len(line) == 1:
        return None
    for (s0, d0), (s1, d1) in pairwise(line):
        if d1 >= LOSS:
            return 1 - (s0 + (LOSS - d0) / (d1 - d0) * (s1 - s0)), True
    return 1 - line[-1][0], False


def paired(better: Array, worse: Array) -> tuple[float, float, float]:
    """How much more accurate one model is than another on the same images: pp with interval."""
    counts = (better & worse, better & ~worse, ~better & worse, ~better & ~worse)
    value, low, high = paired_drop_interval(*(int(c.sum()) for c in counts))
    return 100 * value, 100 * low, 100 * high


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


# ---- the parts of the page -------------------------------------------------------------------


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


Points = tuple[float, float, float]  # pp, and their interval
Numbers = tuple[Points, Points, Points]  # published loses, optimal loses, optimal better by
Row = tuple[str, str, Numbers]  # where, on which images, the numbers


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


def holds(lost_there: Points, lost_here: Points, gain: Points) -> bool:
    """Whether ``optimal`` loses at most half, and surely less."""
    return lost_here[0] <= lost_there[0] / 2 and gain[1] > 0


def crossings(r: Results, recovery: str) -> dict[str, float]:
    """The saving where the better published policy loses about 3 pp, by model."""
    found = {model: r.crossing(model, recovery) for model in r.models}
    return {model: saving for model, saving in found.items() if saving is not None}


def compared(r: Results, recovery: str, places: dict[str, float]) -> list[Row]:
    """``optimal`` against the better published policy at these savings, by model, then pooled.

    All seeds of a recovery that both have are pooled.
    """
    rows: list[Row] = []
    parts: dict[str, list[list[Array]]] = {}  # by kind of images: unpruned, published, optimal
    for model, saving in places.items():
        best = r.best_published(model, saving, recovery)
        seeds = [0] if recovery == "none" else SEEDS
        pairs = [
            (other, mine)
            for seed in seeds
            if best
            and (other := r.test(model, best[0], saving, recovery, seed))
            and (mine := r.test(model, "optimal", saving, recovery, seed))
        ]
        if not best or not pairs:
            continue
        for kind, sets in (("clean", SETS[:1]), ("clean + distorted", SETS)):
            base = np.tile(r.baseline(model, sets), len(pairs))
            rights = [
                np.concatenate([r.right(pair[i], model, sets) for pair in pairs]) for i in (0, 1)
            ]
            parts.setdefault(kind, []).append([base, *rights])
            where = f"{model}, {100 * saving:.4g} %, {best[0]}"
            of = f"{len(base)} {kind}" + (f", {len(pairs)} seeds" if len(pairs) > 1 else "")
            rows.append((where, of, _numbers(base, *rights)))
    for kind, models in parts.items():
        if len(models) > 1:
            whole = [np.concatenate([one[i] for one in models]) for i in range(3)]
            rows.append(("pooled", f"{len(whole[0])} {kind}", _numbers(*whole)))
    return rows


def _numbers(base: Array, theirs: Array, ours: Array) -> Numbers:
    return paired(base, theirs), paired(base, ours), paired(ours, theirs)


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


def against_published(r: Results, model: str, saving: float) -> tuple[Points, str] | None:
    """Points by which ``optimal`` is better on all test images, no recovery, and than which."""
    best, mine = r.best_published(model, saving), r.test(model, "optimal", saving)
    if best is None or mine is None:
        return None
    other = r.test(model, best[0], saving)
    assert other is not None
    return paired(r.right(mine, model), r.right(other, model)), best[0]


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


def criteria_means(r: Results) -> dict[str, float]:
    """Mean accuracy on val by criterion, best first: of uniform plans at their better scopes."""
    best: dict[tuple[str, str, float], float] = {}
    for key, cell in r.cells.cells.items():
        kind, *settings = json.loads(key)
        if kind == "criterion" and "right" in cell:
            model, name, saving, _ = settings
            n = (r.cells.get("baseline", model) or {})["val n"]
            place, value = (name, model, saving), float(unpack(cell["right"], n).mean())
            best[place] = max(best.get(place, 0.0), value)
    means = {
        name: float(np.mean([value for place, value in best.items() if place[0] == name]))
        for name in {name for name, _, _ in best}
    }
    return dict(sorted(means.items(), key=lambda item: -item[1]))


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


def tuned(r: Results, model: str, policy: str, saving: float, epochs: float) -> Cell | None:
    """The fine-tuned chosen plan of a policy."""
    plan = r.plan(model, policy, saving)
    return r.cells.get("tuned", model, plan["id"], epochs) if plan else None


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
    head = ("groups", "policy", "target", "CPU (s)")
    return table(head, [[str(row[c]) for c in head] for row in rows if row["groups"] == 120])
