"""Commands for what stands around the main job: links, plans side by side, files, jobs.

Each takes the options and returns (JSON object, text), as those of ``commands`` do.
"""

from __future__ import annotations

import argparse
import time
from urllib.parse import parse_qs, urlencode, urlsplit

from psvit_core import planners
from psvit_core.cli.engine import Result, make_engine
from psvit_core.cli.texts import drop_text
from psvit_core.errors import InvalidPlanError, UnknownNameError
from psvit_core.files import check_writable, last_lines
from psvit_core.jobs import client, opening, tasks
from psvit_core.jobs.client import Job
from psvit_core.jobs.engine import summarize_model
from psvit_core.jobs.planning import check_swept
from psvit_core.plans import reached_ratios
from psvit_core.records import Interval, Measurement, ModelSummary, PrunePlan, SensitivityTable
from psvit_core.share import read_share, share_text
from psvit_core.size import memory_saving, plan_size
from psvit_core.store import Store
from psvit_core.zoo.cards import list_models, shipped_summary

URL = "http://127.0.0.1:8501"  # where the app listens unless it is told otherwise


# ---- links -----------------------------------------------------------------------------------


def _summary(options: argparse.Namespace, model: str) -> ModelSummary:
    """The model of a plan or link: as named, else the one that it names itself."""
    if options.model is None:
        if model not in list_models() and not model.endswith(".safetensors"):
            raise InvalidPlanError(
                f"The plan is for {model!r}, which is not registered here. Name its model or file."
            )
        options.model = model
    if options.checkpoint is None and (shipped := shipped_summary(options.model)):
        return shipped
    return summarize_model(make_engine(options))


def link(options: argparse.Namespace) -> tuple[Result, str]:
    """A plan as a link that opens it in the app."""
    plan = PrunePlan.load(options.plan)
    text = share_text(_summary(options, plan.model), plan)
    link = f"{options.url.rstrip('/')}/compare?{urlencode({'plan': text})}"
    return {"text": text, "link": link}, link


def open_link(options: argparse.Namespace) -> tuple[Result, str]:
    """The plan of a link, as a file."""
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
    """Plans side by side, sizes and ratios; with images measured."""
    plans = [PrunePlan.load(path) for path in options.plans]
    table = SensitivityTable.load(options.sweep) if options.sweep else None
    worker = make_engine(options) if options.data else None
    summary = summarize_model(worker) if worker else _summary(options, options.model)
    if table:
        check_swept(table, summary)
    for plan in plans:
        plan.check(summary.groups, summary.weights_hash)
    ratios = [reached_ratios(summary, plan) for plan in plans]
    rows = []
    for path, plan, reached in zip(options.plans, plans, ratios, strict=True):
        measured = tasks.evaluate(worker, plan) if worker else None
        predicted = planners.predict_drop_interval(table, reached) if table else None
        rows.append(
            {
                "plan": str(path),
                "policy": plan.policy,
                "size": plan_size(summary, plan).to_dict(),
                "memory_saving": memory_saving(summary, plan),
                "predicted_drop": predicted.to_dict() if predicted else None,
                "measured": measured.to_dict() if measured else None,
                "class_changes": _class_changes(measured),
            }
        )
    groups = {
        g.group_id: [reached[g.group_id] for reached in ratios]
        for g in summary.groups
        if len({reached[g.group_id] for reached in ratios}) > 1
    }
    lines = [_plan_line(row) for row in rows]
    lines += ["", "prune ratios that differ:"] if groups else []
    lines += [
        f"{name:36} " + "  ".join(f"{value:7.2%}" for value in values)
        for name, values in groups.items()
    ]
    return {"plans": rows, "differing_ratios": groups}, "\n".join(lines)


def _class_changes(measured: Measurement | None) -> dict[str, float] | None:
    """Accuracy of each class against the unpruned model's, percentage points; negative: loses."""
    if measured is None or measured.per_class is None:
        return None
    return {
        name: 100 * (correct - before) / images
        for name, (images, correct, before) in measured.per_class.items()
    }


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
        text += "\n  classes that lose: " + ", ".join(f"{n} {losing[n]:+.1f} pp" for n in worst)
    return text


# ---- files and images ------------------------------------------------------------------------


def inspect(options: argparse.Namespace) -> tuple[Result, str]:
    """What a checkpoint file holds."""
    report = opening.inspect_file(options.file)
    head = f"{report.path}: {report.n_tensors:,} tensors, {report.n_values:,} values"
    if report.pruned_from:
        return report.to_dict(), f"{head}; pruned by this tool from {report.pruned_from}"
    if report.fits:
        return report.to_dict(), f"{head}; opens as {' or '.join(report.fits)}"
    near = report.nearest
    assert near is not None
    found = (
        f"{head}; no registered model has these tensors. The nearest is {near.model}: "
        f"{near.n_missing} missing, {near.n_unexpected} unexpected, {near.n_reshaped} reshaped"
    )
    return report.to_dict(), "\n".join([found, *near.examples])


def check_data(options: argparse.Namespace) -> tuple[Result, str]:
    """How many images there are, and whether some can be read."""
    report = opening.check_data(make_engine(options))
    lines = [
        f"{s.split:6} {s.n_images:8,} images, {s.n_classes} classes of {s.fewest} to {s.most}"
        if not s.problem
        else f"{s.split:6} {s.problem}"
        for s in report.splits
    ]
    lines.append(
        f"cannot be used: {report.problem}"
        if report.problem
        else f"{report.n_looked} validation images were read, each of shape {report.shape}"
    )
    return report.to_dict(), "\n".join(lines)


# ---- jobs ------------------------------------------------------------------------------------

ACTIONS = {"cancel": client.cancel, "stop": client.stop, "resume": client.resume}


def jobs(options: argparse.Namespace) -> tuple[Result, str]:
    """The app's background work."""
    store = Store()
    if options.action == "log":
        path = client.log_path(store, options.device)
        lines = last_lines(path, options.lines) if path.is_file() else []
        return {"log": str(path), "lines": lines}, "\n".join(lines) or f"{path} is empty"
    if options.action == "list":
        jobs = client.list_jobs(store)
        text = "\n".join(map(_job_line, jobs)) or f"no jobs in {store.folder}"
        return {"jobs": [_job(job) for job in jobs]}, text
    known = [job.id for job in client.list_jobs(store)]
    if options.job not in known:
        raise UnknownNameError("job", options.job or "", known)
    job = ACTIONS[options.action](store, options.job)
    return _job(job), _job_line(job)


def _job(job: Job) -> Result:
    """A job without what it was given and gave: whole plans and models."""
    return {k: v for k, v in job.to_dict().items() if k not in ("params", "result")}


def _job_line(job: Job) -> str:
    far = f" {job.done:,}/{job.total:,}" if job.total and job.state != "done" else ""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created))
    error = f": {job.error}" if job.error else ""
    return f"{job.id}  {when}  {job.state}{far}  {job.title}{error}"
