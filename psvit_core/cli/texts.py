"""What the command line prints where JSON is not asked for."""

from __future__ import annotations

from psvit_core.cli.engine import Result
from psvit_core.pareto import Made, ParetoArchive
from psvit_core.records import Interval, Measurement, Profile, RecoveryReport


def size_text(size: Result) -> str:
    """Parameters, bytes, multiply-accumulates."""
    return (
        f"{size['params']:,} parameters, {size['bytes'] / 1e6:.2f} MB, {size['macs']:,} MACs a step"
    )


def percent(interval: Interval) -> str:
    """A fraction with its interval, in percent."""
    return f"{interval.value:.2%} [{interval.low:.2%}, {interval.high:.2%}]"


def drop_text(drop: Interval) -> str:
    """Percentage points with their interval."""
    return f"{drop.value:+.2f} pp [{drop.low:+.2f}, {drop.high:+.2f}]"


def measurement_text(m: Measurement) -> str:
    """A measurement and how it was made, some lines."""
    c = m.conditions
    energy = f"{m.energy_pj / 1e6:.2f} uJ"
    how = f"T={c.T}, batch {c.batch or 'mixed'}, {c.precision}, {c.device}"
    lines = [
        f"accuracy  {percent(m.accuracy)} (95 %)",
        f"measured  {c.data} {c.split}, {c.n_images} images, {how}",
        f"size      {size_text(m.size.to_dict())}, memory saving {m.memory_saving:.2%}",
        f"compute   {m.sops:,.0f} SOPs an image, theoretical {energy} ({m.energy_model.name})",
    ]
    if m.drop is not None:
        lines.append(f"drop      {drop_text(m.drop)} paired")
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


def archive_text(archive: ParetoArchive) -> str:
    """The front of accuracy against bytes, one line a plan."""
    front, knee = archive.front(), archive.knee()
    lines = [f"{len(archive.points)} measured plans, {len(front)} on the front of bytes"]
    for p in front:
        m, way = p.point.measurement, p.point.made[0]
        marks = ("  overlaps a neighbour" if p.overlaps else "") + ("  knee" if p == knee else "")
        lines.append(
            f"{m.size.bytes / 1e6:9.3f} MB  saves {m.memory_saving:6.2%}  "
            f"{percent(m.accuracy)}  {_way_text(way)}{marks}"
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


def recovery_text(r: RecoveryReport) -> str:
    """What a recovery gained, on which images, and what it cost."""
    return (
        f"recovery  {r.used}: KL to the original {r.kl_before:.4f} -> {r.kl_after:.4f} nats on "
        f"{r.n_held_out} calibration images, {sum(r.seconds.values()):.1f} s"
    )


def published_text(line: str, inside: bool) -> str:
    """The measured baseline beside the published one; a warning where it is outside."""
    if inside:
        return f"baseline  {line}"
    return (
        f"WARNING   {line}: outside the interval. Check weights, --time-steps, --image-size and "
        "the images before trusting a sweep."
    )
