"""The report as one HTML page: what the template needs, and the template."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from psvit_core.files import program_version
from psvit_core.records import FinetuneReport, Measurement, RecoveryReport
from psvit_core.report import figures, tables, words
from psvit_core.report.commands import commands, short_path
from psvit_core.report.picture import network_picture
from psvit_core.report.sources import RunReport, Stage, Written
from psvit_core.report.svg import Drawing, style_sheet
from psvit_core.report.words import NOT_MEASURED, one_line, percent, points
from psvit_core.storage.store import ENGINE_VERSION

Facts = list[tuple[str, str]]


def render(report: RunReport, *, written: date | None = None) -> str:
    """Return the report as an HTML page that needs nothing else.

    Every text is escaped, and the page forbids itself to load anything.

    Args:
        report: What the store has of the run.
        written: The day on the page; today when None.
    """
    environment = Environment(
        loader=PackageLoader("psvit_core.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.jinja")
    return template.render(_context(report, written or date.today()))


def drawings(report: RunReport) -> dict[str, Drawing]:
    """Return the report's figures by name: ``heatmap``, ``front``, ``curve``; those with data."""
    found: dict[str, Drawing] = {}
    if report.table is not None and report.table.rows:
        found["heatmap"] = figures.heatmap(report.table)
    if report.archive is not None:
        accuracy = report.unpruned.accuracy
        unpruned = (report.unpruned.size.bytes, accuracy.value) if accuracy else None
        found["front"] = figures.front(report.archive, unpruned, report.plan)
    trained = _training(report)
    drawing = figures.curve(trained.epochs, trained.best_epoch) if trained else None
    return found | ({"curve": drawing} if drawing is not None else {})


def _context(report: RunReport, written: date) -> dict[str, Any]:
    """Return the template's variables: texts, rows of texts, and drawings."""
    svgs = {name: Markup(drawing.to_svg()) for name, drawing in drawings(report).items()}
    plan, archive = report.plan, report.archive
    trained = _training(report)
    return {
        "title": title(report),
        "date": written.isoformat(),
        "style": Markup(style_sheet()),
        "figures": svgs,
        "picture": Markup(network_picture(report)),
        "headline": list(_headline(report)),
        "model": list(_model(report)),
        "conditions": list(_conditions(report)),
        "unpruned": list(_unpruned(report)),
        "sweep": list(_sweep(report)),
        "front": list(tables.front_rows(archive, plan)) if archive is not None else [],
        "n_points": len(archive.points) if archive is not None else 0,
        "plan": list(_plan(report)),
        "blocks": tables.plan_rows(report.summary, plan) if plan is not None else (),
        "plan_json": json.dumps(plan.to_dict()) if plan is not None else "",
        "columns": _columns(report),
        "rows": tables.before_after(report.unpruned, report.stages, report.summary, plan),
        "measured_on": sorted({words.conditions(_short(s)) for s in report.stages}),
        "test": [_test_row(stage) for stage in report.test],
        "recovery": list(_recovery(report)),
        "training": list(_finetuning(trained)) if trained else [],
        "files": [_file(w) for w in report.written],
        "commands": list(commands(report)),
        "versions": list(_versions(report)),
        "NOT_MEASURED": NOT_MEASURED,
    }


def title(report: RunReport) -> str:
    """Return the model's title, or the name of its file."""
    card = report.card
    return one_line(card.title if card else Path(report.summary.model).name, 80)


def _short(stage: Stage) -> Any:
    c = stage.measurement.conditions
    return dataclasses.replace(c, data=short_path(c.data))


def _training(report: RunReport) -> FinetuneReport | None:
    return next((w.finetuning for w in report.written if w.finetuning), None)


def _final(report: RunReport) -> Measurement | None:
    """Return the plan's measurement that the report is about: under its recovery, untrained."""
    wanted = report.subject.recovery
    kept = [s.measurement for s in report.stages if s.name != "Fine-tuned"]
    return next((m for m in kept if m.conditions.recovery == wanted), None)


def _headline(report: RunReport) -> Iterator[tuple[str, str, str]]:
    """Yield (name, value, note) of the numbers at the top."""
    before, final = report.unpruned, _final(report)
    if final is None:
        yield "Weights, unpruned", f"{before.size.bytes:,} bytes", "float32"
        yield "Accuracy, unpruned", percent(before.accuracy), "95 % interval"
        yield "Pruned", NOT_MEASURED, "the store has no measurement of a plan"
        return
    yield (
        "Weights",
        f"{before.size.bytes:,} → {final.size.bytes:,} bytes",
        f"{words.share(final.memory_saving)} saved, float32",
    )
    yield "Accuracy", percent(final.accuracy), f"unpruned {percent(before.accuracy)}"
    yield "Accuracy lost", points(final.drop), "paired, on the same images"


def _model(report: RunReport) -> Iterator[tuple[str, str]]:
    summary, card, s = report.summary, report.card, report.subject
    yield "Model", one_line(f"{Path(summary.model).name}, family {summary.family}")
    if s.checkpoint:
        yield "Weights from", one_line(f"the file {short_path(s.checkpoint)}")
    elif card is None:
        yield "Weights from", one_line(f"the file {short_path(s.model)}")
    elif card.weights is not None:
        yield "Weights from", "this program, with which they are shipped"
    else:
        yield "Weights from", "the code that registers the model"
    yield "Weights hash", summary.weights_hash
    if card is not None:
        yield "Licence of the weights", one_line(card.licence)
        if card.paper:
            yield "Paper", one_line(card.paper)
        if "command" in card.training and not s.checkpoint:
            yield "Trained by", one_line(card.training["command"])
    yield "Input", " × ".join(str(n) for n in summary.input_shape)
    yield "Classes", f"{summary.num_classes:,}"
    yield "Channel groups", f"{len(summary.groups)}"
    if summary.batch_coupled:
        yield "Note", "the images of a batch influence each other, as published"


def _conditions(report: RunReport) -> Iterator[tuple[str, str]]:
    c = report.unpruned.conditions
    if c is None and report.stages:
        c = report.stages[0].measurement.conditions
    if c is None and report.table is not None:
        c = report.table.conditions
    yield "Recovery of pruned networks", report.subject.recovery
    if c is None:
        yield "Data", NOT_MEASURED
        return
    yield "Data", one_line(short_path(c.data))
    yield "Split", f"{c.split} (planning never uses the test split)"
    yield "Images", f"{c.n_images:,}"
    yield "Time steps T", str(c.T)
    yield "Batch", str(c.batch) if c.batch else "several batch sizes"
    yield "Precision and device", f"{c.precision}, {c.device}"
    yield "Preprocessing", one_line(c.transform)


def _unpruned(report: RunReport) -> Iterator[tuple[str, str]]:
    u = report.unpruned
    yield "Weights", f"{u.size.bytes:,} bytes (float32), {u.size.params:,} parameters"
    yield "Accuracy [95 %]", percent(u.accuracy)
    yield "MACs, one image and time step", f"{u.size.macs:,}"
    yield "SOPs, one image", NOT_MEASURED if u.sops is None else f"{u.sops:,.0f}"


def _sweep(report: RunReport) -> Iterator[tuple[str, str]]:
    table = report.table
    if table is None:
        return
    n_cells = len(table.summary.groups) * len(table.ratios)
    yield "Cells", f"{len(table.rows)} of {n_cells} measured, mode {table.mode}"
    yield "Units ranked by", one_line(table.criterion)
    conditions = dataclasses.replace(table.conditions, data=short_path(table.conditions.data))
    yield "Conditions", words.conditions(conditions)
    yield "Accuracy, unpruned [95 %]", percent(table.baseline_accuracy)
    if table.precision_check is not None:
        yield "Check of the precision", table.precision_check.text


def _plan(report: RunReport) -> Iterator[tuple[str, str]]:
    plan = report.plan
    if plan is None:
        return
    yield "Chosen as", report.chosen_by
    made = report.origin.made[0] if report.origin else None
    yield "Policy", one_line(made.policy if made else plan.policy)
    yield "Target", one_line(made.target) if made and made.target else "none recorded"
    yield "Units ranked by", one_line(plan.criterion)
    if made is not None:
        yield "Scope", one_line(made.scope)
        if made.limits:
            yield "Limits", one_line(made.limits)
    if plan.note:
        yield "How it was planned", one_line(plan.note)


def _columns(report: RunReport) -> list[str]:
    names = ["Unpruned", *(_column(stage) for stage in report.stages)]
    return [*names, "Plan"] if report.plan is not None and not report.stages else names


def _column(stage: Stage) -> str:
    used, asked = stage.measurement.recovered_by, stage.measurement.conditions.recovery
    return f"{stage.name} ({used})" if used not in ("", asked) else stage.name


def _test_row(stage: Stage) -> tables.Row:
    m = stage.measurement
    cells = (percent(m.baseline_accuracy), percent(m.accuracy), points(m.drop))
    return tables.Row(_column(stage), (*cells, f"{m.conditions.n_images:,}"))


def _recovery(report: RunReport) -> Iterator[tuple[str, str]]:
    for stage in report.stages:
        m = stage.measurement
        if m.conditions.recovery == "none" or stage.name == "Fine-tuned":
            continue
        before = m.plain
        yield (
            f"{_column(stage)}: accuracy lost, paired",
            f"{points(before.drop if before else None)} → {points(m.drop)}",
        )
        if before is not None:
            won = 100 * (m.accuracy.value - before.accuracy.value)
            yield "Won back", f"{won:+.2f} pp (difference of both, without an interval)"
    found = next((w.recovery for w in report.written if w.recovery), None)
    if found is not None:
        yield from _recovery_facts(found)


def _recovery_facts(found: RecoveryReport) -> Facts:
    c = found.conditions
    before, after = (
        f"{found.kl[name]:.4f}" if name in found.kl else NOT_MEASURED
        for name in ("none", found.used)
    )  # the report may come from a file of others
    return [
        ("In the checkpoint", one_line(f"by {found.used} ({found.method} was asked for)")),
        (
            "KL to the unpruned network",
            f"{before} → {after} nats on {found.n_held_out} images",
        ),
        ("Fitted to", f"{found.n_fit} images of {one_line(short_path(c.data))}, split {c.split}"),
    ]


def _finetuning(found: FinetuneReport) -> Facts:
    s, c = found.settings, found.conditions
    by_epoch = {e.epoch: e.val_accuracy for e in reversed(found.epochs)}
    chosen = f"; the best of {found.trials} trainings" if found.trials > 1 else ""
    return [
        ("Trained on", f"{c.n_images:,} images of {one_line(short_path(c.data))}"),
        ("Validation accuracy before", percent(by_epoch.get(0))),
        (f"Best, after {found.best_epoch:g} epochs", percent(by_epoch.get(found.best_epoch))),
        ("Settings", f"{s.epochs:g} epochs, learning rate {s.lr:g}, batch {s.batch}{chosen}"),
        ("Teacher", one_line(Path(found.teacher).name) if found.teacher else "none"),
    ]


def _file(written: Written) -> tables.Row:
    size = f"{written.bytes:,} bytes" if written.bytes is not None else "–"
    accuracy = percent(written.measurement.accuracy) if written.measurement else NOT_MEASURED
    return tables.Row(one_line(written.name, 90), (size, accuracy, written.sha256 or "–"))


def _versions(report: RunReport) -> Iterator[tuple[str, str]]:
    yield "psvit-explorer", program_version()
    for name in ("torch", "numpy", "spikingjelly"):
        yield name, version(name)
    yield "Version of the computation", f"{ENGINE_VERSION} (part of every result's key)"
    yield "Python", platform.python_version()
    machines = {
        f"torch {p.machine.torch}, {one_line(p.machine.processor, 60)}, {p.machine.kernels} kernels"
        for m in (s.measurement for s in report.stages)
        if (p := m.profile) is not None
    }
    for machine in sorted(machines):
        yield "Profiles were measured with", machine
