"""The command ``fits``: whether a network fits a device by its bytes."""

from __future__ import annotations

import argparse

from psvit_core.cli.options import add_model_arguments, parse_path
from psvit_core.cli.session import Result, make_session
from psvit_core.errors import InvalidSizeError
from psvit_core.metrics.devices import (
    DEVICES,
    NEUROMORPHIC,
    find_devices,
    own_device,
    parse_size,
)
from psvit_core.records import (
    Fit,
    FitReport,
    Limit,
    PrunePlan,
    Schedule,
    SpikeExpansion,
    TargetDevice,
)

#: As they are typed, and as ``plan.size`` names them.
WEIGHTS = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
_SHOWN = 8  # layers and positions that the text lists


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(command)
    command.add_argument(
        "--plan", type=parse_path, metavar="F", help="prune MODEL by this plan first"
    )
    command.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="NAME",
        help=f"{', '.join(DEVICES)}; repeatable (default: all, unless --ram is given)",
    )
    command.add_argument(
        "--flash",
        type=parse_size,
        metavar="BYTES",
        help="bytes of your own device for the weights, e.g. 2MiB; omit if they share its RAM",
    )
    command.add_argument(
        "--ram",
        type=parse_size,
        metavar="BYTES",
        help="bytes of your own device's RAM, e.g. 524288, 512KiB or 512KB",
    )
    command.add_argument(
        "--weights",
        choices=tuple(WEIGHTS),
        default="fp32",
        help="precision of the weights (default fp32); the sizes of fp16 and int8 are arithmetic, "
        "nothing is quantized",
    )


def fits(options: argparse.Namespace) -> tuple[Result, str]:
    """Compare the bytes that a model needs with devices."""
    devices = _devices(options)  # before the model is read
    plan = PrunePlan.load(options.plan) if options.plan else None
    session = make_session(options)
    from psvit_core.metrics.fits import check_fit
    from psvit_core.surgery import apply_plan

    model = session.model if plan is None else apply_plan(session.model, plan)
    report = check_fit(model, devices, weights=WEIGHTS[options.weights])
    shown = [{**fit.to_dict(), "limits": [_limit(x) for x in fit.limits]} for fit in report.fits]
    extra = {"ram_bytes": report.ram_bytes, "fits": shown}
    return {**report.to_dict(), **extra}, _text(report)


def _devices(options: argparse.Namespace) -> tuple[TargetDevice, ...]:
    if options.flash is not None and options.ram is None:
        raise InvalidSizeError(
            f"--flash {options.flash} has no --ram beside it. Give both, or --ram alone if the "
            "weights share it."
        )
    if options.ram is None:
        return find_devices(options.device)
    own = own_device(options.flash, options.ram)
    return (own, *(find_devices(options.device) if options.device else ()))


def _limit(limit: Limit) -> Result:
    return {**limit.to_dict(), "spare_bytes": limit.spare_bytes}


# ---- text ------------------------------------------------------------------------------------


def _text(report: FitReport) -> str:
    arithmetic = ", by arithmetic: nothing is quantized or measured" if report.arithmetic else ""
    lines = [
        f"{report.model}, one image",
        f"weights   {report.weight_bytes:,} bytes ({report.weights}{arithmetic})",
        *_largest(report.layers),
    ]
    for schedule in report.schedules:
        lines += _schedule_lines(schedule)
    if (expansion := report.expansion) is not None:
        lines += _expansion_lines(expansion)
    lines.append(f"devices   weights against flash, {report.schedule} against RAM")
    width = max(len(fit.device.name) for fit in report.fits)
    lines += [_fit_line(fit, width) for fit in report.fits]
    if any(fit.device.kind == "neuromorphic" for fit in report.fits):
        lines.append(NEUROMORPHIC)
    return "\n".join(lines)


def _schedule_lines(schedule: Schedule) -> list[str]:
    state = f" + {schedule.state_bytes:,} of state" if schedule.state_bytes else ""
    found = {p.position or "(between modules)": p.bytes for p in schedule.positions}
    peak = f"{schedule.peak_activation_bytes:,} of activations at their peak"
    return [f"{schedule.name:9} {schedule.bytes:,} bytes: {peak}{state}", *_largest(found)]


def _expansion_lines(expansion: SpikeExpansion) -> list[str]:
    steps = f"T x D = {expansion.T} x {expansion.levels} = {expansion.steps} binary steps"
    values = f"{sum(expansion.values.values()):,} values in {len(expansion.values)} layers"
    integers, spikes = -(-expansion.level_bits // 8), -(-expansion.spike_bits // 8)
    return [
        f"integers  {steps} for {values}",
        f"  {integers:,} bytes as integers, {spikes:,} bytes as binary spikes, if all were kept",
    ]


def _largest(parts: dict[str, int]) -> list[str]:
    """List the largest parts, and how many more there are."""
    shown = sorted(parts.items(), key=lambda part: -part[1])[:_SHOWN]
    more = len(parts) - len(shown)
    lines = [f"  {n_bytes:12,}  {name}" for name, n_bytes in shown]
    return [*lines, f"  and {more} more (--json lists all)"] if more else lines


def _fit_line(fit: Fit, width: int) -> str:
    limits = ", ".join(
        f"{limit.memory} {abs(limit.spare_bytes):,} "
        f"{'spare' if limit.spare_bytes >= 0 else 'missing'}"
        for limit in fit.limits
    )
    answer = "fits" if fit.fits else "does not fit"
    return f"  {fit.device.name:{width}}  {answer:12}  {limits}; {fit.binds} binds"
