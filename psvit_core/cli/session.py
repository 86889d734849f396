"""Sessions from command-line options."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, TextIO

from psvit_core.cli.options import chosen_engine
from psvit_core.errors import StoreError
from psvit_core.records import RecoverySettings, SensitivityTable, Subject, check_recovery
from psvit_core.storage.leftovers import tidy
from psvit_core.storage.store import Store
from psvit_core.tasks.plan import check_swept
from psvit_core.tasks.session import Session
from psvit_core.zoo.cards import list_models, model_card
from psvit_core.zoo.sizing import SIZE_ARGUMENTS

Result = dict[str, Any]


def make_session(options: argparse.Namespace) -> Session:
    """Return the session of a command's options; it warns on stderr.

    Options that the command does not have keep the subject's defaults.
    """
    from psvit_core.runtime import use_default_threads

    use_default_threads()
    names = {f.name for f in dataclasses.fields(Subject)}
    chosen = {name: value for name, value in vars(options).items() if name in names}
    given = {name: getattr(options, name, None) for name in SIZE_ARGUMENTS}
    subject = Subject(
        **chosen
        | {
            "plugin": absolute_path(options.plugin),
            "arguments": {name: value for name, value in given.items() if value is not None},
        }
    )
    store = Store()
    tidy(store)
    if running := getattr(options, "running", None):
        running.enter_context(store.using())
    session = Session(subject, store, warn=lambda text: print(f"psvit: {text}", file=sys.stderr))
    session.engine = chosen_engine(options, session.engine)
    options.session = session  # whose notes the JSON object repeats
    options.warnings = session.warnings  # which the command fills
    return session


def remark_if_unkept(options: argparse.Namespace, session: Session) -> None:
    """Let a command end with its result, and one more line, if a measurement cannot be kept.

    That is for commands whose result is the measurement. Others read the archive again.
    """

    def remark(error: StoreError) -> None:
        if not hasattr(options, "remarks"):  # one line for all measurements of a command
            options.remarks = [f"What was measured is not kept with other plans: {error}"]
            session.warnings += options.remarks

    session.unkept = remark


def ensure_images(options: argparse.Namespace) -> None:
    """Download CIFAR-10 if a command needs it, it is missing, and the user agrees.

    A command needs it for ``--data cifar10``, and without ``--data`` for the models that were
    trained on it. ``--download`` agrees beforehand. Nobody is asked without a terminal or with
    ``--json``.

    Raises:
        DataError: If the images are missing and not to be downloaded, or the download fails.
    """
    if "download" not in options or _data_of(options) != "cifar10":
        return
    from psvit_core.data import download  # imports torch

    if download.cifar10_folder() is not None:
        return
    if not options.download:
        if options.json or not _is_terminal(sys.stdin) or not _is_terminal(sys.stderr):
            raise download.missing_cifar10()
        print(f"{download.question()} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise download.missing_cifar10()
    download.download_cifar10()


def _data_of(options: argparse.Namespace) -> str | None:
    """Return the data of a command: that of ``--data``, else that of the registered model."""
    model = getattr(options, "model", None)
    if options.data is None and model in list_models():
        return model_card(model).data
    data: str | None = options.data
    return data


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def follow_recovery_to_plan(
    session: Session, method: str | None, table: SensitivityTable | None = None
) -> None:
    """Set the recovery as ``follow_recovery``, for numbers that choices are made by.

    Raises:
        DataError: If the images are a test split.
        InvalidPlanError: If the table is of other weights.
    """
    from psvit_core.sensitivity.sweep import refuse_test_split

    refuse_test_split(session.data)
    if table is not None:
        check_swept(table, session.description)
    follow_recovery(session, method, table)


def follow_recovery(
    session: Session, method: str | None, table: SensitivityTable | None = None
) -> None:
    """Set the recovery of a session's numbers, which the results name.

    Args:
        session: The session.
        method: The method that the user chose; None for the default: that of the table if there is
            one, else ``auto``, which is none where the data has no calibration images.
        table: The sensitivity table that plans are made from.

    Raises:
        UnknownNameError: If there is no such method.
    """
    default = "auto" if table is None or table.conditions.recovery != "none" else "none"
    check_recovery(RecoverySettings(method=method or default))
    session.subject = dataclasses.replace(session.subject, recovery=method or default)
    _ = session.recovery  # warns if it is not possible, before anything runs


def given_options(options: argparse.Namespace, *others: str) -> str:
    """Return the options about a model and its images that differ from their defaults, as text.

    Args:
        options: Options of a command.
        others: Names of further options, whose default is None.
    """
    fields = [f for f in dataclasses.fields(Subject) if f.name not in ("model", "arguments")]
    defaults = {f.name: f.default for f in fields}
    defaults |= dict.fromkeys((*SIZE_ARGUMENTS, *others))
    given = [n for n, default in defaults.items() if getattr(options, n, default) != default]
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)


def absolute_path(plugin: str | None) -> str | None:
    """Return a plugin file's absolute path, for other processes; leave a module's name as it is."""
    return str(Path(plugin).resolve()) if plugin and Path(plugin).suffix == ".py" else plugin
