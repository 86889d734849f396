"""Numbers, conditions and names as text, spelled the same on every page."""

from __future__ import annotations

import dataclasses
import time

from psvit_core.records import Conditions, EnergyModel, Interval, Measurement, SensitivityRow

MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"

#: Importance criteria, in the order of the menu.
CRITERION_NAMES = {
    "l2": "L2 norm of filters",
    "l1": "L1 norm of filters",
    "l2_group": "L2 norm, writers and readers",
    "fpgm": "Geometric median (FPGM)",
    "bn_scale": "BatchNorm scale",
    "firing_rate": "Firing rate",
    "activation_weight": "Activation × weight",
    "taylor": "Taylor expansion of the loss",
    "reconstruction": "Reconstruction error",
    "random": "Random (control)",
}
#: Label of the engine's own choice (``plan.build.default_criterion``).
DEFAULT_CRITERION_NAME = "Best measured (by images)"

#: Planning policies, best first.
POLICY_NAMES = {"optimal": "Optimal", "psvit": "PSViT", "prime": "PrimeSVT", "uniform": "Uniform"}

#: Recovery methods that need no training.
RECOVERY_NAMES = {
    "none": "None",
    "bn": "BatchNorm",
    "lsq": "Least squares",
    "both": "Both",
    "stages": "Stages",
    "stages_bn": "Stages and BatchNorm",
    "auto": "Auto",
}

#: What each recovery does, inside a sentence.
RECOVERY_STEPS = {
    "bn": "BatchNorm statistics",
    "lsq": "least squares",
    "both": "least squares, then BatchNorm statistics",
    "stages": "least squares in stages",
    "stages_bn": "least squares and BatchNorm statistics in stages",
}

#: Kinds of channel groups.
KIND_NAMES = {
    "residual": "Residual stream",
    "conv": "Convolution",
    "sepconv": "Separable convolution",
    "repconv_mid": "Re-parameterised convolution",
    "channelconv": "Channel mixing",
    "qk": "Attention q, k",
    "q": "Attention q",
    "v": "Attention v",
    "qkv_elementwise": "Attention q, k, v",
    "qktoken_q": "Token attention q",
    "qktoken_k": "Token attention k",
    "mlp": "MLP",
}


# ---- numbers -------------------------------------------------------------------------------------


def percent(fraction: float, digits: int = 1) -> str:
    """Format a fraction: ``0.254`` as ``25.4 %``."""
    return _signed(f"{100 * fraction:.{digits}f}") + f"{NBSP}%"


def ratio(fraction: float) -> str:
    """Format a prune ratio: ``0.5`` as ``50 %``, ``0.479`` as ``47.9 %``."""
    return _signed(f"{100 * fraction:.1f}".removesuffix(".0")) + f"{NBSP}%"


def points(value: float, digits: int = 2) -> str:
    """Format percentage points: ``0.4`` as ``0.40 pp``."""
    return _signed(f"{value:.{digits}f}") + f"{NBSP}pp"


def accuracy(interval: Interval) -> str:
    """Format an accuracy (a fraction) with its 95 % interval."""
    return f"{percent(interval.value, 2)} {_range(interval, 100, 1)}"


def drop(interval: Interval) -> str:
    """Format a drop (percentage points) with its 95 % interval."""
    return f"{points(interval.value)} {drop_range(interval)}"


def drop_range(interval: Interval) -> str:
    """Format the 95 % interval of a drop, without its value."""
    return _range(interval, 1, 2)


def _range(interval: Interval, scale: float, digits: int) -> str:
    low, high = (_signed(f"{scale * v:.{digits}f}") for v in (interval.low, interval.high))
    return f"({low} to {high})"


def _signed(text: str) -> str:
    """Return the number with a proper minus sign, and without one for a rounded zero."""
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.") else MINUS + text[1:]
    return text


def plural(count: int, noun: str) -> str:
    """Format a count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def within_noise(interval: Interval) -> bool:
    """Return whether an interval includes 0, so that no change was shown."""
    return interval.low <= 0 <= interval.high


def megabytes(n_bytes: int) -> str:
    """Format bytes as MB (10^6)."""
    return f"{n_bytes / 1e6:.2f}{NBSP}MB"


def kilobytes(n_bytes: int) -> str:
    """Format bytes as kB (10^3), or as MB or GB where they are that many."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f}{NBSP}GB"
    return megabytes(n_bytes) if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f}{NBSP}kB"


def short_count(number: float) -> str:
    """Format a large count with a unit prefix: ``12.3 M``."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            short = number / limit
            digits = 2 if short < 10 else 1 if short < 100 else 0
            return f"{short:.{digits}f}{NBSP}{letter}"
    return f"{number:.0f}"


def relative_change(part: float, whole: float) -> str:
    """Format the change from ``whole`` to ``part`` as a signed percentage."""
    return percent(part / whole - 1, 1)


def energy(picojoules: float) -> str:
    """Format a theoretical energy in microjoules."""
    return f"{picojoules / 1e6:.2f}{NBSP}µJ"


def energy_note(model: EnergyModel) -> str:
    """Say what an energy model counts, with its name and constants."""
    memory = f", {model.byte_pj:g} pJ per byte of memory access" if model.byte_pj else ""
    only = "" if memory else " arithmetic only"
    return (
        f"Energy by {model.name} counts{only} ({model.mac_pj:g} pJ per MAC, "
        f"{model.sop_pj:g} pJ per SOP{memory})."
    )


# ---- times ---------------------------------------------------------------------------------------


def time_left(seconds: float | None) -> str:
    """Format an estimate of the remaining time; empty without one."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def time_ago(moment: float, now: float | None = None) -> str:
    """Format a past moment, seconds since the epoch, relative to now; older ones as a date."""
    seconds = (now or time.time()) - moment
    if seconds < 90:
        return "just now"
    if seconds < 5400:
        return f"{round(seconds / 60)} min ago"
    if seconds < 129600:
        return f"{round(seconds / 3600)} h ago"
    return time.strftime("%Y-%m-%d", time.localtime(moment))


def rough_duration(seconds: float) -> str:
    """Format a rough time span: ``less than a minute``, ``about 12 min``, ``about 3.5 h``."""
    if seconds < 50:
        return "less than a minute"
    if seconds < 5400:
        return f"about {max(1, round(seconds / 60))}{NBSP}min"
    return f"about {seconds / 3600:.1f}{NBSP}h"


def date_and_time(seconds: float) -> str:
    """Format seconds since the epoch as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def duration(seconds: float) -> str:
    """Format a time span in its largest units: ``42 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))}{NBSP}s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes}{NBSP}min"
    return f"{minutes // 60}{NBSP}h {minutes % 60}{NBSP}min"


# ---- phrases -------------------------------------------------------------------------------------


def conditions_line(conditions: Conditions) -> str:
    """Describe how a number was measured, in one line."""
    c = conditions
    line = (
        f"{c.data}, {c.split} split · {c.n_images:,} images · T = {c.T} · batch "
        f"{c.batch or 'mixed'} · {c.precision} · {c.device}"
    )
    if c.weights != "float32":
        line += f" · weights {c.weights}"
    return line if c.recovery == "none" else f"{line} · {recovery_text(c.recovery)}"


def recorded_line(measurement: Measurement) -> str:
    """Describe a measurement that a file carries: what it says, not what was measured here."""
    m = measurement
    lost = f", drop {drop(m.drop)}" if m.drop else ""
    return (
        f"The file says: accuracy {accuracy(m.accuracy)}{lost}, on {conditions_line(m.conditions)}."
    )


def recovery_text(method: str, used: str = "") -> str:
    """Describe a recovery in a few words.

    Args:
        method: The recovery that was asked for, one of ``RECOVERIES``.
        used: The method that ``auto`` chose, if it is known.
    """
    if method == "none":
        return "no recovery"
    if method != "auto":
        return f"recovered by {RECOVERY_STEPS[method]}"
    if used == "none":
        return "recovery auto: no method was better than none"
    return f"recovered by {RECOVERY_STEPS[used]} (auto)" if used else "recovered (auto)"


def plan_conditions(measurement: Measurement) -> str:
    """Describe how a pruned network was measured, in one line, with its recovery."""
    c = dataclasses.replace(measurement.conditions, recovery="none")
    recovery = recovery_text(measurement.conditions.recovery, measurement.recovered_by)
    return f"{conditions_line(c)} · {recovery}"


def images(limit: int | None) -> str:
    """Describe the number of images chosen; None means all."""
    return "all images" if limit is None else f"{limit} images"


def images_seen(row: SensitivityRow, n_images: int | None) -> str:
    """Describe how many of a sweep's images a cell has used."""
    if n_images in (None, row.n_images):
        return f"{row.n_images:,} images"
    why = ": enough" if row.settled else " so far"
    return f"{row.n_images:,} of {n_images:,} images{why}"


def measured_line(measurement: Measurement) -> str:
    """Describe accuracy and, compared with the baseline, drop, in one line."""
    text = f"top-1 {accuracy(measurement.accuracy)}"
    return f"{text}, drop {drop(measurement.drop)}" if measurement.drop else text


def shorten(name: str, width: int = 18) -> str:
    """Shorten a name for a narrow place."""
    return name if len(name) <= width else name[: width - 1] + "…"
