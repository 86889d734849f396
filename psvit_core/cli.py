"""The command line: everything that the app does, for a shell.

``--json`` prints one JSON object on stdout and nothing else; progress goes to stderr. Exit status:
0 done, 1 failed while running, 2 bad input (one line on stderr), 130 cancelled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from psvit_core.cli_more import add_commands
from psvit_core.errors import (
    DataError,
    InvalidPlanError,
    InvalidRatioError,
    PsvitError,
    UnknownNameError,
)
from psvit_core.files import check_writable
from psvit_core.jobs import tasks
from psvit_core.jobs.fronts import DEFAULT_SAVINGS, ParetoSettings, run_pareto
from psvit_core.jobs.tasks import (
    Engine,
    PlanSettings,
    RecoverySettings,
    Subject,
    SweepSettings,
)
from psvit_core.jobs.tuning import run_finetune
from psvit_core.metrics.energy import ENERGY_MODELS, at_energy, energy_model
from psvit_core.pareto import Made, ParetoArchive
from psvit_core.planners import DEFAULT_BUDGET, POLICIES, RESOURCES, SCOPES
from psvit_core.records import (
    RECOVERIES,
    FinetuneReport,
    FinetuneSettings,
    Interval,
    Measurement,
    Profile,
    PrunePlan,
    RecoveryReport,
    SensitivityTable,
)
from psvit_core.sensitivity.table import DEFAULT_RATIOS, MODES, check_ratios
from psvit_core.size import memory_saving, plan_size
from psvit_core.store import Store
from psvit_core.zoo.cards import list_models, model_card

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], tuple[Result, str]] = options.command
        result, text = command(options)
    except PsvitError as error:
        print(f"psvit: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("psvit: cancelled; finished cells are kept.", file=sys.stderr)
        return 130
    print(json.dumps(result) if options.json else text)
    return 0


# ---- commands: options in, (JSON object, text) out -------------------------------------------


def _models(options: argparse.Namespace) -> tuple[Result, str]:
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


def _groups(options: argparse.Namespace) -> tuple[Result, str]:
    engine = _engine(options)
    summary, refused = tasks.summarize_model(engine), tasks.refused_groups(engine)
    size = plan_size(summary, None)
    head = f"{summary.model}: {len(summary.groups)} channel groups, {_size_text(size.to_dict())}"
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


def _evaluate(options: argparse.Namespace) -> tuple[Result, str]:
    energy = energy_model(options.energy, options.energy_mac, options.energy_ac)
    engine = _engine(options)
    result = at_energy(tasks.evaluate(engine, profile=options.profile), energy)
    published = tasks.compare_published(engine.card, result)
    document = result.to_dict()
    if published:
        document["published"] = {"text": published[0], "inside_interval": published[1]}
    text = _measurement_text(result) + (f"\n{_published_text(*published)}" if published else "")
    return document, text


def _sweep(options: argparse.Namespace) -> tuple[Result, str]:
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
    engine = _engine(options)
    if engine.card.published and (
        published := tasks.compare_published(engine.card, tasks.evaluate(engine))
    ):
        print(_published_text(*published), file=sys.stderr)  # before any cell is run
    for name, reason in tasks.refused_groups(engine).items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    with tqdm(unit="image", file=sys.stderr, disable=None) as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        table = tasks.run_sweep(engine, settings, progress=progress)
    table.save(options.out)
    whole = sum(row.n_images == table.conditions.n_images for row in table.rows)
    text = (
        f"{options.out}: {len(table.rows)} cells, {whole} on all images, "
        f"baseline {_percent(table.baseline_accuracy)}"
    )
    return table.to_dict(), text


def _plan(options: argparse.Namespace) -> tuple[Result, str]:
    check_writable(options.out)
    table = SensitivityTable.load(options.sweep)
    settings = PlanSettings(
        policy=options.policy,
        memory_saving=options.memory_saving,
        max_drop=options.max_drop,
        scope=options.scope,
        round_to=options.round_to,
        saving=options.saving,
        resource=options.resource,
        locked=dict(_lock(text) for text in options.lock),
        bounds=dict(_bound(text) for text in options.bound),
        budget_evaluations=options.budget_evaluations,
    )
    engine = None
    if options.model is not None:
        options.limit = options.measure
        engine = _engine(options)
        if tasks.summarize_model(engine).weights_hash != table.summary.weights_hash:
            raise InvalidPlanError(
                f"{options.sweep} was swept on {table.summary.model} with other weights than "
                f"{options.model}. Sweep this model, or name the one that was swept."
            )
    with tqdm(unit="plan", file=sys.stderr, disable=None) as bar:
        plan, measured = tasks.run_plan(
            engine, table, settings, progress=lambda done, total, what: _advance(bar, done)
        )
    plan.save(options.out)
    summary = table.summary
    result = {
        "plan": plan.to_dict(),
        "memory_saving": memory_saving(summary, plan),
        "size": plan_size(summary, plan).to_dict(),
        "measured": measured.to_dict() if measured else None,
    }
    text = (
        f"{options.out}: {plan.policy}, saves {result['memory_saving']:.2%} of the memory, "
        f"{plan.note}"
    )
    return result, text + (f"\n{_measurement_text(measured)}" if measured else "")


def _prune(options: argparse.Namespace) -> tuple[Result, str]:
    check_writable(options.out)
    recovery = _recovery(options)
    plan = PrunePlan.load(options.plan)
    engine = _engine(options)
    path, report = tasks.prune(engine, plan, options.out, recovery)
    summary = tasks.summarize_model(engine)
    size = plan_size(summary, plan)
    result = {
        "out": str(path),
        "file_bytes": path.stat().st_size,
        "memory_saving": memory_saving(summary, plan),
        "size": size.to_dict(),
        "baseline_size": plan_size(summary, None).to_dict(),
        "recovery": report.to_dict() if report else None,
    }
    text = (
        f"{path}: {_size_text(size.to_dict())}, saves {result['memory_saving']:.2%} of the memory"
    )
    return result, text + (f"\n{_recovery_text(report)}" if report else "")


def _finetune(options: argparse.Namespace) -> tuple[Result, str]:
    settings = _finetune_settings(options)
    options.batch = None  # of the validation: the card's
    engine = _engine(options)
    plan = PrunePlan.load(options.plan) if options.plan else None
    with tqdm(unit="step", file=sys.stderr, disable=None) as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        done = run_finetune(
            engine, settings, options.out, plan=plan, recovery=_recovery(options),
            resume=options.resume, progress=progress,
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
        f"{_percent(first)} -> {_percent(best)}; the last epoch's model is {done.last}"
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


def _pareto(options: argparse.Namespace) -> tuple[Result, str]:
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
    engine = _engine(options)
    with tqdm(unit="step", file=sys.stderr, disable=None) as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        archive = run_pareto(engine, settings, table, progress)
    if not options.all:
        archive = archive.chosen()
    archive.save(options.out)
    if options.csv is not None:
        archive.save_csv(options.csv)
    return archive.to_dict(), f"{options.out}: {_archive_text(archive)}"


# ---- helpers ---------------------------------------------------------------------------------


def _engine(options: argparse.Namespace) -> Engine:
    from psvit_core.runtime import use_default_threads

    use_default_threads()
    subject = Subject(
        model=options.model,
        checkpoint=options.checkpoint,
        data=getattr(options, "data", None),
        split=getattr(options, "split", "val"),
        limit=getattr(options, "limit", None),
        batch=getattr(options, "batch", None),
        precision=getattr(options, "precision", "float32"),
        device=getattr(options, "device", "cpu"),
        time_steps=getattr(options, "time_steps", None),
        image_size=options.image_size,
        num_heads=options.num_heads,
        ema=options.ema,
        workers=getattr(options, "workers", 0),
        bad_images=getattr(options, "bad_images", "stop"),
        plugin=_absolute(options.plugin),
    )
    return Engine(subject, Store(), warn=lambda text: print(f"psvit: {text}", file=sys.stderr))


def _absolute(plugin: str | None) -> str | None:
    """A plugin's file as any process finds it; a module's name as it is."""
    return str(Path(plugin).resolve()) if plugin and Path(plugin).suffix == ".py" else plugin


def _advance(bar: tqdm[Any], done: int) -> None:
    bar.update(done - bar.n)


def _size_text(size: Result) -> str:
    return (
        f"{size['params']:,} parameters, {size['bytes'] / 1e6:.2f} MB, {size['macs']:,} MACs a step"
    )


def _percent(interval: Interval) -> str:
    return f"{interval.value:.2%} [{interval.low:.2%}, {interval.high:.2%}]"


def _measurement_text(m: Measurement) -> str:
    c = m.conditions
    energy = f"{m.energy_pj / 1e6:.2f} uJ"
    how = f"T={c.T}, batch {c.batch}, {c.precision}, {c.device}"
    lines = [
        f"accuracy  {_percent(m.accuracy)} (95 %)",
        f"measured  {c.data} {c.split}, {c.n_images} images, {how}",
        f"size      {_size_text(m.size.to_dict())}, memory saving {m.memory_saving:.2%}",
        f"compute   {m.sops:,.0f} SOPs an image, theoretical {energy} ({m.energy_model.name})",
    ]
    if m.drop is not None:
        lines.append(
            f"drop      {m.drop.value:+.2f} pp [{m.drop.low:+.2f}, {m.drop.high:+.2f}] paired"
        )
    if m.profile is not None:
        lines += _profile_lines(m.profile)
    return "\n".join(lines)


def _profile_lines(profile: Profile) -> list[str]:
    """Run-time memory and latency, each with how it is meant."""
    m = profile.machine
    peaks = profile.peak_activation_bytes.items()
    lines = [
        f"state     {profile.state_bytes:,} bytes of membrane potentials an image",
        "peak      " + ", ".join(f"batch {b}: {n / 1e6:.2f} MB" for b, n in peaks)
        + " of activations",
    ]  # fmt: skip
    lines += [
        f"latency   batch {batch}: {t.median:.2f} ms [quartiles {t.low:.2f}, {t.high:.2f}], "
        f"{t.n_runs} runs"
        for batch, t in profile.latency_ms.items()
    ]
    return [
        *lines,
        f"          on {m.processor} ({m.device}), {m.threads} threads, {m.kernels} LIF",
    ]


def _archive_text(archive: ParetoArchive) -> str:
    """The front of accuracy against bytes, one line a plan."""
    front, knee = archive.front(), archive.knee()
    lines = [f"{len(archive.points)} measured plans, {len(front)} on the front of bytes"]
    for p in front:
        m, way = p.point.measurement, p.point.made[0]
        marks = ("  overlaps a neighbour" if p.overlaps else "") + ("  knee" if p == knee else "")
        lines.append(
            f"{m.size.bytes / 1e6:9.3f} MB  saves {m.memory_saving:6.2%}  "
            f"{_percent(m.accuracy)}  {_way_text(way)}{marks}"
        )
    lines += [
        f"not reached: {u.made.policy} ({u.made.scope}), {u.made.target}: {u.reason}"
        for u in archive.unreached
    ]
    return "\n".join(lines)


def _way_text(way: Made) -> str:
    """Who chose a plan, and what was done after pruning."""
    recovery = f"recovery {way.recovery}" if way.recovery != "none" else ""
    return ", ".join(filter(None, [way.policy, recovery, way.finetuning]))


def _recovery(options: argparse.Namespace) -> RecoverySettings:
    settings = RecoverySettings(
        method=options.recover, n_images=options.calib_images, seed=options.seed
    )
    tasks.check_recovery(settings)
    return settings


def _recovery_text(r: RecoveryReport) -> str:
    return (
        f"recovery  {r.used}: KL to the original {r.kl_before:.4f} -> {r.kl_after:.4f} nats on "
        f"{r.n_held_out} calibration images, {sum(r.seconds.values()):.1f} s"
    )


def _published_text(line: str, inside: bool) -> str:
    if inside:
        return f"baseline  {line}"
    return (
        f"WARNING   {line}: outside the interval. Check weights, --time-steps, --image-size and "
        "the images before trusting a sweep."
    )


def _bytes(text: str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError):
        size = 0
    if size < 1:
        raise DataError(f"--memory-budget is a size such as 256MB or 2GB; got {text!r}.")
    return size


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidRatioError(
            f"Ratios and targets are lists of fractions, such as 0.25,0.5; got {text!r}."
        ) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _lock(text: str) -> tuple[str, float]:
    group, _, ratio = text.partition("=")
    try:
        return group, float(ratio or 0)
    except ValueError:
        raise InvalidRatioError(
            f"--lock is GROUP or GROUP=RATIO, such as block.0.mlp.hidden=0.25; got {text!r}."
        ) from None


def _bound(text: str) -> tuple[str, tuple[float, float]]:
    group, _, limits = text.partition("=")
    low, _, high = limits.partition(":")
    try:
        return group, (float(low), float(high))
    except ValueError:
        raise InvalidRatioError(
            f"--bound is GROUP=LOW:HIGH, such as block.0.mlp.hidden=0.1:0.5; got {text!r}."
        ) from None


class _Parser(argparse.ArgumentParser):
    """Ends with one line, as all other errors."""

    def error(self, message: str) -> Any:
        self.exit(2, f"psvit: {message}. See {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m psvit_core", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        return command

    _plugin_argument(add("models", _models, "list the registered models"))
    _model_arguments(add("groups", _groups, "list a model's channel groups"))

    evaluate = add("evaluate", _evaluate, "measure a model")
    _model_arguments(evaluate)
    _data_arguments(evaluate)
    evaluate.add_argument(
        "--profile", action="store_true", help="also run-time memory and latency on this machine"
    )
    evaluate.add_argument(
        "--energy", default=next(iter(ENERGY_MODELS)), metavar="NAME",
        help=f"energy model: {', '.join(ENERGY_MODELS)}",
    )  # fmt: skip
    evaluate.add_argument("--energy-mac", type=float, metavar="PJ", help="pJ an MAC, instead")
    evaluate.add_argument("--energy-ac", type=float, metavar="PJ", help="pJ an accumulate, instead")

    sweep = add("sweep", _sweep, "measure every group at every prune ratio; resumes")
    _model_arguments(sweep)
    _data_arguments(sweep)
    sweep.add_argument(
        "--ratios", type=_ratios, default=DEFAULT_RATIOS, help="fractions removed, e.g. 0.25,0.5"
    )
    sweep.add_argument(
        "--criterion",
        metavar="NAME",
        help="what ranks a group's units; by weights: l1, l2, l2_group, fpgm, bn_scale; by "
        "calibration images: firing_rate, activation_weight, taylor, reconstruction; or random "
        "(default: reconstruction, or l2_group where the data has no calibration images)",
    )
    sweep.add_argument(
        "--calib-images", type=int, default=256, metavar="N", help="for criteria that need images"
    )
    sweep.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="0: calibrate on the calib split; others: on images drawn from the training split",
    )
    sweep.add_argument(
        "--mode",
        default="exact",
        help="exact: every image in every cell; progressive: 64 images in every cell, then more "
        "where little is known",
    )
    sweep.add_argument(
        "--memory-budget",
        type=_bytes,
        metavar="SIZE",
        help="for what is computed at one time, e.g. 256MB or 2GB (default: a quarter of the free)",
    )
    sweep.add_argument("--out", required=True, help="JSON file for the table")

    plan = add("plan", _plan, "choose what to prune; with MODEL and --data, measured")
    _model_arguments(plan, optional=True)
    _data_arguments(plan, limit=False)
    plan.add_argument("--sweep", required=True, help="table written by sweep")
    plan.add_argument("--policy", default="psvit", help=f"one of {', '.join(POLICIES)}")
    target = plan.add_mutually_exclusive_group(required=True)
    target.add_argument("--memory-saving", type=float, help="fraction of bytes to save, e.g. 0.224")
    target.add_argument("--max-drop", type=float, help="accuracy drop allowed, e.g. 0.03")
    target.add_argument("--saving", type=float, help="fraction of --resource to save")
    plan.add_argument("--resource", default="memory", help=f"one of {', '.join(RESOURCES)}")
    plan.add_argument(
        "--lock", action="append", default=[], metavar="GROUP[=RATIO]",
        help="keep a group at this prune ratio (0: whole); repeatable",
    )  # fmt: skip
    plan.add_argument(
        "--bound", action="append", default=[], metavar="GROUP=LOW:HIGH",
        help="least and largest prune ratio of a group; repeatable",
    )  # fmt: skip
    plan.add_argument(
        "--budget-evaluations", type=int, default=DEFAULT_BUDGET, metavar="N",
        help=f"most plans that optimal measures in a scope (default {DEFAULT_BUDGET})",
    )  # fmt: skip
    plan.add_argument("--scope", default="all", help=f"groups to prune: {', '.join(SCOPES)}")
    plan.add_argument("--round-to", type=int, default=1, help="keep widths at multiples")
    plan.add_argument("--measure", type=int, metavar="N", help="measure on N images (default all)")
    plan.add_argument("--out", required=True, help="JSON file for the plan")

    pareto = add("pareto", _pareto, "measure policies x targets and keep the front; resumes")
    _model_arguments(pareto)
    _data_arguments(pareto)
    pareto.add_argument("--policies", type=_names, help=f"of {', '.join(POLICIES)} (all)")
    pareto.add_argument("--savings", type=_ratios, default=DEFAULT_SAVINGS, help="memory savings")
    pareto.add_argument("--max-drops", type=_ratios, default=(), help="accuracy drops as targets")
    pareto.add_argument("--scope", type=_names, default=("all",), help=f"of {', '.join(SCOPES)}")
    pareto.add_argument(
        "--recovery", "--recover", dest="recover", type=_names, default=("none",),
        help=f"of every chosen plan, besides itself: {', '.join(RECOVERIES)}",
    )  # fmt: skip
    _calib_arguments(pareto)
    pareto.add_argument("--sweep", help="table written by sweep; swept now where not given")
    pareto.add_argument("--ratios", type=_ratios, default=DEFAULT_RATIOS, help="of that sweep")
    pareto.add_argument("--criterion", metavar="NAME", help="of that sweep; default as of sweep")
    pareto.add_argument("--round-to", type=int, default=1, help="keep widths at multiples")
    pareto.add_argument("--profile", action="store_true", help="also latency and memory here")
    pareto.add_argument("--all", action="store_true", help="write also plans tried on the way")
    pareto.add_argument("--csv", metavar="F", help="also a table for spreadsheets")
    pareto.add_argument("--out", required=True, help="JSON file for the archive")

    prune = add("prune", _prune, "apply a plan and write the pruned checkpoint")
    _model_arguments(prune)
    _data_arguments(prune)
    _recovery_arguments(prune)
    prune.add_argument("--plan", required=True, help="plan written by plan")
    prune.add_argument("--out", required=True, help=".safetensors file for the pruned model")

    finetune = add("finetune", _finetune, "train a pruned model further; resumes")
    _model_arguments(finetune)
    _data_arguments(finetune, batch=f"{FinetuneSettings().batch}, of the training")
    finetune.add_argument("--plan", metavar="F", help="prune MODEL by this plan first")
    _recovery_arguments(finetune)
    _finetune_arguments(finetune)
    finetune.add_argument("--out", required=True, help=".safetensors file for the best epoch")
    add_commands(add, _model_arguments, _data_arguments, _engine)
    return parser


def _finetune_arguments(command: argparse.ArgumentParser) -> None:
    default = FinetuneSettings()

    def add(name: str, kind: type, text: str) -> None:
        value = getattr(default, name)
        shown = "" if value is None else f" (default {value})"
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{text}{shown}")

    add("epochs", float, "a fraction is that fraction of an epoch's steps")
    add("lr", float, "largest learning rate")
    add("accumulate", int, "steps whose gradients are added up for one update")
    add("weight_decay", float, "of all but biases and BatchNorms")
    add("warmup", float, "fraction of the updates over which the learning rate rises")
    add("clip", float, "largest norm of the gradient; 0: any")
    add("label_smoothing", float, "of the labels")
    add("augment", str, "auto, affine, flip or none")
    add("mixup", float, "alpha of mixup; 0: off")
    add("erase", float, "probability of random erasing")
    add("alpha", float, "weight of the distillation")
    add("temperature", float, "of the distillation")
    add("patience", int, "stop after so many epochs without a better validation accuracy")
    add("train_images", int, "train on a stratified subset")
    command.add_argument(
        "--distil-from",
        dest="teacher",
        metavar="MODEL",
        help="a model's name or file, none, or original (default) where its weights are here",
    )
    command.add_argument(
        "--distil-checkpoint", dest="teacher_checkpoint", metavar="F", help="weights of that name"
    )
    command.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on after the last epoch of a stopped training with the same settings",
    )


def _recovery_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--recover",
        default="none",
        help=f"after pruning, without training: {', '.join(RECOVERIES)} (default none)",
    )
    _calib_arguments(command)


def _calib_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--calib-images", type=int, default=256, metavar="N", help="training images that it takes"
    )
    command.add_argument("--seed", type=int, default=0, help="chooses those images (default 0)")


def _plugin_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--plugin",
        metavar="MODULE_OR_FILE",
        help="your Python module or .py file that registers a model of your own; it is run",
    )


def _model_arguments(command: argparse.ArgumentParser, optional: bool = False) -> None:
    _plugin_argument(command)
    command.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if optional else None,
        help="registered name, or a pruned .safetensors",
    )
    command.add_argument("--checkpoint", metavar="F", help="weights for a registered name")
    command.add_argument("--ema", action="store_true", help="take the file's moving average")
    command.add_argument("--num-heads", type=int, metavar="H", help="where not the card's")
    command.add_argument("--image-size", type=int, metavar="PX", help="side, where not the card's")


def _data_arguments(
    command: argparse.ArgumentParser, limit: bool = True, batch: str = "the model card's"
) -> None:
    command.add_argument(
        "--data", metavar="SPEC", help="digits[:distorted], (cifar10|folder|imagenet):DIR, npz:FILE"
    )
    command.add_argument("--split", default="val", help="train, calib, val (default) or test")
    if limit:
        command.add_argument("--limit", type=int, metavar="N", help="a stratified subset")
    command.add_argument("--batch", type=int, metavar="B", help=f"default: {batch}")
    command.add_argument("--precision", default="float32", help="float32, float64 or autocast")
    command.add_argument("--time-steps", type=int, metavar="T")
    command.add_argument("--device", default="cpu", metavar="D", help="cpu or cuda")
    command.add_argument("--workers", type=int, default=0, metavar="N", help="decoding processes")
    command.add_argument(
        "--bad-images", default="stop", metavar="WAY", help="stop (default) or skip unreadable ones"
    )
