"""An archive's points as CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable

from psvit_core.pareto.points import ParetoPoint

_COLUMNS = (
    "policies",
    "target",
    "scope",
    "limits",
    "criterion",
    "recovery",
    "finetuning",
    "epochs",
    "chosen",
    "seed",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "drop_pp",
    "drop_low",
    "drop_high",
    "kl",
    "memory_saving",
    "params",
    "bytes",
    "macs",
    "energy_pj",
    "sops",
    "state_bytes",
    "peak_activation_bytes",
    "latency_ms",
    "latency_low",
    "latency_high",
    "on_front_of_bytes",
    "n_images",
    "split",
    "point_id",
)


def to_csv(points: Iterable[ParetoPoint], front_ids: Collection[str]) -> str:
    """Return one line per point, smallest first, after a header.

    Args:
        points: Points to list.
        front_ids: ``point_id`` of the points on the front of ``bytes``.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for point in sorted(points, key=lambda p: (p.measurement.size.bytes, p.point_id)):
        lines.writerow(_row(point, point.point_id in front_ids))
    return text.getvalue()


def _row(point: ParetoPoint, on_front: bool) -> list[object]:
    m, made = point.measurement, point.made

    def joined(name: str) -> str:
        return "; ".join(dict.fromkeys(str(getattr(origin, name)) for origin in made))

    drop, profile = m.drop, m.profile
    times = profile.latency_ms.get("1") if profile else None
    return [
        joined("policy"),
        joined("target"),
        joined("scope"),
        joined("limits"),
        joined("criterion"),
        joined("recovery"),
        made[0].finetuning,
        made[0].epochs,
        not all(origin.tried for origin in made),
        joined("seed"),
        m.accuracy.value,
        m.accuracy.low,
        m.accuracy.high,
        *((drop.value, drop.low, drop.high) if drop else ("", "", "")),
        "" if m.kl is None else m.kl,
        m.memory_saving,
        m.size.params,
        m.size.bytes,
        m.size.macs,
        m.energy_pj,
        m.sops,
        profile.state_bytes if profile else "",
        profile.peak_activation_bytes["1"] if profile else "",
        *((times.median, times.low, times.high) if times else ("", "", "")),
        on_front,
        m.conditions.n_images,
        m.conditions.split,
        point.point_id,
    ]
