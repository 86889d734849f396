"""The commands that write a pruned file: ``prune`` and ``finetune``."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from tqdm import tqdm

from psvit_core.cli.options import (
    add_data_arguments,
    add_engine_arguments,
    add_model_arguments,
    add_recovery_arguments,
    parse_path,
)
from psvit_core.cli.output import (
    measurement_text,
    percent,
    recovery_text,
    show_on,
    size_text,
)
from psvit_core.cli.session import Result, make_session, remark_if_unkept
from psvit_core.files import check_model_file
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import (
    FinetuneReport,
    FinetuneSettings,
    PrunePlan,
    RecoverySettings,
    check_recovery,
)
from psvit_core.tasks.finetune import (
    FinetuneCallbacks,
    FinetuneTask,
    WrittenFinetuning,
    run_finetune,
)
from psvit_core.tasks.prune import write_pruned
from psvit_core.tasks.session import Session, summarize_model
from psvit_core.tasks.trials import MOST_TRIALS, VARIED, parse_values, score, trial_text, vary
from psvit_core.tasks.written import measure_written


def add_prune_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prune``."""
    add_model_arguments(command)
    add_data_arguments(command)
    add_recovery_arguments(command)
    add_engine_arguments(command)
    command.add_argument(
        "--plan", required=True, type=parse_path, metavar="F", help="plan file written by plan"
    )
    command.add_argument(
        "--out",
        required=True,
        type=parse_path,
        metavar="F",
        help=".safetensors file for the pruned model",
    )
    command.add_argument(
        "--measure",
        action="store_true",
        help="measure the written file on all images of the split, and record the result in it",
    )


def add_finetune_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``finetune``."""
    default = FinetuneSettings()
    add_model_arguments(command)
    add_data_arguments(command, batch=f"{default.batch}, in training")
    command.add_argument(
        "--plan", type=parse_path, metavar="F", help="prune MODEL by this plan first"
    )
    add_recovery_arguments(command)
    add_engine_arguments(command)
    command.add_argument(
        "--out",
        required=True,
        type=parse_path,
        metavar="F",
        help=".safetensors file for the best epoch's model",
    )

    def add(name: str, kind: type, text: str) -> None:
        value = getattr(default, name)
        shown = "" if value is None else f" (default {value})"
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{text}{shown}")

    add("epochs", float, "number of epochs; may be a fraction")
    add("lr", float, "peak learning rate")
    add("accumulate", int, "batches per weight update")
    add("weight_decay", float, "weight decay of all but biases and BatchNorms")
    add("warmup", float, "fraction of the updates with a rising learning rate")
    add("clip", float, "maximum norm of the gradient; 0 does not clip")
    add("label_smoothing", float, "label smoothing")
    add("augment", str, "auto, affine, crop, flip or none")
    add("mixup", float, "alpha of mixup; 0 turns it off")
    add("erase", float, "probability of random erasing")
    add("alpha", float, "weight of the distillation loss")
    add("temperature", float, "temperature of the distillation")
    add("patience", int, "stop after this many epochs without a better validation accuracy")
    add("train_images", int, "train on a stratified subset of this many images")
    _teacher_arguments(command)
    command.add_argument(
        "--try",
        dest="tried",
        action="append",
        default=[],
        metavar="SETTING=V1,V2",
        help="train with each of these values, e.g. lr=0.001,0.0003, and keep the best by "
        "validation accuracy; repeatable: all combinations, at most "
        f"{MOST_TRIALS}; with --engine ray side by side. Settings: {', '.join(VARIED)}",
    )
    command.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue a stopped training with the same settings",
    )


def _teacher_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--distil-from",
        dest="teacher",
        type=parse_path,
        metavar="MODEL",
        help="a model's name or file, none, or original (default): the unpruned model, if its "
        "weights are available",
    )
    command.add_argument(
        "--distil-checkpoint",
        dest="teacher_checkpoint",
        type=parse_path,
        metavar="F",
        help="weights for a registered name in --distil-from",
    )


def prune(options: argparse.Namespace) -> tuple[Result, str]:
    """Prune a model and write the checkpoint."""
    check_model_file(options.out)
    check_recovery(_chosen_recovery(options))
    plan = PrunePlan.load(options.plan)
    session = make_session(options)
    recovery = _recovery(session, plan, options)
    if options.measure:
        session.data  # noqa: B018  # without images it fails here, before the work
    remark_if_unkept(options, session)
    path, report = write_pruned(session, plan, options.out, recovery)
    measured = measure_written(session, plan, path)[1] if options.measure else None
    summary = summarize_model(session)
    size = plan_size(summary, plan)
    result = {
        "out": str(path),
        "file_bytes": path.stat().st_size,
        "memory_saving": memory_saving(summary, plan),
        "size": size.to_dict(),
        "baseline_size": plan_size(summary, None).to_dict(),
        "recovery": report.to_dict() if report else None,
        "measurement": measured.to_dict() if measured else None,
    }
    lines = [f"{path}: {size_text(size)}, saves {result['memory_saving']:.2%} of the memory"]
    lines += [recovery_text(report)] if report else []
    lines += [measurement_text(measured)] if measured else []
    return result, "\n".join(lines)


def finetune(options: argparse.Namespace) -> tuple[Result, str]:
    """Train a pruned model, maybe with several settings; write the best and the last epoch's."""
    check_model_file(options.out)
    check_recovery(_chosen_recovery(options))
    settings = _finetune_settings(options)
    trials = _trials(settings, options.tried)
    options.batch = None  # it was for training; validation uses the card's
    session = make_session(options)
    remark_if_unkept(options, session)
    plan = PrunePlan.load(options.plan) if options.plan else None
    task = FinetuneTask(
        settings=settings,
        out=options.out,
        plan=plan,
        recovery=_recovery(session, plan, options) if plan else _chosen_recovery(options),
        resume=options.resume,
        trials=trials,
    )
    with tqdm(unit="step", file=sys.stderr, disable=None) as bar:
        done = run_finetune(session, task, FinetuneCallbacks(progress=show_on(bar)))
    first, best = done.report.epochs[0].val_accuracy, done.report.best_accuracy
    assert first is not None
    result = {
        "out": str(done.out),
        "last": str(done.last),
        "file_bytes": done.out.stat().st_size,
        "recovery": done.recovery.to_dict() if done.recovery else None,
        "finetune": done.report.to_dict(),
        "measurement": done.measurement.to_dict(),
        "trials": [report.to_dict() for report in done.trials],
    }
    text = (
        f"{done.out}: best after {done.report.best_epoch:g} epochs, validation accuracy "
        f"{percent(first)} -> {percent(best)}; the last epoch's model is {done.last}"
    )
    return result, "\n".join([*_trial_lines(done), text])


def _trials(settings: FinetuneSettings, tried: list[str]) -> tuple[FinetuneSettings, ...]:
    """Return the settings of all trials; none if nothing is to be tried."""
    values: dict[str, tuple[object, ...]] = {}
    for name, given in map(parse_values, tried):
        values[name] = (*values.get(name, ()), *given)
    return vary(settings, values) if values else ()


def _trial_lines(done: WrittenFinetuning) -> list[str]:
    """List the trials, the best first."""
    if not done.trials:
        return []
    settings = [report.settings for report in done.trials]

    def line(report: FinetuneReport) -> str:
        best = f"best after {report.best_epoch:g} epochs, {percent(report.best_accuracy)}"
        return f"{trial_text(report.settings, settings)}: {best}"

    ordered = sorted(done.trials, key=score, reverse=True)
    caution = (
        f"The best of {len(ordered)} was chosen by its accuracy on the validation images, so this "
        f"accuracy is biased upward. Measure it with psvit evaluate {done.out} --split test"
    )
    first, *others = map(line, ordered)
    return [f"{first} (kept)", *others, caution]


def _finetune_settings(options: argparse.Namespace) -> FinetuneSettings:
    names = {f.name for f in dataclasses.fields(FinetuneSettings)}
    given = {k: v for k, v in vars(options).items() if k in names and v is not None}
    return FinetuneSettings(**given)


def _chosen_recovery(options: argparse.Namespace) -> RecoverySettings:
    return RecoverySettings(
        method=options.recover or "none", n_images=options.calib_images, seed=options.seed
    )


def _recovery(session: Session, plan: PrunePlan, options: argparse.Namespace) -> RecoverySettings:
    """Return the recovery that the user chose, or the default one, and say which it is."""
    if options.recover is not None:
        return _chosen_recovery(options)
    plan.check(session.description.groups, session.description.weights_hash)
    wanted = RecoverySettings(method="auto", n_images=options.calib_images, seed=options.seed)
    settings, reason = session.available_recovery(wanted)
    said = f"pruned without recovery: {reason}"
    if not reason:
        said = (
            f"recovering with {settings.method} on {settings.n_images} calibration images, which "
            "may take minutes; --recover none skips it"
        )
    print(f"psvit: {said}", file=sys.stderr)
    return settings
