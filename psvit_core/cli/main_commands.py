"""Commands from a model to a pruned checkpoint: options in, (JSON object, text) out."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from tqdm import tqdm

from psvit_core import planners
from psvit_core.cli.output import (
    archive_text,
    drop_text,
    duration_text,
    measurement_text,
    percent,
    published_text,
    show_on,
    size_text,
)
from psvit_core.cli.session import (
    Result,
    follow_recovery,
    follow_recovery_to_plan,
    given_options,
    make_session,
    remark_if_unkept,
)
from psvit_core.errors import InvalidRatioError, PsvitError, UnknownNameError
from psvit_core.files import check_writable
from psvit_core.metrics.energy import at_energy, energy_model
from psvit_core.plan.build import reached_ratios
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import (
    POLICIES,
    LatencyTable,
    ParetoSettings,
    PlanSettings,
    PrunePlan,
    SensitivityTable,
    SweepSettings,
    check_counts,
)
from psvit_core.sensitivity.spec import MODES, check_ratios
from psvit_core.tasks import evaluate as evaluation
from psvit_core.tasks.pareto import run_pareto
from psvit_core.tasks.plan import (
    PlanningEstimate,
    counting_note,
    planning_estimate,
    run_plan,
)
from psvit_core.tasks.quantize import as_stored
from psvit_core.tasks.session import refused_groups, summarize_model
from psvit_core.tasks.sweep import run_sweep
from psvit_core.zoo.cards import list_models, model_card


def models(options: argparse.Namespace) -> tuple[Result, str]:
    """List the registered models."""
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
            "available": card.available,
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
    """List a model's channel groups, and those that cannot be pruned."""
    session = make_session(options)
    summary, refused = summarize_model(session), refused_groups(session)
    size = plan_size(summary, None)
    head = f"{summary.model}: {len(summary.groups)} channel groups, {size_text(size)}"
    lines = [
        f"{g.group_id:36} {g.n_units:5} units  {'per head' if g.heads else '':8} {g.label}"
        for g in summary.groups
    ]
    lines += [_refused_line(name, reason) for name, reason in refused.items()]
    result = {
        "model": summary.model,
        "weights_hash": summary.weights_hash,
        "size": size.to_dict(),
        "groups": [g.to_dict() for g in summary.groups],
        "refused": refused,
        "unused": [t.name for t in summary.shapes.tensors if t.role == "unused"],
    }
    return result, "\n".join([head, *lines])


def _refused_line(name: str, reason: str) -> str:
    return f"not prunable: {name}: {reason}"


def evaluate(options: argparse.Namespace) -> tuple[Result, str]:
    """Measure a model or a plan; compare the model with its published accuracy, if there is one."""
    energy = energy_model(
        options.energy, options.energy_mac, options.energy_ac, options.energy_byte
    )
    plan = PrunePlan.load(options.plan) if options.plan else None
    if plan is None and options.recover is not None:
        raise PsvitError(
            "--recover is the recovery of a pruned model, and nothing is pruned without --plan. "
            "Add a plan, or omit --recover."
        )
    session = make_session(options)
    if plan is not None:
        plan.check(session.description.groups, session.description.weights_hash)
        follow_recovery(session, options.recover)
    memory = evaluation.count_memory(session, plan) if energy.byte_pj else None
    remark_if_unkept(options, session)
    found = evaluation.evaluate(session, plan, profile=options.profile)
    result = at_energy(dataclasses.replace(found, memory=memory), energy)
    if plan is None:
        result = as_stored(result, session.model)
    published = evaluation.compare_published(session.card, result) if plan is None else None
    document = result.to_dict()
    if published:
        document["published"] = {"text": published[0], "inside_interval": published[1]}
    text = measurement_text(result) + (f"\n{published_text(*published)}" if published else "")
    return document, text


def sweep(options: argparse.Namespace) -> tuple[Result, str]:
    """Write the sensitivity table to a file."""
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
    session = make_session(options)
    follow_recovery_to_plan(session, options.recover)
    if session.card.published and (
        published := evaluation.compare_published(session.card, evaluation.evaluate(session))
    ):
        print(published_text(*published), file=sys.stderr)  # before any cell is run
    for name, reason in refused_groups(session).items():
        print(_refused_line(name, reason), file=sys.stderr)
    with tqdm(unit="image", file=sys.stderr, disable=None) as bar:
        table = run_sweep(session, settings, progress=show_on(bar))
    table.save(options.out)
    whole = sum(row.n_images == table.conditions.n_images for row in table.rows)
    text = (
        f"{options.out}: {len(table.rows)} cells, {whole} on all images, "
        f"baseline {percent(table.baseline_accuracy)}"
    )
    if table.conditions.recovery != "none":
        text += ", readers refitted in every cell (--recover none: as pruned)"
    if table.precision_check is not None:
        text += f"\n{table.conditions.precision}: {table.precision_check.text}"
    return table.to_dict(), text


def plan(options: argparse.Namespace) -> tuple[Result, str]:
    """Choose a plan from a table and write it to a file; with a model, measure it."""
    check_writable(options.out)
    if options.model is None and (idle := given_options(options, "measure", "recover")):
        raise PsvitError(
            f"Without MODEL nothing is measured, so {idle} would have no effect. Name the model, "
            "or omit these options."
        )
    settings = _plan_settings(options)
    table = SensitivityTable.load(options.sweep)
    latency = LatencyTable.load(options.latency) if options.latency else None
    session = None
    if options.model is not None:
        options.limit = options.measure
        session = make_session(options)
        remark_if_unkept(options, session)
        follow_recovery_to_plan(session, options.recover, table)
        table = planners.for_recovery(table, session.recovery.method)
        print(_planning_text(planning_estimate(session, table, settings)), file=sys.stderr)
    with tqdm(unit="plan", file=sys.stderr, disable=None) as bar:
        plan, measured = run_plan(session, table, settings, progress=show_on(bar), latency=latency)
    plan.save(options.out)
    summary = table.summary
    drop = planners.predict_drop_interval(table, reached_ratios(summary, plan))
    result = {
        "plan": plan.to_dict(),
        "memory_saving": memory_saving(summary, plan),
        "size": plan_size(summary, plan).to_dict(),
        "predicted_drop": drop.to_dict(),
        "measured": measured.to_dict() if measured else None,
        "limits": settings.target.text,
    }
    lines = [
        f"{options.out}: {plan.policy}, saves {result['memory_saving']:.2%} of the memory (exact)",
        f"drop      predicted {drop_text(drop)}, {planners.prediction_note(table)}",
        f"limits    {settings.target.text}",
        f"plan      {plan.note}",
    ]
    if note := counting_note(table):
        result["note"] = note
        lines.append(f"note      {note}")
    return result, "\n".join([*lines, measurement_text(measured)] if measured else lines)


def _plan_settings(options: argparse.Namespace) -> PlanSettings:
    """Return the settings of the options of plan; all limits are checked together."""
    if options.memory_saving is None and options.max_drop is None and not options.saving:
        raise InvalidRatioError(
            "A target is required: --memory-saving, --saving or --max-drop, or several of them."
        )
    named = [(resource or options.resource, value) for resource, value in options.saving]
    first = named[0] if named else (options.resource, None)
    settings = PlanSettings(
        policy=options.policy,
        memory_saving=options.memory_saving,
        max_drop=options.max_drop,
        scope=options.scope,
        round_to=options.round_to,
        saving=first[1],
        resource=first[0],
        savings=dict(named[1:]),
        locked=dict(options.lock),
        bounds=dict(options.bound),
        budget_evaluations=options.budget_evaluations,
        budget_seconds=options.budget_seconds,
    )
    if len(dict(named)) < len(named):
        raise InvalidRatioError("--saving names a resource twice. Give the larger saving.")
    check_counts(round_to=settings.round_to, budget=settings.budget_evaluations)
    _ = settings.target  # raises if a limit is out of range
    return settings


def _planning_text(estimate: PlanningEstimate) -> str:
    """Return what planning with measurements will take, for stderr."""
    plans = "1 plan" if estimate.n_plans == 1 else f"up to {estimate.n_plans} plans"
    text = (
        f"psvit: measures {plans} on {estimate.n_images} images, at most about "
        f"{duration_text(estimate.seconds)}"
    )
    if estimate.n_unlimited > estimate.n_plans:
        text += (
            f"; without the budget it would be up to {estimate.n_unlimited} plans "
            "(--budget-evaluations)"
        )
    return f"{text}. --budget-seconds stops earlier."


def pareto(options: argparse.Namespace) -> tuple[Result, str]:
    """Measure policies x targets and write the archive."""
    check_writable(options.out)
    if options.csv is not None:
        check_writable(options.csv)
    several: tuple[str, ...] = options.recover or ()
    settings = ParetoSettings(
        policies=tuple(options.policies or POLICIES),
        savings=options.savings,
        max_drops=options.max_drops,
        scopes=options.scope,
        ratios=check_ratios(options.ratios),
        criterion=options.criterion,
        round_to=options.round_to,
        recoveries=several if len(several) > 1 else ("none",),
        calib_images=options.calib_images,
        seed=options.seed,
        profile=options.profile,
    )
    table = SensitivityTable.load(options.sweep) if options.sweep else None
    session = make_session(options)
    if len(several) < 2:
        follow_recovery_to_plan(session, several[0] if several else None, table)
    with tqdm(unit="step", file=sys.stderr, disable=None) as bar:
        archive = run_pareto(session, settings, table, show_on(bar))
    if not options.all:
        archive = archive.chosen()
    archive.save(options.out)
    if options.csv is not None:
        archive.save_csv(options.csv)
    return archive.to_dict(), f"{options.out}: {archive_text(archive)}"
