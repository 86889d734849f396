"""The command ``picture``: a network's channel groups as SVG, or as data for Model Explorer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from psvit_core.cli.options import add_model_arguments, parse_path
from psvit_core.cli.session import Result, given_options, make_session
from psvit_core.errors import OutputError, PsvitError, RecordError
from psvit_core.files import check_writable, write_text
from psvit_core.picture import (
    THEMES,
    GroupValues,
    bytes_values,
    firing_values,
    network_svg,
    node_data,
    readers_of,
    sensitivity_values,
)
from psvit_core.records import ModelSummary, PrunePlan, SensitivityTable
from psvit_core.tasks.plan import check_swept
from psvit_core.tasks.session import summarize_model
from psvit_core.zoo.cards import shipped_summary

COLOURS = ("bytes", "drop", "kl", "firing", "none")
_SUFFIXES = {"out": ".svg", "node_data": ".json"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(command)
    command.add_argument(
        "--plan", type=parse_path, metavar="F", help="plan whose removed part is hatched"
    )
    command.add_argument(
        "--sweep", type=parse_path, metavar="F", help="sensitivity table written by sweep"
    )
    command.add_argument(
        "--firing", type=parse_path, metavar="F", help="JSON that `evaluate --json` printed"
    )
    command.add_argument(
        "--colour",
        choices=COLOURS,
        help="what colours a group: bytes; drop or kl, of --sweep; firing, of --firing; none "
        "(default: drop with --sweep, firing with --firing, else bytes)",
    )
    command.add_argument(
        "--ratio", type=float, metavar="R", help="prune ratio of --sweep (default: closest to 0.5)"
    )
    command.add_argument(
        "--theme", choices=THEMES, default="auto", help="auto (default) follows the reader's"
    )
    command.add_argument("--title", default="", help="heading of the picture")
    command.add_argument("--out", type=parse_path, metavar="F", help=".svg file")
    command.add_argument(
        "--node-data",
        type=parse_path,
        metavar="F",
        help=".json file with the values as node data for Google's Model Explorer, over the .pt2 "
        "file that `export --batch 1` writes",
    )
    command.add_argument(
        "--graph",
        type=parse_path,
        metavar="F",
        help="with --node-data: that .pt2 file, so that its operations have values, too (default: "
        "only parameters)",
    )


def picture(options: argparse.Namespace) -> tuple[Result, str]:
    """Draw a model's channel groups, or write their values for Model Explorer."""
    _check_options(options)
    plan = PrunePlan.load(options.plan) if options.plan else None
    table = SensitivityTable.load(options.sweep) if options.sweep else None
    firing = _read_firing(options.firing) if options.firing else None
    summary = _summary(options)
    if table is not None:
        check_swept(table, summary)
    values = _values(options, summary, table, firing)
    written: dict[str, str | None] = {"out": None, "node_data": None}
    if options.out:
        svg = network_svg(summary, plan, values, options.title, theme=options.theme)
        written["out"] = str(write_text(options.out, svg))
    if options.node_data:
        assert values is not None
        readers = readers_of(options.graph) if options.graph else None
        text = json.dumps(node_data(summary, values, readers), indent=1)
        written["node_data"] = str(write_text(options.node_data, text + "\n"))
    shown = "without colours" if values is None else f"coloured by: {values.name}"
    result = {
        "model": summary.model,
        "groups": len(summary.groups),
        "colour": options.colour,
        "values": dict(values.by_group) if values is not None else None,
        **written,
    }
    files = " and ".join(path for path in written.values() if path)
    return result, f"{files}: {len(summary.groups)} channel groups, {shown}"


def _check_options(options: argparse.Namespace) -> None:
    """Complete and check the options before anything is read.

    Raises:
        OutputError: If nothing is to be written, or a file cannot be.
        PsvitError: If an option lacks the file that it needs.
    """
    if not options.out and not options.node_data:
        raise OutputError("Nothing to write. Give --out F.svg, --node-data F.json or both.")
    for name, suffix in _SUFFIXES.items():
        path = getattr(options, name)
        if path and Path(path).suffix != suffix:
            raise OutputError(
                f"--{name.replace('_', '-')} writes a {suffix} file; got {str(path)!r:.80}. "
                f"Use for example {Path(path).stem or 'network'}{suffix}."
            )
        if path:
            check_writable(path)
    default = "drop" if options.sweep else "firing" if options.firing else "bytes"
    options.colour = options.colour or default
    needed = {"drop": "sweep", "kl": "sweep", "firing": "firing"}.get(options.colour)
    if needed and not getattr(options, needed):
        raise PsvitError(
            f"--colour {options.colour} needs --{needed} F. Give it, or omit --colour."
        )
    if options.colour == "none" and options.node_data:
        raise PsvitError("--node-data writes values; --colour none has none. Choose another.")
    if options.graph and not options.node_data:
        raise PsvitError("--graph is for --node-data F. Give it, or omit --graph.")
    if options.ratio is not None and options.colour not in ("drop", "kl"):
        raise PsvitError(
            "--ratio is one of the prune ratios of --sweep F. Give --sweep, or omit it."
        )


def _summary(options: argparse.Namespace) -> ModelSummary:
    """Return the model's summary, without reading weights where one is shipped."""
    if not given_options(options) and (shipped := shipped_summary(options.model)):
        return shipped
    return summarize_model(make_session(options))


def _values(
    options: argparse.Namespace,
    summary: ModelSummary,
    table: SensitivityTable | None,
    firing: dict[str, float] | None,
) -> GroupValues | None:
    if options.colour == "none":
        return None
    if options.colour == "firing" and firing is not None:
        values = firing_values(summary, firing)
        if not values.by_group:
            raise RecordError(
                f"{options.firing} has firing rates of no layer of {summary.model}. Give the JSON "
                "that `evaluate --json` printed for this model."
            )
        return values
    if options.colour in ("drop", "kl") and table is not None:
        return sensitivity_values(table.rows, options.ratio, options.colour)
    return bytes_values(summary)


def _read_firing(path: str) -> dict[str, float]:
    """Return the firing rates of a measurement's JSON.

    Raises:
        RecordError: If the file is no such JSON.
    """
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        return {str(name): float(rate) for name, rate in data["firing"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path} is not a measurement with firing rates ({type(error).__name__}). Give the "
            "JSON that `psvit evaluate --json` printed."
        ) from error
