"""The command ``train``: a network from the beginning, by a configuration file.

``add_commands`` adds it and ``run``: the commands that a configuration file describes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from psvit_core.cli import run
from psvit_core.cli.options import add_download_argument, parse_path
from psvit_core.cli.output import percent
from psvit_core.files import expand_spec
from psvit_core.tasks.train import TrainCallbacks, load_config, run_train

Result = dict[str, Any]


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that a configuration file describes.

    Args:
        add: Adds a command by name, function and help, and returns its parser.
    """
    add_arguments(add("train", train, "train a new model; can resume"))
    run.add_arguments(
        add("run", run.run, "sweep, plan, prune, train and export by a file; can resume")
    )


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument(
        "config", type=parse_path, metavar="CONFIG", help="configuration, .json, .toml or .yaml"
    )
    command.add_argument(
        "--out",
        required=True,
        type=parse_path,
        metavar="DIR",
        help="folder for weights, record, learning curve and state; the same folder continues a "
        "stopped training",
    )
    command.add_argument("--data", metavar="SPEC", help="images, instead of the configuration's")
    add_download_argument(command)
    command.add_argument("--epochs", type=float, help="epochs, instead of the configuration's")
    command.add_argument("--seed", type=int, help="seed, instead of the configuration's")
    command.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    command.add_argument("--threads", type=int, help="threads; the default leaves one core free")
    command.add_argument("--workers", type=int, default=0, help="processes that decode images")
    command.add_argument(
        "--test", action="store_true", help="evaluate the best epoch on the test split at the end"
    )
    command.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue a stopped training with the same configuration",
    )


def train(options: argparse.Namespace) -> tuple[Result, str]:
    """Train a network and write its weights and record."""
    import torch

    from psvit_core.runtime import Run, use_default_threads

    use_default_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = load_config(options.config)
    given = {name: getattr(options, name) for name in ("epochs", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    config = dataclasses.replace(config, settings=dataclasses.replace(config.settings, **given))
    if options.data is not None:
        config = dataclasses.replace(config, data=expand_spec(options.data))
    settings = Run(device=options.device, batch=config.batch, workers=options.workers)
    with tqdm(unit="step", file=sys.stderr, disable=None) as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        done = run_train(
            config,
            options.out,
            settings,
            resume=options.resume,
            test=options.test,
            callbacks=TrainCallbacks(progress=progress, log=_log),
        )
    best = done.report.best_accuracy
    result = {
        "weights": str(done.weights),
        "last": str(done.last),
        "record": str(done.record),
        "curve": str(done.curve),
        "train": done.report.to_dict(),
        "test": None if done.test is None else {"correct": done.test[0], "images": done.test[1]},
    }
    text = (
        f"{done.weights}: best after {done.report.best_epoch:g} epochs, validation accuracy "
        f"{percent(best)}"
    )
    if done.test is not None:
        text += f"; test accuracy {done.test[0] / done.test[1]:.2%} of {done.test[1]} images"
    return result, text


def _log(line: str) -> None:
    tqdm.write(f"psvit: {line}", file=sys.stderr)
