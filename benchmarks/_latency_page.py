"""The section "Latency of pruned networks" of docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

HEADING, NEXT = "## Latency of pruned networks\n", "## Groups and surgery\n"
_INTRODUCTION = (
    "`python benchmarks/latency.py`, on {processor} "
    "({torch}; load average {load:.1f} at the start). "
    "Every channel group loses the same ratio of units, so that at least the share of the bytes in "
    "the heading is saved; `to 8` and `to 16`: kept widths are multiples of that. The networks "
    "of a row run by turns. A ratio is to the unpruned network, of the medians of all runs. "
    "onnxruntime runs some of the plans. Networks with random weights (those at 224 px) have fewer "
    "plans, three runs, and a batch of 32 in torch on all cores only.\n"
)
_CONDITIONS = ("model", "engine", "threads", "batch", "unpruned (ms)")
Row = Mapping[str, Any]
Choice = tuple[float, int]


def section(document: Mapping[str, Any]) -> str:
    """Return the section for a stored result."""
    rows, settings = document["rows"], document["settings"]
    machine = settings["machine"]
    choices = sorted({_choice(row) for row in rows})
    introduction = _INTRODUCTION.format(
        processor=machine["processor"],
        torch=f"torch {machine['torch']}",
        load=settings["load"][0],
    )
    lines = [HEADING, introduction, *_macs_table(rows, choices), ""]
    lines += ["Latency ratios:", "", *_latency_table(rows, choices), ""]
    lines += ["What a saved MAC saves:", "", *_yields(rows), ""]
    lines += [f"{sentence}" for sentence in _roundings(rows)]
    return "\n".join(lines) + "\n"


def _choice(row: Row) -> Choice:
    return row["saving"], row["round to"]


def _title(choice: Choice) -> str:
    saving, step = choice
    return f"{saving:.0%}".replace("%", " %") + (f" to {step}" if step > 1 else "")


def _table(heads: Sequence[str], n_words: int, body: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * n_words + "---:|" * (len(heads) - n_words)]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in body)]


def _macs_table(rows: Sequence[Row], choices: Sequence[Choice]) -> list[str]:
    """Return the table of MAC ratios: they depend on the plan alone."""
    ratios: dict[str, dict[Choice, float]] = {}
    for row in rows:
        ratios.setdefault(row["model"], {})[_choice(row)] = row["MAC ratio"]
    body = [[f"`{model}`", *_cells(found, choices)] for model, found in ratios.items()]
    return _table(["MAC ratio", *map(_title, choices)], 1, body)


def _latency_table(rows: Sequence[Row], choices: Sequence[Choice]) -> list[str]:
    found: dict[tuple[Any, ...], dict[Choice, float]] = {}
    for row in rows:
        key = tuple(row[name] for name in _CONDITIONS)
        found.setdefault(key, {})[_choice(row)] = row["latency ratio"]
    body = [
        [f"`{model}`", engine, str(threads), str(batch), f"{ms:,.1f}", *_cells(ratios, choices)]
        for (model, engine, threads, batch, ms), ratios in found.items()
    ]
    return _table([*_CONDITIONS, *map(_title, choices)], 2, body)


def _cells(ratios: Mapping[Choice, float], choices: Sequence[Choice]) -> list[str]:
    return [f"{ratios[choice]:.2f}" if choice in ratios else "" for choice in choices]


def _yields(rows: Sequence[Row]) -> list[str]:
    """Return the table of the share of time saved for each share of MACs saved, by engine."""
    plain = [row for row in rows if row["round to"] == 1]
    savings = sorted({row["saving"] for row in plain})
    found: dict[tuple[str, int], dict[float, list[float]]] = {}
    for row in plain:
        share = (1 - row["latency ratio"]) / (1 - row["MAC ratio"])
        by_saving = found.setdefault((row["engine"], row["threads"]), {})
        by_saving.setdefault(row["saving"], []).append(share)
    body = [
        [engine, str(threads), *(_spread(by_saving[saving]) for saving in savings)]
        for (engine, threads), by_saving in found.items()
    ]
    heads = [_title((saving, 1)) for saving in savings]
    return _table(["time saved / MACs saved: median, range", "threads", *heads], 1, body)


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f}, {min(values):.2f} to {max(values):.2f}"


def _roundings(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one item for each engine: what widths that are multiples of a number bring."""
    for engine in dict.fromkeys(row["engine"] for row in rows):
        mine = [row for row in rows if row["engine"] == engine]
        for step in sorted({row["round to"] for row in mine} - {1}):
            times = _against_plain(mine, step, lambda row: row["latency ratio"])
            per_mac = _against_plain(
                mine, step, lambda row: row["latency ratio"] / row["MAC ratio"]
            )
            faster = sum(value < 1 for value in times)
            yield (
                f"- {engine}, widths that are multiples of {step}: faster than the plan without "
                f"rounding in {faster} of {len(times)} rows, {median(times):.2f} × its time "
                f"(median), {median(per_mac):.2f} × its time for each MAC."
            )


def _against_plain(rows: Sequence[Row], step: int, value: Callable[[Row], float]) -> list[float]:
    """Return a value of each rounded plan over that of the plan that only lacks the rounding."""

    def key(row: Row) -> tuple[Any, ...]:
        return (*(row[name] for name in _CONDITIONS), row["saving"])

    plain = {key(row): value(row) for row in rows if row["round to"] == 1}
    rounded = [row for row in rows if row["round to"] == step and key(row) in plain]
    return [value(row) / plain[key(row)] for row in rounded]


# ---- predictions -----------------------------------------------------------------------------

TABLE_HEADING, TABLE_NEXT = "## Latency predicted from layers\n", NEXT
_TABLE_INTRODUCTION = (
    "`python benchmarks/latency_table.py`, on {processor} (torch {torch}, 1 thread, one image; "
    "load average {load:.1f} at the start): a plan's time predicted from "
    "[timed layers](latency.md), against that of the pruned network, each divided by that of the "
    "unpruned network. *Uniform* plans prune all groups by one ratio, *random* ones each group by "
    "a ratio of its own. The error is that of the predicted time, relative to the measured one. "
    "Errors at most {most:.1%}, median {middle:.1%}.\n"
)


def table_section(document: Mapping[str, Any]) -> str:
    """Return the section on predictions for a stored result of ``latency_table.py``."""
    rows, settings = document["rows"], document["settings"]
    machine, errors = settings["machine"], [abs(row["error"]) for row in rows]
    introduction = _TABLE_INTRODUCTION.format(
        processor=machine["processor"],
        torch=machine["torch"],
        load=settings["load"][0],
        most=max(errors),
        middle=median(errors),
    )
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    heads = ("model", "table", "unpruned", "between layers", "plan", "MAC ratio", "predicted")
    body = []
    for model, plans in by_model.items():
        for at, row in enumerate(plans):
            once = [
                f"`{model}`",
                f"{row['table (s)']:.0f} s",
                f"{row['unpruned (ms)']:,.1f} ms",
                f"{row['between layers']:.0%}",
            ]
            body.append(
                [
                    *(once if at == 0 else [""] * len(once)),
                    row["plan"],
                    *(f"{row[n]:.2f}" for n in ("MAC ratio", "predicted ratio", "measured ratio")),
                    f"{row['error']:+.1%}",
                ]
            )
    table = _table([*heads, "measured", "error"], 1, body)
    return "\n".join([TABLE_HEADING, introduction, *table]) + "\n"
