"""Arguments that several commands share, and parsers of their values."""

from __future__ import annotations

import argparse
from dataclasses import replace

from psvit_core.cluster.settings import ENGINES, EngineSettings
from psvit_core.errors import DataError, InvalidRatioError
from psvit_core.files import expand, expand_spec
from psvit_core.records import RECOVERIES, RESOURCES


def add_recovery_arguments(command: argparse.ArgumentParser) -> None:
    """Add how a pruned model is recovered."""
    command.add_argument(
        "--recover",
        help=f"recovery without training after pruning: {', '.join(RECOVERIES)} (default auto; "
        "none without calibration images)",
    )
    add_calib_arguments(command)


def add_condition_argument(command: argparse.ArgumentParser) -> None:
    """Add the recovery that numbers of pruned models include."""
    command.add_argument(
        "--recover",
        metavar="METHOD",
        help="recover without training before a pruned model is measured: "
        f"{', '.join(RECOVERIES)} (default auto; none without calibration images)",
    )


def add_calib_arguments(command: argparse.ArgumentParser) -> None:
    """Add which calibration images are used."""
    command.add_argument(
        "--calib-images",
        type=int,
        default=256,
        metavar="N",
        help="calibration images for the recovery (default 256)",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="seed that selects these images (default 0)"
    )


def add_round_to_argument(command: argparse.ArgumentParser) -> None:
    """Add the multiple that widths are kept at."""
    command.add_argument(
        "--round-to",
        type=int,
        default=1,
        metavar="N",
        help="round kept widths up to multiples of N (default 1)",
    )


def add_plugin_argument(command: argparse.ArgumentParser) -> None:
    """Add the file that registers custom models."""
    command.add_argument(
        "--plugin",
        type=parse_path,
        metavar="MODULE_OR_FILE",
        help="Python module or .py file that registers custom models; its code is run",
    )


def add_model_arguments(command: argparse.ArgumentParser, optional: bool = False) -> None:
    """Add the model, its weights and how it runs."""
    add_plugin_argument(command)
    command.add_argument(
        "model",
        metavar="MODEL",
        type=parse_path,
        nargs="?" if optional else None,
        help="registered name, pruned .safetensors file, or a checkpoint of any size",
    )
    command.add_argument(
        "--checkpoint", type=parse_path, metavar="F", help="weights for a registered name"
    )
    add_entry_arguments(command)
    command.add_argument(
        "--num-heads", type=int, metavar="H", help="attention heads (default: the model card's)"
    )
    command.add_argument(
        "--image-size", type=int, metavar="PX", help="side in pixels (default: the model card's)"
    )
    command.add_argument(
        "--time-steps", type=int, metavar="T", help="simulation steps (default: the model's)"
    )
    _add_size_arguments(command)


def add_entry_arguments(command: argparse.ArgumentParser) -> None:
    """Add the choice among the weights in a checkpoint."""
    command.add_argument(
        "--ema", action="store_true", help="load the checkpoint's moving average of the weights"
    )
    command.add_argument(
        "--entry", metavar="NAME", help="state dict to load, if the checkpoint contains several"
    )


def _add_size_arguments(command: argparse.ArgumentParser) -> None:
    """Add what a checkpoint of a size that is not registered may need."""
    group = command.add_argument_group(
        "checkpoints of any size",
        "Arguments that the tensors do not reveal; `inspect` lists which ones a file needs.",
    )
    group.add_argument("--family", metavar="NAME", help="if several families have these tensors")
    group.add_argument(
        "--pooling-stat", metavar="BITS", help="stem stages that halve the resolution, e.g. 0011"
    )
    group.add_argument(
        "--batch-coupled",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the images of a batch influence each other (QKFormer)",
    )
    group.add_argument("--chunk-size", type=int, metavar="N", help="time steps per chunk (STAtten)")
    group.add_argument(
        "--levels", type=int, metavar="D", help="levels of the integer neuron (E-SpikeFormer Large)"
    )


def add_data_arguments(
    command: argparse.ArgumentParser, limit: bool = True, batch: str = "the model card's"
) -> None:
    """Add the images and how they are read."""
    add_data_argument(command)
    command.add_argument("--split", default="val", help="train, calib, val (default) or test")
    if limit:
        command.add_argument(
            "--limit", type=int, metavar="N", help="use a stratified subset of N images"
        )
    command.add_argument("--batch", type=int, metavar="B", help=f"batch size (default: {batch})")
    command.add_argument(
        "--precision",
        default="float32",
        help="float32 (default), float64, bfloat16 or, on CUDA, autocast (float16); results in the "
        "last two say how often predictions are those of float32",
    )
    command.add_argument("--device", default="cpu", metavar="D", help="cpu (default) or cuda")
    command.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="number of extra processes that decode images (default 0)",
    )
    command.add_argument(
        "--bad-images",
        default="stop",
        metavar="ACTION",
        help="stop at an unreadable image (default), or skip it",
    )


def add_engine_arguments(command: argparse.ArgumentParser) -> None:
    """Add where the work is done: in this process, or on a Ray cluster."""
    group = command.add_argument_group(
        "a cluster",
        "Results equal those of the local engine, except for the last digits of trainings and "
        "recoveries; docs/cluster.md says what runs where.",
    )
    group.add_argument(
        "--engine", metavar="NAME", help=f"where the work is done: {', '.join(ENGINES)}"
    )
    group.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="a running Ray cluster (default: Ray on this machine, for this command)",
    )
    group.add_argument(
        "--ray-gpus", type=float, metavar="N", help="GPUs of one worker, e.g. 0.5 (default 1)"
    )
    group.add_argument(
        "--ray-workers",
        type=int,
        metavar="N",
        help="number of workers (default: as many as the GPUs allow, or one per CPU core)",
    )


def chosen_engine(options: argparse.Namespace, default: EngineSettings) -> EngineSettings:
    """Return the engine that a command's options choose; what they leave open is the default's.

    An option about Ray chooses the engine ray unless ``--engine`` says otherwise.

    Raises:
        UnknownNameError: If there is no such engine.
        ClusterError: If a number is not possible.
    """
    asked = {name: getattr(options, f"ray_{name}", None) for name in ("address", "gpus", "workers")}
    given = {name: value for name, value in asked.items() if value is not None}
    name = getattr(options, "engine", None) or ("ray" if given else default.name)
    return replace(default, name=name, **given)


def add_data_argument(command: argparse.ArgumentParser) -> None:
    """Add the data specification."""
    command.add_argument(
        "--data",
        type=expand_spec,
        metavar="SPEC",
        help="digits[:distorted], cifar10[:DIR], cifar10-jpeg:DIR, folder:DIR, imagenet:DIR or "
        "npz:FILE (default: the model card's)",
    )
    add_download_argument(command)


def add_download_argument(command: argparse.ArgumentParser) -> None:
    """Add the agreement to a download of CIFAR-10."""
    command.add_argument(
        "--download",
        action="store_true",
        help="download CIFAR-10 for --data cifar10 if it is missing, without a question",
    )


def add_target_arguments(command: argparse.ArgumentParser) -> None:
    """Add the limits of a plan; they hold together."""
    command.add_argument(
        "--memory-saving", type=float, help="fraction of bytes to save at least, e.g. 0.224"
    )
    command.add_argument(
        "--max-drop",
        type=parse_drop,
        help="accuracy drop allowed: a fraction such as 0.03, or points from 1 up such as 3; "
        "alone, the plan saves as much as possible",
    )
    command.add_argument(
        "--saving",
        type=parse_saving,
        action="append",
        default=[],
        metavar="[RESOURCE=]SAVING",
        help="fraction of a resource to save at least, e.g. energy=0.3 (default resource: "
        "--resource); repeatable. All given limits hold together",
    )
    command.add_argument(
        "--resource", default="memory", help=f"{', '.join(RESOURCES)} (default memory)"
    )
    command.add_argument(
        "--latency",
        type=parse_path,
        metavar="F",
        help="predict latencies by this table that latency wrote (default: that of MODEL on this "
        "machine if it was measured; otherwise plans are timed)",
    )


# ---- values ----------------------------------------------------------------------------------


def format_ratios(values: tuple[float, ...]) -> str:
    """Format ratios as the command line takes them."""
    return ",".join(f"{value:g}" for value in values)


def parse_path(text: str) -> str:
    """Return a path, or any other name, with a ``~`` at its start replaced by the home folder.

    Shells expand neither ``--out=~/plan.json`` nor quoted paths.
    """
    return str(expand(text)) if text.startswith("~") else text


def parse_bytes(text: str) -> int:
    """Parse a size such as 256MB, in bytes."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise DataError(f"--memory-budget needs a size such as 256MB or 2GB; got {text!r}.")
    return size


def parse_ratios(text: str) -> tuple[float, ...]:
    """Parse fractions separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidRatioError(
            f"Ratios and targets are fractions separated by commas, such as 0.25,0.5; got {text!r}."
        ) from None


def parse_names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_lock(text: str) -> tuple[str, float]:
    """Parse GROUP or GROUP=RATIO."""
    group, _, ratio = text.partition("=")
    try:
        return group, float(ratio or 0)
    except ValueError:
        raise InvalidRatioError(
            f"--lock needs GROUP or GROUP=RATIO, such as block.0.mlp.hidden=0.25; got {text!r}."
        ) from None


def parse_drop(text: str) -> float:
    """Parse an accuracy drop: a fraction below 1, or percentage points from 1 up."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise InvalidRatioError(
            "--max-drop needs a fraction such as 0.03, or percentage points from 1 up such as 3; "
            f"got {text!r}."
        )
    return value if value < 1 else value / 100


def parse_saving(text: str) -> tuple[str | None, float]:
    """Parse SAVING or RESOURCE=SAVING."""
    resource, _, saving = text.rpartition("=")
    try:
        return resource or None, float(saving)
    except ValueError:
        raise InvalidRatioError(
            f"--saving needs a fraction, or RESOURCE=FRACTION such as energy=0.3; got {text!r}."
        ) from None


def parse_bound(text: str) -> tuple[str, tuple[float, float]]:
    """Parse GROUP=LOW:HIGH."""
    group, _, limits = text.partition("=")
    low, _, high = limits.partition(":")
    try:
        return group, (float(low), float(high))
    except ValueError:
        raise InvalidRatioError(
            f"--bound needs GROUP=LOW:HIGH, such as block.0.mlp.hidden=0.1:0.5; got {text!r}."
        ) from None
