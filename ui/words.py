"""Numbers and conditions in words: one spelling on every page; no streamlit."""

from __future__ import annotations

import time

from psvit_core.records import Conditions, Interval, Measurement, SensitivityRow

MINUS = "\N{MINUS SIGN}"
GAP = "\N{NO-BREAK SPACE}"

#: Importance criteria by name, as a choice on screen; the engine has the same.
CRITERIA = {
    "l2": "L2 norm of filters",
    "l1": "L1 norm of filters",
    "l2_group": "L2 norm, writers and readers",
    "fpgm": "Geometric median (FPGM)",
    "bn_scale": "BatchNorm scale",
    "firing_rate": "Firing rate",
    "activation_weight": "Activation × weight",
    "taylor": "Taylor expansion of the loss",
    "reconstruction": "Reconstruction error",
    "random": "Random (the control)",
}
#: In place of a name: the engine's choice (``plans.DEFAULT_CRITERIA``).
BEST_CRITERION = "Best measured (by images)"
#: Those that look at calibration images, which takes a while longer.
IMAGE_CRITERIA = frozenset({"firing_rate", "activation_weight", "taylor", "reconstruction"})

#: Kinds of channel groups, as filters.
KINDS = {
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


def percent(fraction: float, digits: int = 1) -> str:
    """``0.254`` as ``25.4 %``."""
    return _signed(f"{100 * fraction:.{digits}f}") + f"{GAP}%"


def ratio(fraction: float) -> str:
    """A prune ratio or a reached one: ``0.5`` as ``50 %``, ``0.479`` as ``47.9 %``."""
    return _signed(f"{100 * fraction:.1f}".removesuffix(".0")) + f"{GAP}%"


def points(value: float, digits: int = 2) -> str:
    """Percentage points: ``0.4`` as ``0.40 pp``."""
    return _signed(f"{value:.{digits}f}") + f"{GAP}pp"


def accuracy(interval: Interval) -> str:
    """An accuracy (fraction) with its 95 % interval."""
    return f"{percent(interval.value, 2)} {_range(interval, 100, 1)}"


def drop(interval: Interval) -> str:
    """A drop (percentage points) with its 95 % interval."""
    return f"{points(interval.value)} {drop_range(interval)}"


def drop_range(interval: Interval) -> str:
    """The 95 % interval of a drop alone."""
    return _range(interval, 1, 2)


def _range(interval: Interval, scale: float, digits: int) -> str:
    low, high = (_signed(f"{scale * v:.{digits}f}") for v in (interval.low, interval.high))
    return f"({low} to {high})"


def _signed(text: str) -> str:
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.") else MINUS + text[1:]
    return text


def within_noise(interval: Interval) -> bool:
    """Whether an interval includes 0: no change was shown."""
    return interval.low <= 0 <= interval.high


def megabytes(n_bytes: int) -> str:
    """Bytes as MB (10^6)."""
    return f"{n_bytes / 1e6:.2f}{GAP}MB"


def kilobytes(n_bytes: int) -> str:
    """Bytes as kB (10^3), or MB or GB where that reads better."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f}{GAP}GB"
    return megabytes(n_bytes) if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f}{GAP}kB"


def count(number: float) -> str:
    """A large count with its unit letter: ``12.3 M``."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            short = number / limit
            return f"{short:.{2 if short < 10 else 1 if short < 100 else 0}f}{GAP}{letter}"
    return f"{number:.0f}"


def saving(part: float, whole: float) -> str:
    """How much smaller a part is than the whole, as a signed percentage."""
    return percent(part / whole - 1, 1)


def energy(picojoules: float) -> str:
    """Theoretical energy in microjoules."""
    return f"{picojoules / 1e6:.2f}{GAP}µJ"


def conditions_line(c: Conditions) -> str:
    """How a number was measured, in one line."""
    batch = c.batch or "mixed"
    return (
        f"{c.data}, {c.split} split · {c.n_images:,} images · T = {c.T} · batch {batch} · "
        f"{c.precision} · {c.device}"
    )


def images(limit: int | None) -> str:
    """The choice of images in words."""
    return "all images" if limit is None else f"{limit} images"


def seen(row: SensitivityRow, n_images: int | None) -> str:
    """How many of a sweep's images a cell has seen."""
    if n_images in (None, row.n_images):
        return f"{row.n_images:,} images"
    why = " so far" if not row.settled else ": enough"
    return f"{row.n_images:,} of {n_images:,} images{why}"


def time_left(seconds: float | None) -> str:
    """An estimate in words; empty without one."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def ago(moment: float, now: float | None = None) -> str:
    """When something was, in words."""
    seconds = (now or time.time()) - moment
    if seconds < 90:
        return "just now"
    if seconds < 5400:
        return f"{round(seconds / 60)} min ago"
    if seconds < 129600:
        return f"{round(seconds / 3600)} h ago"
    return time.strftime("%Y-%m-%d", time.localtime(moment))


def minutes(seconds: float) -> str:
    """A rough time span: ``under a minute``, ``about 12 min``, ``about 3.5 h``."""
    if seconds < 50:
        return "under a minute"
    if seconds < 5400:
        return f"about {max(1, round(seconds / 60))}{GAP}min"
    return f"about {seconds / 3600:.1f}{GAP}h"


def moment(seconds: float) -> str:
    """Date and time of day here, of seconds since the epoch."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def duration(seconds: float) -> str:
    """A time span in its largest units: ``42 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))}{GAP}s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes}{GAP}min"
    return f"{minutes // 60}{GAP}h {minutes % 60}{GAP}min"


def measured_line(m: Measurement) -> str:
    """Accuracy and, against the baseline, drop: one line."""
    text = f"top-1 {accuracy(m.accuracy)}"
    return f"{text}, drop {drop(m.drop)}" if m.drop else text
