"""The commands of the main job: options in, (JSON object, text) out."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from tqdm import tqdm

from psvit_core import planners
from psvit_core.cli.engine import Result, given, make_engine
from psvit_core.cli.texts import (
    archive_text,
    drop_text,
    measurement_text,
    percent,
    published_text,
    recovery_text,
    size_text,
)
from psvit_core.errors import PsvitError, UnknownNameError
from psvit_core.files import check_model_file, check_writable
from psvit_core.jobs import tasks
from psvit_core.jobs.engine import (
    PlanSettings,
    Progress,
    RecoverySettings,
    SweepSettings,
    refused_groups,
    summarize_model,
)
from psvit_core.jobs.fronts import ParetoSettings, run_pareto
from psvit_core.jobs.planning import run_plan
from psvit_core.jobs.tuning import run_finetune
from psvit_core.metrics.energy import at_energy, energy_model
from psvit_core.planners import POLICIES
from psvit_core.plans import reached_ratios
from psvit_core.records import (
    FinetuneReport,
    FinetuneSettings,
    Interval,
    PrunePlan,
    SensitivityTable,
)
from psvit_core.sensitivity.table import MODES, check_ratios
from psvit_core.size import memory_saving, plan_size
from psvit_core.zoo.cards import list_models, model_card


def models(options: argparse.Namespace) -> tuple[Result, str]:
    """Registered models."""
    if options.plugin is not None:
        from psvit_core.custom import load_plugin

        load_plugin(options.plugin)
    cards = [model_card(name) for name in list_models()]
    rows = [
        {
            "name": card.name,
            "title": card.title,
            "family": card.family,
            "data": card.data,
            "parameters": card.parameters,
            "paper": card.paper,
            "licence": card.licence,
            "shipped_weights": card.weights is not None,
            "file_name": card.file_name,
            "published": [dataclasses.asdict(p) for p in card.published],
            "notes": card.notes,
            "training": dict(card.training),
        }
        for card in cards
    ]
    return {"models": rows}, "\n".join(
        f"{r['name']:26} {r['parameters']:>11,}  {r['title']}"
        + ("  (shipped)" if r["shipped_weights"] else "")
        for r in rows
    )


def groups(options: argparse.Namespace) -> tuple[Result, str]:
    """A model's channel groups, and what is left out."""
    engine = make_engine(options)
    summary, refused = summarize_model(engine), refused_groups(engine)
    size = plan_size(summary, None)
    head = f"{summary.model}: {len(summary.groups)} channel groups, {size_text(size.to_dict())}"
    lines = [
        f"{g.group_id:36} {g.n_units:5} units  {'per head' if g.heads else '':8} {g.label}"
        for g in summary.groups
    ]
    lines += [f"left out: {name}: {reason}" for name, reason in refused.items()]
    result = {
        "model": summary.model,
        "weights_hash": summary.weights_hash,
        "size": size.to_dict(),
        "groups": [g.to_dict() for g in summary.groups],
        "refused": refused,
        "unused": [t.name for t in summary.shapes.tensors if t.role == "unused"],
    }
    return result, "\n".join([head, *lines])


def evaluate(options: argparse.Namespace) -> tuple[Result, str]:
    """A model measured, beside its published accuracy where there is one."""
    energy = energy_model(options.energy, options.energy_mac, options.energy_ac)
    engine = make_engine(options)
    result = at_energy(tasks.evaluate(engine, profile=options.profile), energy)
    published = tasks.compare_published(engine.card, result)
    document = result.to_dict()
    if published:
        document["published"] = {"text": published[0], "inside_interval": published[1]}
    text = measurement_text(result) + (f"\n{published_text(*published)}" if published else "")
    return document, text


def sweep(options: argparse.Namespace) -> tuple[Result, str]:
    """The sensitivity table, as a file."""
    check_writable(options.out)
    if options.mode not in MODES:
        raise UnknownNameError("sweep mode", options.mode, MODES)
    settings = SweepSettings(
        mode=options.mode,
        memory_budget=options.memory_budget,
        ratios=check_ratios(options.ratios),
        criterion=options.criterion,
        calib_images=options.calib_images,
        seed=options.seed,
    )
    engine = make_engine(options)
    if engine.card.published and (
        published := tasks.compare_published(engine.card, tasks.evaluate(engine))
    ):
        print(published_text(*published), file=sys.stderr)  # before any cell is run
    for name, reason in refused_groups(engine).items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    with tqdm(unit="image", file=sys.stderr, disable=None) as bar:
        table = tasks.run_sweep(engine, settings, progress=_on(bar))
    table.save(options.out)
    whole = sum(row.n_images == table.conditions.n_images for row in table.rows)
    text = (
        f"{options.out}: {len(table.rows)} cells, {whole} on all images, "
        f"baseline {percent(table.baseline_accuracy)}"
    )
    return table.to_dict(), text


def plan(options: argparse.Namespace) -> tuple[Result, str]:
    """A plan from a table, as a file; with a model, measured."""
    check_writable(options.out)
    if options.model is None and (idle := given(options, "measure")):
        raise PsvitError(
            f"Without MODEL nothing is measured, so {idle} would do nothing. Name the model, or "
            "leave that away."
        )
    table = SensitivityTable.load(options.sweep)
    settings = PlanSettings(
        policy=options.policy,
        memory_saving=options.memory_saving,
        max_drop=options.max_drop,
        scope=options.scope,
        round_to=options.round_to,
        saving=options.saving,
        resource=options.resource,
        locked=dict(options.lock),
        bounds=dict(options.bound),
        budget_evaluations=options.budget_evaluations,
    )
    engine = None
    if options.model is not None:
        options.limit = options.measure
        engine = make_engine(options)
    with tqdm(unit="plan", file=sys.stderr, disable=None) as bar:
        plan, measured = run_plan(engine, table, settings, progress=_on(bar))
    plan.save(options.out)
    summary = table.summary
    drop = planners.predict_drop_interval(table, reached_ratios(summary, plan))
    result = {
        "plan": plan.to_dict(),
        "memory_saving": memory_saving(summary, plan),
        "size": plan_size(summary, plan).to_dict(),
        "predicted_drop": drop.to_dict(),
        "measured": measured.to_dict() if measured else None,
    }
    lines = [
        f"{options.out}: {plan.policy}, saves {result['memory_saving']:.2%} of the memory (exact)",
        f"drop      predicted {drop_text(drop)}, from the groups' own drops",
        f"plan      {plan.note}",
    ]
    return result, "\n".join([*lines, measurement_text(measured)] if measured else lines)


def prune(options: argparse.Namespace) -> tuple[Result, str]:
    """The pruned checkpoint."""
    check_model_file(options.out)
    recovery = _recovery(options)
    plan = PrunePlan.load(options.plan)
    engine = make_engine(options)
    path, report = tasks.prune(engine, plan, options.out, recovery)
    summary = summarize_model(engine)
    size = plan_size(summary, plan)
    result = {
        "out": str(path),
        "file_bytes": path.stat().st_size,
        "memory_saving": memory_saving(summary, plan),
        "size": size.to_dict(),
        "baseline_size": plan_size(summary, None).to_dict(),
        "recovery": report.to_dict() if report else None,
    }
    text = f"{path}: {size_text(size.to_dict())}, saves {result['memory_saving']:.2%} of the memory"
    return result, text + (f"\n{recovery_text(report)}" if report else "")


def finetune(options: argparse.Namespace) -> tuple[Result, str]:
    """The pruned model, trained further."""
    check_model_file(options.out)
    settings = _finetune_settings(options)
    options.batch = None  # of the validation: the card's
    engine = make_engine(options)
    plan = PrunePlan.load(options.plan) if options.plan else None
    with tqdm(unit="step", file=sys.stderr, disable=None) as bar:
        done = run_finetune(
            engine, settings, options.out, plan=plan, recovery=_recovery(options),
            resume=options.resume, progress=_on(bar),
        )  # fmt: skip
    first, best = done.report.epochs[0].val_accuracy, _best_accuracy(done.report)
    assert first is not None
    result = {
        "out": str(done.out),
        "last": str(done.last),
        "file_bytes": done.out.stat().st_size,
        "recovery": done.recovery.to_dict() if done.recovery else None,
        "finetune": done.report.to_dict(),
        "measurement": done.measurement.to_dict(),
    }
    text = (
        f"{done.out}: best after {done.report.best_epoch:g} epochs, validation accuracy "
        f"{percent(first)} -> {percent(best)}; the last epoch's model is {done.last}"
    )
    return result, text


def _best_accuracy(report: FinetuneReport) -> Interval:
    found = next(r.val_accuracy for r in report.epochs if r.epoch == report.best_epoch)
    assert found is not None
    return found


def _finetune_settings(options: argparse.Namespace) -> FinetuneSettings:
    names = {f.name for f in dataclasses.fields(FinetuneSettings)}
    given = {k: v for k, v in vars(options).items() if k in names and v is not None}
    return FinetuneSettings(**given)


def pareto(options: argparse.Namespace) -> tuple[Result, str]:
    """Policies x targets, measured, and the front."""
    check_writable(options.out)
    if options.csv is not None:
        check_writable(options.csv)
    settings = ParetoSettings(
        policies=tuple(options.policies or POLICIES),
        savings=options.savings,
        max_drops=options.max_drops,
        scopes=options.scope,
        ratios=check_ratios(options.ratios),
        criterion=options.criterion,
        round_to=options.round_to,
        recoveries=options.recover,
        calib_images=options.calib_images,
        seed=options.seed,
        profile=options.profile,
    )
    table = SensitivityTable.load(options.sweep) if options.sweep else None
    engine = make_engine(options)
    with tqdm(unit="step", file=sys.stderr, disable=None) as bar:
        archive = run_pareto(engine, settings, table, _on(bar))
    if not options.all:
        archive = archive.chosen()
    archive.save(options.out)
    if options.csv is not None:
        archive.save_csv(options.csv)
    return archive.to_dict(), f"{options.out}: {archive_text(archive)}"


def _recovery(options: argparse.Namespace) -> RecoverySettings:
    settings = RecoverySettings(
        method=options.recover, n_images=options.calib_images, seed=options.seed
    )
    tasks.check_recovery(settings)
    return settings


def _on(bar: tqdm[Any]) -> Progress:
    """Show progress on a bar."""

    def progress(done: int, total: int, what: str) -> None:
        bar.total = total or None  # not known in advance
        bar.set_postfix_str(what, refresh=False)
        bar.update(done - bar.n)

    return progress
