"""Commands for links, comparing plans, and inspecting files and images.

Options in, (JSON object, text) out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from psvit_core import planners
from psvit_core.cli.output import drop_text, measurement_text, sizing_lines
from psvit_core.cli.session import Result, make_session
from psvit_core.errors import InvalidPlanError
from psvit_core.files import check_writable, is_file
from psvit_core.plan.build import reached_ratios
from psvit_core.plan.link import read_share, share_text
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import Interval, ModelSummary, PrunePlan, SensitivityTable
from psvit_core.tasks import inspect as inspection
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.plan import check_swept
from psvit_core.tasks.session import summarize_model
from psvit_core.zoo.cards import list_models, shipped_summary

URL = "http://127.0.0.1:8501"  # the app's default address


# ---- links -----------------------------------------------------------------------------------


def _summary(options: argparse.Namespace, model: str) -> ModelSummary:
    """Return the summary of the named model, or of the model that a plan or link is for."""
    if options.model is None:
        if model not in list_models() and not is_file(model):
            raise InvalidPlanError(
                f"The plan is for {model!r}, which is not registered. Name its model or file."
            )
        options.model = model
    if options.checkpoint is None and (shipped := shipped_summary(options.model)):
        return shipped
    return summarize_model(make_session(options))


def link(options: argparse.Namespace) -> tuple[Result, str]:
    """Print a link that opens a plan in the app."""
    plan = PrunePlan.load(options.plan)
    text = share_text(_summary(options, plan.model), plan)
    link = f"{options.url.rstrip('/')}/compare?{urlencode({'plan': text})}"
    return {"text": text, "link": link}, link


def open_link(options: argparse.Namespace) -> tuple[Result, str]:
    """Write the plan of a link to a file."""
    check_writable(options.out)
    text = parse_qs(urlsplit(options.link).query).get("plan", [options.link])[0]
    shared = read_share(text.removeprefix("plan="))
    summary = _summary(options, shared.model)
    plan = shared.plan(summary)
    plan.save(options.out)
    saving = memory_saving(summary, plan)
    result = {"plan": plan.to_dict(), "memory_saving": saving}
    return result, f"{options.out}: {plan.model}, saves {saving:.2%} of the memory"


# ---- plans side by side ----------------------------------------------------------------------


def compare(options: argparse.Namespace) -> tuple[Result, str]:
    """Compare plans by size and ratios; with images, measure them."""
    plans = [PrunePlan.load(path) for path in options.plans]
    table = SensitivityTable.load(options.sweep) if options.sweep else None
    session = make_session(options) if options.data else None
    summary = summarize_model(session) if session else _summary(options, options.model)
    if table:
        check_swept(table, summary)
    if table and session:
        table = planners.for_recovery(table, session.recovery.method)
    for plan in plans:
        plan.check(summary.groups, summary.weights_hash)
    ratios = [reached_ratios(summary, plan) for plan in plans]
    rows = []
    for path, plan, reached in zip(options.plans, plans, ratios, strict=True):
        predicted = planners.predict_drop_interval(table, reached) if table else None
        measured = evaluate(session, plan, predicted=predicted) if session else None
        if measured is not None:
            predicted = measured.predicted
        rows.append(
            {
                "plan": str(path),
                "policy": plan.policy,
                "size": plan_size(summary, plan).to_dict(),
                "memory_saving": memory_saving(summary, plan),
                "predicted_drop": predicted.to_dict() if predicted else None,
                "measured": measured.to_dict() if measured else None,
                "class_changes": measured.class_changes if measured else None,
            }
        )
    groups = {
        g.group_id: [reached[g.group_id] for reached in ratios]
        for g in summary.groups
        if len({reached[g.group_id] for reached in ratios}) > 1
    }
    lines = [*map(_plan_line, rows), *_ratio_lines(groups)]
    return {"plans": rows, "differing_ratios": groups}, "\n".join(lines)


def _ratio_lines(groups: Mapping[str, Sequence[float]]) -> list[str]:
    lines = ["", "prune ratios that differ:"] if groups else []
    for name, values in groups.items():
        lines.append(f"{name:36} " + "  ".join(f"{value:7.2%}" for value in values))
    return lines


def _plan_line(row: Result) -> str:
    text = (
        f"{row['plan']}: {row['policy']}, {row['size']['bytes'] / 1e6:.3f} MB, "
        f"saves {row['memory_saving']:.2%}"
    )
    for name, drop in (
        ("predicted", row["predicted_drop"]),
        ("measured", row["measured"] and row["measured"]["drop"]),
    ):
        if drop:
            text += f"\n  {name} drop {drop_text(Interval.from_dict(drop))}"
    if losing := {n: c for n, c in (row["class_changes"] or {}).items() if c < 0}:
        worst = sorted(losing, key=lambda name: losing[name])
        changes = ", ".join(f"{name} {losing[name]:+.1f} pp" for name in worst)
        text += f"\n  classes that lost accuracy: {changes}"
    return text


# ---- files and images ------------------------------------------------------------------------


def inspect(options: argparse.Namespace) -> tuple[Result, str]:
    """Show a checkpoint's contents and the models that it fits."""
    if options.plugin is not None:
        from psvit_core.custom import load_plugin

        load_plugin(options.plugin)
    report = inspection.inspect_file(options.file, ema=options.ema, entry=options.entry)
    for note in report.notes:
        print(f"psvit: {Path(report.path).name}: {note}", file=sys.stderr)
    head = f"{report.path}: {report.n_tensors:,} tensors, {report.n_values:,} values"
    if report.pruned_from:
        lines = [f"{head}; pruned by this program from {report.pruned_from}"]
        for measured in report.recorded:
            lines += ["The file says:", measurement_text(measured)]
        return report.to_dict(), "\n".join(lines)
    if report.fits:
        head = f"{head}; opens as {' or '.join(report.fits)}"
    if report.sizings:
        lines = [line for sizing in report.sizings for line in sizing_lines(sizing)]
        return report.to_dict(), "\n".join([head, *lines])
    if report.fits:
        return report.to_dict(), head
    near = report.nearest
    assert near is not None
    if not near.n_matching:
        return report.to_dict(), f"{head}; none of them matches a registered model"
    found = (
        f"{head}; fits no registered model. The nearest is {near.model}: "
        f"{near.n_matching} match, {near.n_missing} missing, "
        f"{near.n_unexpected} unexpected, {near.n_reshaped} reshaped"
    )
    return report.to_dict(), "\n".join([found, *near.examples])


def check_data(options: argparse.Namespace) -> tuple[Result, str]:
    """Count the images of each split and decode some."""
    report = inspection.check_data(make_session(options))
    lines = [
        f"{s.split:6} {s.n_images:8,} images, {s.n_classes} classes of {s.fewest} to {s.most}"
        if not s.problem
        else f"{s.split:6} {s.problem}"
        for s in report.splits
    ]
    lines.append(
        f"cannot be used: {report.problem}"
        if report.problem
        else f"{report.n_looked} validation images decoded, each of shape {report.shape}"
    )
    for warning in report.warnings:
        print(f"psvit: {warning}", file=sys.stderr)
    return report.to_dict(), "\n".join(lines)
