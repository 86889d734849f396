"""The commands, their arguments and how argument values are read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psvit_core.cli import (
    app,
    cache,
    export,
    fits,
    jobs,
    latency,
    main_commands,
    other_commands,
    picture,
    quantize,
    report,
    train,
    writing,
)
from psvit_core.cli.options import (
    add_calib_arguments,
    add_condition_argument,
    add_data_argument,
    add_data_arguments,
    add_engine_arguments,
    add_entry_arguments,
    add_model_arguments,
    add_plugin_argument,
    add_round_to_argument,
    add_target_arguments,
    format_ratios,
    parse_bound,
    parse_bytes,
    parse_lock,
    parse_names,
    parse_path,
    parse_ratios,
)
from psvit_core.metrics.energy import ENERGY_MODELS
from psvit_core.records import (
    DEFAULT_BUDGET,
    DEFAULT_RATIOS,
    DEFAULT_SAVINGS,
    POLICIES,
    RECOVERIES,
    SCOPES,
)

_APP = "open the browser app on this machine"

AddCommand = Callable[..., argparse.ArgumentParser]


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, like all other errors."""

    #: Option that takes all arguments this parser does not know; None refuses them.
    unknown_to: str | None = None

    def error(self, message: str) -> Any:
        self.exit(2, f"psvit: {message}. See {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = super().parse_known_args(args, namespace)
        if self.unknown_to is None:
            return options, unknown
        setattr(options, self.unknown_to, [word for word in unknown if word != "--"])
        return options, []


def make_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands; its results have the function to call as ``command``."""
    parser = _Parser(prog=_program(), description=description)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        return command

    _add_main_commands(add)
    _add_link_commands(add)
    _add_other_commands(add)
    _app_arguments(subparsers.add_parser("app", help=_APP, description=_APP))
    return parser


def _program() -> str:
    """Return the command as it was typed: the console script, or the module in a checkout."""
    return "python -m psvit_core" if Path(sys.argv[0]).name == "__main__.py" else "psvit"


def _add_main_commands(add: AddCommand) -> None:
    add_plugin_argument(add("models", main_commands.models, "list the registered models"))
    add_model_arguments(add("groups", main_commands.groups, "list a model's channel groups"))
    _evaluate_arguments(add("evaluate", main_commands.evaluate, "measure a model"))
    _sweep_arguments(
        add("sweep", main_commands.sweep, "measure every group at every prune ratio; can resume")
    )
    _plan_arguments(
        add(
            "plan", main_commands.plan, "choose a plan; with MODEL, measure candidates and the plan"
        )
    )
    _pareto_arguments(
        add("pareto", main_commands.pareto, "measure policies x targets and the front; can resume")
    )
    writing.add_prune_arguments(
        add("prune", writing.prune, "prune a model by a plan and write the checkpoint")
    )
    writing.add_finetune_arguments(
        add("finetune", writing.finetune, "train a pruned model; can resume")
    )
    train.add_commands(add)
    quantize.add_arguments(
        add("quantize", quantize.quantize, "write a model with weights in fewer bits")
    )
    export.add_arguments(
        add("export", export.export, "write a model that runs without this program")
    )
    fits.add_arguments(add("fits", fits.fits, "compare a model's bytes with devices"))
    latency.add_arguments(
        add("latency", latency.latency, "time a model's layers, to predict plans' latencies")
    )
    report.add_arguments(add("report", report.report, "write a run as one HTML page"))
    picture.add_arguments(add("picture", picture.picture, "draw a model's channel groups as SVG"))


def _app_arguments(command: _Parser) -> None:
    command.usage = "%(prog)s [-h] [--port N] [--devices LIST] [--engine NAME] [ARGUMENT ...]"
    command.epilog = (
        "Other arguments go to `streamlit run` unchanged, for example --server.headless true."
    )
    command.unknown_to = "streamlit"
    command.set_defaults(command=app.run_app)
    command.add_argument("--port", type=int, metavar="N", help="port to listen on (default 8501)")
    command.add_argument(
        "--devices",
        metavar="LIST",
        help="devices that background jobs use at once, such as cuda:0,cuda:1 (default: "
        "$PSVIT_DEVICES, else cpu)",
    )
    add_engine_arguments(command)


# ---- the main commands -----------------------------------------------------------------------


def _evaluate_arguments(command: argparse.ArgumentParser) -> None:
    add_model_arguments(command)
    add_data_arguments(command)
    command.add_argument(
        "--plan", type=parse_path, metavar="F", help="measure MODEL pruned by this plan"
    )
    add_condition_argument(command)
    command.add_argument(
        "--profile",
        action="store_true",
        help="also measure run-time memory and latency on this machine",
    )
    command.add_argument(
        "--energy",
        default=next(iter(ENERGY_MODELS)),
        metavar="NAME",
        help=f"energy model: {', '.join(ENERGY_MODELS)} (default {next(iter(ENERGY_MODELS))})",
    )
    command.add_argument(
        "--energy-mac", type=float, metavar="PJ", help="pJ per MAC, instead of the energy model's"
    )
    command.add_argument(
        "--energy-ac",
        type=float,
        metavar="PJ",
        help="pJ per accumulate, instead of the energy model's",
    )
    command.add_argument(
        "--energy-byte",
        type=float,
        metavar="PJ",
        help="pJ per byte of memory access, instead of the energy model's; 0: arithmetic only",
    )


def _sweep_arguments(command: argparse.ArgumentParser) -> None:
    add_model_arguments(command)
    add_data_arguments(command)
    add_engine_arguments(command)
    command.add_argument(
        "--ratios",
        type=parse_ratios,
        default=DEFAULT_RATIOS,
        help=f"fractions to remove (default {format_ratios(DEFAULT_RATIOS)})",
    )
    command.add_argument(
        "--criterion",
        metavar="NAME",
        help="ranks a group's units by weights (l1, l2, l2_group, fpgm, bn_scale), by calibration "
        "images (firing_rate, activation_weight, taylor, reconstruction), or randomly (random); "
        "default: reconstruction, or l2_group if the data has no calibration images",
    )
    command.add_argument(
        "--calib-images",
        type=int,
        default=256,
        metavar="N",
        help="calibration images for criteria that need them (default 256)",
    )
    command.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="0 calibrates on the calib split (default); others draw from the training split",
    )
    command.add_argument(
        "--mode",
        default="exact",
        help="exact runs all images in every cell (default); progressive runs 64, then more in "
        "cells with wide intervals",
    )
    command.add_argument(
        "--memory-budget",
        type=parse_bytes,
        metavar="SIZE",
        help="memory for intermediate values, e.g. 256MB or 2GB (default: a quarter of the free "
        "memory)",
    )
    add_condition_argument(command)
    command.add_argument(
        "--out", required=True, type=parse_path, metavar="F", help="JSON file for the table"
    )


def _plan_arguments(command: argparse.ArgumentParser) -> None:
    add_model_arguments(command, optional=True)
    add_data_arguments(command, limit=False)
    command.add_argument(
        "--sweep", required=True, type=parse_path, metavar="F", help="table written by sweep"
    )
    command.add_argument("--policy", default="psvit", help=f"{', '.join(POLICIES)} (default psvit)")
    add_target_arguments(command)
    command.add_argument(
        "--lock",
        type=parse_lock,
        action="append",
        default=[],
        metavar="GROUP[=RATIO]",
        help="fix a group's prune ratio (default 0: not pruned); repeatable",
    )
    command.add_argument(
        "--bound",
        type=parse_bound,
        action="append",
        default=[],
        metavar="GROUP=LOW:HIGH",
        help="smallest and largest prune ratio of a group; repeatable",
    )
    command.add_argument(
        "--budget-evaluations",
        type=int,
        default=DEFAULT_BUDGET,
        metavar="N",
        help=f"measure at most N plans per scope while planning (default {DEFAULT_BUDGET})",
    )
    command.add_argument(
        "--budget-seconds",
        type=float,
        metavar="S",
        help="measure no further plan after S seconds (default: no limit)",
    )
    command.add_argument(
        "--scope", default="all", help=f"groups to prune: {', '.join(SCOPES)} (default all)"
    )
    add_round_to_argument(command)
    command.add_argument(
        "--measure", type=int, metavar="N", help="measure on N images (default all)"
    )
    add_condition_argument(command)
    command.add_argument(
        "--out", required=True, type=parse_path, metavar="F", help="JSON file for the plan"
    )


def _pareto_arguments(command: argparse.ArgumentParser) -> None:
    add_model_arguments(command)
    add_data_arguments(command)
    add_engine_arguments(command)
    command.add_argument(
        "--policies", type=parse_names, help=f"{', '.join(POLICIES)} (default all)"
    )
    command.add_argument(
        "--savings",
        type=parse_ratios,
        default=DEFAULT_SAVINGS,
        help=f"memory savings as targets (default {format_ratios(DEFAULT_SAVINGS)})",
    )
    command.add_argument(
        "--max-drops", type=parse_ratios, default=(), help="accuracy drops as targets"
    )
    command.add_argument(
        "--scope", type=parse_names, default=("all",), help=f"{', '.join(SCOPES)} (default all)"
    )
    command.add_argument(
        "--recovery",
        "--recover",
        dest="recover",
        type=parse_names,
        metavar="METHOD",
        help=f"recovery of every plan: {', '.join(RECOVERIES)} (default auto; none without "
        "calibration images); of several, each is measured, and planning uses none",
    )
    add_calib_arguments(command)
    command.add_argument(
        "--sweep",
        type=parse_path,
        metavar="F",
        help="table written by sweep (default: run a sweep first)",
    )
    command.add_argument(
        "--ratios", type=parse_ratios, default=DEFAULT_RATIOS, help="prune ratios of that sweep"
    )
    command.add_argument(
        "--criterion", metavar="NAME", help="criterion of that sweep (default as for sweep)"
    )
    add_round_to_argument(command)
    command.add_argument(
        "--profile", action="store_true", help="also measure run-time memory and latency"
    )
    command.add_argument(
        "--all", action="store_true", help="also write plans that were tried but not chosen"
    )
    command.add_argument("--csv", type=parse_path, metavar="F", help="also write a CSV table")
    command.add_argument(
        "--out", required=True, type=parse_path, metavar="F", help="JSON file for the archive"
    )


# ---- links, files, jobs ----------------------------------------------------------------------


def _add_link_commands(add: AddCommand) -> None:
    link = add("link", other_commands.link, "print a link that opens a plan in the app")
    link.add_argument("plan", type=parse_path, metavar="PLAN", help="plan file")
    add_model_arguments(link, optional=True)
    link.add_argument(
        "--url",
        default=other_commands.URL,
        help=f"address of the app (default {other_commands.URL})",
    )

    open_link = add("open-link", other_commands.open_link, "write the plan of a link to a file")
    open_link.add_argument("link", metavar="LINK", help="a link, or its plan=TEXT alone")
    add_model_arguments(open_link, optional=True)
    open_link.add_argument(
        "--out", required=True, type=parse_path, metavar="F", help="JSON file for the plan"
    )


def _add_other_commands(add: AddCommand) -> None:
    compare = add(
        "compare", other_commands.compare, "compare plans; with --data, measure them by class"
    )
    add_model_arguments(compare)
    add_data_arguments(compare)
    compare.add_argument("plans", type=parse_path, metavar="PLAN", nargs="+", help="plan files")
    compare.add_argument(
        "--sweep",
        type=parse_path,
        metavar="F",
        help="table written by sweep, to predict accuracy drops",
    )

    inspect = add(
        "inspect", other_commands.inspect, "show a checkpoint's contents and the models it fits"
    )
    inspect.add_argument("file", type=parse_path, metavar="FILE", help="checkpoint file")
    add_entry_arguments(inspect)
    add_plugin_argument(inspect)

    check = add(
        "check-data", other_commands.check_data, "count the images of each split and decode some"
    )
    add_model_arguments(check)
    add_data_argument(check)

    cache.add_arguments(add("cache", cache.cache, "show, check or clear the store of results"))
    jobs.add_arguments(add("jobs", jobs.jobs, "follow, order, cancel and resume background jobs"))
