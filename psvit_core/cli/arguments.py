"""What can be typed: commands, their arguments, and the values of these."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from psvit_core.cli import around, commands
from psvit_core.errors import DataError, InvalidRatioError
from psvit_core.jobs.fronts import DEFAULT_SAVINGS
from psvit_core.metrics.energy import ENERGY_MODELS
from psvit_core.planners import DEFAULT_BUDGET, POLICIES, RESOURCES, SCOPES
from psvit_core.records import RECOVERIES, FinetuneSettings
from psvit_core.sensitivity.table import DEFAULT_RATIOS

_LOG_LINES = 60


class _Parser(argparse.ArgumentParser):
    """Ends with one line, as all other errors."""

    def error(self, message: str) -> Any:
        self.exit(2, f"psvit: {message}. See {self.prog} --help\n")


def make_parser(description: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; parsed options hold the function to call as ``command``."""
    parser = _Parser(prog="python -m psvit_core", description=description)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        return command

    _plugin_argument(add("models", commands.models, "list the registered models"))
    _model_arguments(add("groups", commands.groups, "list a model's channel groups"))

    _evaluate_arguments(add("evaluate", commands.evaluate, "measure a model"))
    _sweep_arguments(
        add("sweep", commands.sweep, "measure every group at every prune ratio; resumes")
    )
    _plan_arguments(
        add("plan", commands.plan, "choose what to prune; with MODEL and --data, measured")
    )
    _pareto_arguments(
        add("pareto", commands.pareto, "measure policies x targets and keep the front; resumes")
    )
    _prune_arguments(add("prune", commands.prune, "apply a plan and write the pruned checkpoint"))
    _finetune_arguments(add("finetune", commands.finetune, "train a pruned model further; resumes"))
    _around_arguments(add)
    return parser


def _evaluate_arguments(command: argparse.ArgumentParser) -> None:
    _model_arguments(command)
    _data_arguments(command)
    command.add_argument(
        "--profile", action="store_true", help="also run-time memory and latency on this machine"
    )
    command.add_argument(
        "--energy", default=next(iter(ENERGY_MODELS)), metavar="NAME",
        help=f"energy model: {', '.join(ENERGY_MODELS)}",
    )  # fmt: skip
    command.add_argument("--energy-mac", type=float, metavar="PJ", help="pJ an MAC, instead")
    command.add_argument("--energy-ac", type=float, metavar="PJ", help="pJ an accumulate, instead")


def _sweep_arguments(command: argparse.ArgumentParser) -> None:
    _model_arguments(command)
    _data_arguments(command)
    command.add_argument(
        "--ratios", type=_ratios, default=DEFAULT_RATIOS, help="fractions removed, e.g. 0.25,0.5"
    )
    command.add_argument(
        "--criterion",
        metavar="NAME",
        help="what ranks a group's units; by weights: l1, l2, l2_group, fpgm, bn_scale; by "
        "calibration images: firing_rate, activation_weight, taylor, reconstruction; or random "
        "(default: reconstruction, or l2_group where the data has no calibration images)",
    )
    command.add_argument(
        "--calib-images", type=int, default=256, metavar="N", help="for criteria that need images"
    )
    command.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="0: calibrate on the calib split; others: on images drawn from the training split",
    )
    command.add_argument(
        "--mode",
        default="exact",
        help="exact: every image in every cell; progressive: 64 images in every cell, then more "
        "where little is known",
    )
    command.add_argument(
        "--memory-budget",
        type=_bytes,
        metavar="SIZE",
        help="for what is computed at one time, e.g. 256MB or 2GB (default: a quarter of the free)",
    )
    command.add_argument("--out", required=True, help="JSON file for the table")


def _plan_arguments(command: argparse.ArgumentParser) -> None:
    _model_arguments(command, optional=True)
    _data_arguments(command, limit=False)
    command.add_argument("--sweep", required=True, help="table written by sweep")
    command.add_argument("--policy", default="psvit", help=f"one of {', '.join(POLICIES)}")
    target = command.add_mutually_exclusive_group(required=True)
    target.add_argument("--memory-saving", type=float, help="fraction of bytes to save, e.g. 0.224")
    target.add_argument("--max-drop", type=float, help="accuracy drop allowed, e.g. 0.03")
    target.add_argument("--saving", type=float, help="fraction of --resource to save")
    command.add_argument("--resource", default="memory", help=f"one of {', '.join(RESOURCES)}")
    command.add_argument(
        "--lock", type=_lock, action="append", default=[], metavar="GROUP[=RATIO]",
        help="keep a group at this prune ratio (0: whole); repeatable",
    )  # fmt: skip
    command.add_argument(
        "--bound", type=_bound, action="append", default=[], metavar="GROUP=LOW:HIGH",
        help="least and largest prune ratio of a group; repeatable",
    )  # fmt: skip
    command.add_argument(
        "--budget-evaluations", type=int, default=DEFAULT_BUDGET, metavar="N",
        help=f"most plans that optimal measures in a scope (default {DEFAULT_BUDGET})",
    )  # fmt: skip
    command.add_argument("--scope", default="all", help=f"groups to prune: {', '.join(SCOPES)}")
    command.add_argument("--round-to", type=int, default=1, help="keep widths at multiples")
    command.add_argument(
        "--measure", type=int, metavar="N", help="measure on N images (default all)"
    )
    command.add_argument("--out", required=True, help="JSON file for the plan")


def _pareto_arguments(command: argparse.ArgumentParser) -> None:
    _model_arguments(command)
    _data_arguments(command)
    command.add_argument("--policies", type=_names, help=f"of {', '.join(POLICIES)} (all)")
    command.add_argument("--savings", type=_ratios, default=DEFAULT_SAVINGS, help="memory savings")
    command.add_argument("--max-drops", type=_ratios, default=(), help="accuracy drops as targets")
    command.add_argument("--scope", type=_names, default=("all",), help=f"of {', '.join(SCOPES)}")
    command.add_argument(
        "--recovery", "--recover", dest="recover", type=_names, default=("none",),
        help=f"of every chosen plan, besides itself: {', '.join(RECOVERIES)}",
    )  # fmt: skip
    _calib_arguments(command)
    command.add_argument("--sweep", help="table written by sweep; swept now where not given")
    command.add_argument("--ratios", type=_ratios, default=DEFAULT_RATIOS, help="of that sweep")
    command.add_argument("--criterion", metavar="NAME", help="of that sweep; default as of sweep")
    command.add_argument("--round-to", type=int, default=1, help="keep widths at multiples")
    command.add_argument("--profile", action="store_true", help="also latency and memory here")
    command.add_argument("--all", action="store_true", help="write also plans tried on the way")
    command.add_argument("--csv", metavar="F", help="also a table for spreadsheets")
    command.add_argument("--out", required=True, help="JSON file for the archive")


def _prune_arguments(command: argparse.ArgumentParser) -> None:
    _model_arguments(command)
    _data_arguments(command)
    _recovery_arguments(command)
    command.add_argument("--plan", required=True, help="plan written by plan")
    command.add_argument("--out", required=True, help=".safetensors file for the pruned model")


def _around_arguments(add: Callable[..., argparse.ArgumentParser]) -> None:
    link = add("link", around.link, "a plan as a link that opens it in the app")
    link.add_argument("plan", metavar="PLAN", help="plan file")
    _model_arguments(link, optional=True)
    link.add_argument(
        "--url", default=around.URL, help=f"address of the app (default {around.URL})"
    )

    open_link = add("open-link", around.open_link, "the plan of a link as a file")
    open_link.add_argument("link", metavar="LINK", help="a link, or its plan=TEXT alone")
    _model_arguments(open_link, optional=True)
    open_link.add_argument("--out", required=True, help="JSON file for the plan")

    compare = add("compare", around.compare, "plans side by side; with --data measured, by class")
    _model_arguments(compare)
    _data_arguments(compare)
    compare.add_argument("plans", metavar="PLAN", nargs="+", help="plan files")
    compare.add_argument("--sweep", help="table written by sweep, for predicted drops")

    inspect = add("inspect", around.inspect, "what a checkpoint file holds, and as what it opens")
    inspect.add_argument("file", metavar="FILE")

    check = add("check-data", around.check_data, "count a model's images and look at some")
    _model_arguments(check)
    _data_argument(check)

    jobs = add("jobs", around.jobs, "the app's background work: list, cancel, stop, resume, log")
    jobs.add_argument("action", choices=(*around.ACTIONS, "list", "log"), metavar="ACTION")
    jobs.add_argument("job", metavar="ID", nargs="?", help="for cancel, stop and resume")
    jobs.add_argument("--device", default="cpu", help="whose log (default cpu)")
    jobs.add_argument("--lines", type=int, default=_LOG_LINES, help=f"of it (last {_LOG_LINES})")


def _finetune_arguments(command: argparse.ArgumentParser) -> None:
    _model_arguments(command)
    _data_arguments(command, batch=f"{FinetuneSettings().batch}, of the training")
    command.add_argument("--plan", metavar="F", help="prune MODEL by this plan first")
    _recovery_arguments(command)
    command.add_argument("--out", required=True, help=".safetensors file for the best epoch")
    default = FinetuneSettings()

    def add(name: str, kind: type, text: str) -> None:
        value = getattr(default, name)
        shown = "" if value is None else f" (default {value})"
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{text}{shown}")

    add("epochs", float, "a fraction is that fraction of an epoch's steps")
    add("lr", float, "largest learning rate")
    add("accumulate", int, "steps whose gradients are added up for one update")
    add("weight_decay", float, "of all but biases and BatchNorms")
    add("warmup", float, "fraction of the updates over which the learning rate rises")
    add("clip", float, "largest norm of the gradient; 0: any")
    add("label_smoothing", float, "of the labels")
    add("augment", str, "auto, affine, flip or none")
    add("mixup", float, "alpha of mixup; 0: off")
    add("erase", float, "probability of random erasing")
    add("alpha", float, "weight of the distillation")
    add("temperature", float, "of the distillation")
    add("patience", int, "stop after so many epochs without a better validation accuracy")
    add("train_images", int, "train on a stratified subset")
    command.add_argument(
        "--distil-from",
        dest="teacher",
        metavar="MODEL",
        help="a model's name or file, none, or original (default) where its weights are here",
    )
    command.add_argument(
        "--distil-checkpoint", dest="teacher_checkpoint", metavar="F", help="weights of that name"
    )
    command.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on after the last epoch of a stopped training with the same settings",
    )


def _recovery_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--recover",
        default="none",
        help=f"after pruning, without training: {', '.join(RECOVERIES)} (default none)",
    )
    _calib_arguments(command)


def _calib_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--calib-images", type=int, default=256, metavar="N", help="training images that it takes"
    )
    command.add_argument("--seed", type=int, default=0, help="chooses those images (default 0)")


def _plugin_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--plugin",
        metavar="MODULE_OR_FILE",
        help="your Python module or .py file that registers a model of your own; it is run",
    )


def _model_arguments(command: argparse.ArgumentParser, optional: bool = False) -> None:
    _plugin_argument(command)
    command.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if optional else None,
        help="registered name, or a pruned .safetensors",
    )
    command.add_argument("--checkpoint", metavar="F", help="weights for a registered name")
    command.add_argument("--ema", action="store_true", help="take the file's moving average")
    command.add_argument("--num-heads", type=int, metavar="H", help="where not the card's")
    command.add_argument("--image-size", type=int, metavar="PX", help="side, where not the card's")


def _data_arguments(
    command: argparse.ArgumentParser, limit: bool = True, batch: str = "the model card's"
) -> None:
    _data_argument(command)
    command.add_argument("--split", default="val", help="train, calib, val (default) or test")
    if limit:
        command.add_argument("--limit", type=int, metavar="N", help="a stratified subset")
    command.add_argument("--batch", type=int, metavar="B", help=f"default: {batch}")
    command.add_argument("--precision", default="float32", help="float32, float64 or autocast")
    command.add_argument("--time-steps", type=int, metavar="T")
    command.add_argument("--device", default="cpu", metavar="D", help="cpu or cuda")
    command.add_argument("--workers", type=int, default=0, metavar="N", help="decoding processes")
    command.add_argument(
        "--bad-images", default="stop", metavar="WAY", help="stop (default) or skip unreadable ones"
    )


def _data_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", metavar="SPEC", help="digits[:distorted], (cifar10|folder|imagenet):DIR, npz:FILE"
    )


def _bytes(text: str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise DataError(f"--memory-budget is a size such as 256MB or 2GB; got {text!r}.")
    return size


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidRatioError(
            f"Ratios and targets are lists of fractions, such as 0.25,0.5; got {text!r}."
        ) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _lock(text: str) -> tuple[str, float]:
    group, _, ratio = text.partition("=")
    try:
        return group, float(ratio or 0)
    except ValueError:
        raise InvalidRatioError(
            f"--lock is GROUP or GROUP=RATIO, such as block.0.mlp.hidden=0.25; got {text!r}."
        ) from None


def _bound(text: str) -> tuple[str, tuple[float, float]]:
    group, _, limits = text.partition("=")
    low, _, high = limits.partition(":")
    try:
        return group, (float(low), float(high))
    except ValueError:
        raise InvalidRatioError(
            f"--bound is GROUP=LOW:HIGH, such as block.0.mlp.hidden=0.1:0.5; got {text!r}."
        ) from None
