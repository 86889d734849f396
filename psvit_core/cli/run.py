"""The command ``run``: everything from a checkpoint to exports, by a configuration file."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from psvit_core.cli.options import add_download_argument, add_plugin_argument, parse_path
from psvit_core.cli.output import drop_text, percent
from psvit_core.cli.session import Result, absolute_path, ensure_images
from psvit_core.records import Measurement

if TYPE_CHECKING:
    from psvit_core.batch import RunConfig, RunOutcome

#: Exit status of a run that is done and missed a target on the test split.
MISSED = 3


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.epilog = (
        "Exit status 3: done, but a target was missed on the test split (test: true). A run that "
        "was stopped goes on when the same command is given again."
    )
    command.add_argument(
        "config", type=parse_path, metavar="CONFIG", help="configuration, .yaml or .json"
    )
    command.add_argument(
        "--check", action="store_true", help="check the configuration only; nothing is run"
    )
    command.add_argument(
        "--replace",
        action="store_true",
        help="replace results of other settings in the configuration's folder",
    )
    add_plugin_argument(command)
    add_download_argument(command)
    command.set_defaults(data=None)  # known once the configuration is read


def run(options: argparse.Namespace) -> tuple[Result, str]:
    """Do all that a configuration describes; a second call goes on where the first one stopped."""
    from psvit_core.batch import RunCallbacks, load_run_config, run_config

    config = load_run_config(options.config)
    if options.check:
        return _checked(options.config, config)
    _ensure_images(options, config)
    from psvit_core.runtime import use_default_threads

    use_default_threads()
    with _Bars() as bars:
        done = run_config(
            config,
            plugin=absolute_path(options.plugin),
            replace=options.replace,
            callbacks=RunCallbacks(stage=bars.stage, progress=bars.progress, say=_say),
        )
    options.exit_status = MISSED if done.missed_on_test else 0
    result = {**done.result, "reused": list(done.reused), "changes": list(done.changes)}
    return {**result, "out": str(done.folder), "missed_on_test": done.missed_on_test}, _text(done)


def _checked(path: str, config: RunConfig) -> tuple[Result, str]:
    result = {"config": config.model_dump(mode="json"), "config_sha256": config.hash}
    return result, (
        f"{path}: valid. {config.model.name}, {config.plan_settings().target.text}; results go to "
        f"{config.folder}"
    )


def _ensure_images(options: argparse.Namespace, config: RunConfig) -> None:
    options.data, options.model = config.subject().data, config.model.name
    ensure_images(options)


def _say(text: str) -> None:
    tqdm.write(f"psvit: {text}", file=sys.stderr)


class _Bars:
    """A progress bar on stderr for each stage."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def stage(self, name: str, number: int, total: int) -> None:
        """Begin a stage."""
        self._close()
        _say(f"{number} of {total}: {name}")

    def progress(self, done: int, total: int, what: str) -> None:
        """Show the progress of the present stage."""
        if self._bar is None:
            self._bar = tqdm(unit="step", file=sys.stderr, disable=None)
        self._bar.total = total or None
        self._bar.set_postfix_str(what, refresh=False)
        self._bar.update(done - self._bar.n)


def _text(done: RunOutcome) -> str:
    """Return the result as lines of text."""
    from psvit_core.batch.targets import judged_text

    result = done.result
    final = Measurement.from_dict((result["tuned"] or result["pruned"])["measurement"])
    lines = [f"{done.folder / result['checkpoint']}: saves {final.memory_saving:.2%} of the memory"]
    lines += [_network(result), _measured("planned", final)]
    if result["test"] is not None:
        lines.append(_measured("test", Measurement.from_dict(result["test"]["measurement"])))
    lines += [judged_text(judged) for judged in done.targets]
    lines += [f"export  {done.folder / export['file']}" for export in result["exports"]]
    return "\n".join([*lines, f"result  {done.folder / 'result.json'}"])


def _measured(name: str, m: Measurement) -> str:
    assert m.drop is not None
    c = m.conditions
    return (
        f"{name:7} accuracy {percent(m.accuracy)}, drop {drop_text(m.drop)} paired "
        f"({c.data} {c.split}, {c.n_images} images, T={c.T})"
    )


def _network(result: Result) -> str:
    """Return what followed pruning, as a line of text."""
    recovery, training = result["pruned"]["recovery"], result["tuned"]
    parts = [f"pruned by {result['plan']['policy']}"]
    parts.append(f"recovered by {recovery['used']}" if recovery else "not recovered")
    if training:
        parts.append(f"trained, best after {training['training']['best_epoch']:g} epochs")
    return f"network {', '.join(parts)}"
