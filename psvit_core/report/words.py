"""Numbers and names of a report, as text."""

from __future__ import annotations

from psvit_core.records import Conditions, Interval

NOT_MEASURED = "not measured"
_NBSP = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


def one_line(text: object, longest: int = 200) -> str:
    """Return a text on one line of printable characters, shortened if it is longer."""
    words = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else "?" for c in words)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def percent(value: Interval | None) -> str:
    """Return a fraction with its 95 % interval, in percent."""
    if value is None:
        return NOT_MEASURED
    low, middle, high = (100 * v for v in (value.low, value.value, value.high))
    return f"{middle:.2f}{_NBSP}% [{low:.2f},{_NBSP}{high:.2f}]"


def points(value: Interval | None, absent: str = NOT_MEASURED) -> str:
    """Return a drop with its interval, in percentage points; positive is lost."""
    if value is None:
        return absent
    text = f"{value.value:+.2f}{_NBSP}pp [{value.low:+.2f},{_NBSP}{value.high:+.2f}]"
    return text.replace("-", _MINUS)


def share(value: float) -> str:
    """Return a fraction in percent."""
    return f"{100 * value:.2f}{_NBSP}%"


def conditions(c: Conditions) -> str:
    """Return the conditions of a number on one line."""
    batch = f"batch {c.batch}" if c.batch else "several batch sizes"
    recovery = f"recovery {c.recovery}" if c.recovery != "none" else "no recovery"
    images = f"{c.n_images:,} images"
    parts = (one_line(c.data), f"split {c.split}", images, f"T = {c.T}", batch, c.precision)
    return ", ".join((*parts, c.device, recovery))
