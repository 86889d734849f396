"""Text that commands print when ``--json`` is not given."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from psvit_core.callbacks import Progress
from psvit_core.pareto import ParetoArchive, PlanOrigin
from psvit_core.records import (
    Interval,
    Measurement,
    MemoryAccess,
    Profile,
    RecoveryReport,
    Size,
    Sizing,
)
from psvit_core.zoo.sizing import choice_text


def size_text(size: Size) -> str:
    """Format parameters, megabytes and multiply-accumulates."""
    return f"{size.params:,} parameters, {size.bytes / 1e6:.2f} MB, {size.macs:,} MACs per step"


def sizing_lines(sizing: Sizing) -> list[str]:
    """List what is known of a file of any size, what must be given, and what would follow."""
    size = ", ".join(f"{name}={value}" for name, value in sizing.size.items())
    lines = [
        f"family    {sizing.title} ({sizing.family})",
        f"size      {size}",
        f"follows   {sizing.parameters:,} parameters, {sizing.n_groups} channel groups",
    ]
    if sizing.cards:
        lines.append(f"card      the rest as in {' or '.join(sizing.cards)}, unless given")
    lines += [
        f"{'or give' if sizing.cards else 'give':9} {choice_text(choice)}"
        for choice in sizing.choices
    ]
    return [*lines, *(f"caution   {text}" for text in sizing.cautions)]


def percent(interval: Interval) -> str:
    """Format a fraction and its interval in percent."""
    return f"{interval.value:.2%} [{interval.low:.2%}, {interval.high:.2%}]"


def drop_text(drop: Interval) -> str:
    """Format a drop and its interval in percentage points."""
    return f"{drop.value:+.2f} pp [{drop.low:+.2f}, {drop.high:+.2f}]"


def measurement_text(m: Measurement) -> str:
    """Format a measurement and its conditions in several lines."""
    c = m.conditions
    energy = f"{m.energy_pj / 1e6:.2f} uJ"
    run = f"T={c.T}, batch {c.batch or 'mixed'}, {c.precision}, {c.device}"
    run += "" if c.weights == "float32" else f", weights {c.weights}"
    lines = [
        f"accuracy  {percent(m.accuracy)} (95 %)",
        f"measured  {c.data} {c.split}, {c.n_images} images, {run}",
        f"size      {size_text(m.size)}, memory saving {m.memory_saving:.2%}",
        f"compute   {m.sops:,.0f} SOPs per image, theoretical {energy} ({m.energy_model.name})",
    ]
    if m.precision_check is not None:
        lines.insert(2, f"precision {m.precision_check.text}")
    if m.memory is not None:
        lines.append(_memory_line(m.memory))
    if m.top5 is not None:
        lines.insert(1, f"top-5     {percent(m.top5)} (95 %)")
    if m.drop is not None:
        lines.append(f"drop      {drop_text(m.drop)} paired{_recovery_note(m)}")
    if m.profile is not None:
        lines += _profile_lines(m.profile)
    return "\n".join(lines)


def _memory_line(memory: MemoryAccess) -> str:
    read, written = memory.bytes - memory.state_write_bytes, memory.state_write_bytes
    return (
        f"memory    {read:,.0f} bytes read per image ({memory.weight_bytes:,.0f} of weights), "
        f"{written:,} written"
    )


def _recovery_note(m: Measurement) -> str:
    """Return how a measured plan was recovered, and its drop before; empty without recovery."""
    if m.conditions.recovery == "none":
        return ""
    plain = m.plain
    before = f"; pruned alone {drop_text(plain.drop)}" if plain and plain.drop else ""
    method = m.conditions.recovery
    chosen = f" ({m.recovered_by})" if m.recovered_by not in ("", method) else ""
    return f", recovered by {method}{chosen}{before}"


def _profile_lines(profile: Profile) -> list[str]:
    m = profile.machine
    peaks = ", ".join(
        f"batch {b}: {n / 1e6:.2f} MB" for b, n in profile.peak_activation_bytes.items()
    )
    latencies = [
        f"latency   batch {batch}: {t.median:.2f} ms [quartiles {t.low:.2f}, {t.high:.2f}], "
        f"{t.n_runs} runs"
        for batch, t in profile.latency_ms.items()
    ]
    return [
        f"state     {profile.state_bytes:,} bytes of membrane potentials per image",
        f"peak      {peaks} of activations",
        *latencies,
        f"          on {m.processor} ({m.device}), {m.threads} threads, {m.kernels} LIF",
    ]


def archive_text(archive: ParetoArchive) -> str:
    """Format the front of accuracy against bytes, one line per plan."""
    front, knee = archive.front(), archive.knee()
    lines = [f"{len(archive.points)} measured plans, {len(front)} on the front of bytes"]
    for p in front:
        m, origin = p.point.measurement, p.point.made[0]
        marks = ("  overlaps a neighbour" if p.overlaps else "") + ("  knee" if p == knee else "")
        lines.append(
            f"{m.size.bytes / 1e6:9.3f} MB  saves {m.memory_saving:6.2%}  "
            f"{percent(m.accuracy)}  {_origin_text(origin)}{marks}"
        )
    lines += [
        f"not reached: {u.made.policy} ({u.made.scope}), {u.made.target}: {u.reason}"
        for u in archive.unreached
    ]
    return "\n".join(lines)


def _origin_text(origin: PlanOrigin) -> str:
    """Format who chose a plan and what followed pruning."""
    recovery = f"recovery {origin.recovery}" if origin.recovery != "none" else ""
    return ", ".join(filter(None, [origin.policy, recovery, origin.finetuning]))


def recovery_text(r: RecoveryReport) -> str:
    """Format a recovery's gain, images and time."""
    return (
        f"recovery  {r.used}: KL to the original {r.kl_before:.4f} -> {r.kl_after:.4f} nats on "
        f"{r.n_held_out} calibration images, {sum(r.seconds.values()):.1f} s"
    )


def published_text(line: str, inside: bool) -> str:
    """Format a comparison with the published accuracy; warn if it is outside the interval."""
    if inside:
        return f"baseline  {line}"
    return (
        f"WARNING   {line}: outside the interval. Check weights, --time-steps, --image-size and "
        "images before you trust a sweep."
    )


def duration_text(seconds: float) -> str:
    """Return a duration in whole seconds or minutes."""
    return f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def show_on(bar: tqdm[Any]) -> Progress:
    """Return a callback that shows progress on a bar."""

    def progress(done: int, total: int, what: str) -> None:
        bar.total = total or None  # not known in advance
        bar.set_postfix_str(what, refresh=False)
        bar.update(done - bar.n)

    return progress
