"""The command ``report``: a run as one HTML page."""

from __future__ import annotations

import argparse

from psvit_core.cli.options import add_model_arguments, parse_path
from psvit_core.cli.session import Result, make_session
from psvit_core.errors import UnknownNameError
from psvit_core.files import expand_spec
from psvit_core.jobs import client
from psvit_core.records import RECOVERIES, PrunePlan
from psvit_core.storage.shipped import DemoStore
from psvit_core.tasks.matching import Matcher
from psvit_core.tasks.session import summarize_model


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(command)
    command.add_argument(
        "--data",
        type=expand_spec,
        metavar="SPEC",
        help="images that the numbers were measured on, as in `evaluate` (default: the model "
        "card's); they are not read",
    )
    command.add_argument(
        "--limit", type=int, metavar="N", help="numbers that were measured on N images"
    )
    command.add_argument(
        "--recover",
        metavar="METHOD",
        help=f"recovery of the numbers: {', '.join(RECOVERIES)} (default auto; none if nothing "
        "was measured under it)",
    )
    command.add_argument(
        "--plan",
        type=parse_path,
        metavar="F",
        help="plan to report on (default: that of --pruned, else of the newest checkpoint that "
        "the app wrote, else the knee of the measured front)",
    )
    command.add_argument(
        "--pruned",
        type=parse_path,
        metavar="F",
        help="pruned .safetensors file of MODEL, which tells of its recovery and fine-tuning",
    )
    command.add_argument(
        "--out", required=True, type=parse_path, metavar="F", help=".html file of the report"
    )
    command.add_argument(
        "--files",
        type=parse_path,
        metavar="DIR",
        help="folder for the figures as SVG and the data as CSV and JSON",
    )


def report(options: argparse.Namespace) -> tuple[Result, str]:
    """Write what the store has of a run as one HTML page; measure nothing."""
    from psvit_core.report import check_page_path, collect, write_files, write_page

    check_page_path(options.out)
    if options.recover is not None and options.recover not in RECOVERIES:
        raise UnknownNameError("recovery", options.recover, RECOVERIES)
    plan = PrunePlan.load(options.plan) if options.plan else None
    session = make_session(options)
    store = DemoStore(session.store.folder)
    matcher = Matcher(session.subject)
    found = collect(
        store,
        session.subject,
        matcher.shipped_summary() or summarize_model(session),
        plan=plan,
        pruned=options.pruned,
        recovery=options.recover,
        jobs=client.list_jobs(store),
    )
    path = write_page(found, options.out)
    files = write_files(found, options.files) if options.files else []
    store.close()
    result = {
        "out": str(path),
        "bytes": path.stat().st_size,
        "files": [str(file) for file in files],
        "model": found.summary.model,
        "weights_hash": found.summary.weights_hash,
        "recovery": found.subject.recovery,
        "plan": found.plan.to_dict() if found.plan else None,
        "chosen_by": found.chosen_by,
        "missing": list(found.missing),
    }
    missing = f"; not measured: {', '.join(found.missing)}" if found.missing else ""
    return result, f"{path}: {result['bytes']:,} bytes{missing}"
