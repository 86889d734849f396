"""Plans with their bytes in fewer bits a weight: exact sizes, and accuracies where measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.pareto import ParetoArchive, ParetoPoint
from psvit_core.plan.size import plan_size
from psvit_core.records import Kept, Measurement, ModelSummary, PrunePlan
from psvit_core.records.jobs import QuantizeRequest
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.model import formats, fronts
from ui.model.fronts import Overview, PlanPoint

FLOAT32 = "float32"
#: Choices, as they are in the URL, with the precision that ``plan_size`` counts.
CHOICES = {"fp32": FLOAT32, "fp16": "float16", "int8": "int8"}
TITLES = {"fp32": "fp32", "fp16": "fp16 (bf16)", "int8": "int8"}
#: Measured kinds of weights, by the precision that has their bytes.
_KINDS = {"float16": ("float16", "bfloat16"), "int8": ("int8",)}
SHORT = {FLOAT32: "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8"}


def counted(kind: str) -> str:
    """Return the precision, as ``plan_size`` takes it, that counts the bytes of stored weights."""
    return next((precision for precision, kinds in _KINDS.items() if kind in kinds), FLOAT32)


def stored_name(point: PlanPoint) -> str:
    """Return the precision of the weights whose bytes a point shows, such as ``int8``."""
    m = point.measurement
    measured = m.conditions.weights if m is not None else FLOAT32
    return SHORT[point.weights if measured == FLOAT32 else measured]


def accuracy_weights(point: PlanPoint) -> str:
    """Return the precision of the weights that a point's accuracy is of."""
    m = point.measurement
    return SHORT[m.conditions.weights if m is not None else FLOAT32]


def shown(workspace: Workspace, view: Overview, weights: str) -> Overview:
    """Return the known plans of a model with their bytes at a precision (``with_weights``).

    Args:
        workspace: The model on the images of ``view``.
        view: All known plans, in float32.
        weights: One of ``CHOICES``' precisions.
    """
    if weights == FLOAT32:
        return view
    return with_weights(view, weights, workspace.quantized(view.archive))


def quantize_jobs(store: Store, path: Path) -> dict[str, Job]:
    """Return the newest job of each kind of weights that quantizes a checkpoint."""
    found: dict[str, Job] = {}
    for job in client.list_jobs(store):
        if isinstance(job.request, QuantizeRequest) and job.request.path == str(path):
            found.setdefault(job.request.kind, job)
    return found


def with_weights(view: Overview, weights: str, quantized: Sequence[ParetoPoint] = ()) -> Overview:
    """Return the plans with their bytes at a precision of the weights.

    Bytes are exact: those that ``psvit quantize`` stores. Accuracies stay those of float32, except
    of networks that were measured with such weights; these take the place of their plan.

    Args:
        view: All known plans, in float32.
        weights: One of ``CHOICES``' precisions.
        quantized: Measured networks with quantized weights, on the same images as ``view``.
    """
    if weights == FLOAT32:
        return view
    own = {p.point_id: p for p in quantized if p.stored_weights in _KINDS[weights]}
    done = {(_kept(p.plan), p.recovery) for p in own.values()}
    known = view.archive.points if view.archive else ()
    points = [p for p in known if (_kept(p.plan), p.recovery) not in done]
    replaced = {p.point_id for p in known} - {p.point_id for p in points}
    policies = {_kept(point.plan): point.policies for point in view.measured}
    pruned = [p for p in own.values() if p.plan.kept]  # the others are of the unpruned network
    measured = [
        *(_stored(view, point, weights) for point in view.measured if point.id not in replaced),
        *(_measured(view, p, weights, policies.get(_kept(p.plan), ())) for p in pruned),
    ]
    archive = view.archive
    if archive is not None:
        archive = dataclasses.replace(
            archive, points=(*(_in_bytes(view.summary, p, weights) for p in points), *pruned)
        )
    elif pruned:
        archive = _archive_of(pruned)
    whole = [p.accuracy_interval for p in own.values() if not p.plan.kept]
    taken = [point.plan.kept for point in measured]
    return dataclasses.replace(
        view,
        archive=archive,
        measured=tuple(measured),
        predicted=tuple(
            _stored(view, p, weights) for p in view.predicted if p.plan.kept not in taken
        ),
        weights=weights,
        unpruned_stored=plan_size(view.summary, None, weights).bytes,
        unpruned_measured=next(iter(whole), None),
    )


def point_with_weights(view: Overview, point: PlanPoint) -> PlanPoint:
    """Return a plan that is not among a view's points with its bytes in the view's precision."""
    return point if point.weights == view.weights else _stored(view, point, view.weights)


def quantized_note(weights: str) -> str:
    """Say what can be done with a network whose weights are stored in fewer bits, and what not."""
    return (
        f"It computes in fp32 with its {SHORT[weights]} weights. It can be measured, swept and "
        "exported as it is. Pruning, recovery and training are possible, but write fp32 weights "
        "again: the file grows until it is quantized once more. It cannot be quantized a second "
        "time: use the fp32 file that it was made from."
    )


def bytes_text(summary: ModelSummary, point: PlanPoint) -> str:
    """Return a plan's exact bytes at its precision, and in float32."""
    plain = plan_size(summary, point.plan).bytes
    return f"{point.values['bytes']:,.0f} in {stored_name(point)}, {plain:,} in fp32"


def assumed_line(point: PlanPoint) -> str:
    """Say that a plan's accuracy is not of the weights whose bytes are shown; empty if it is."""
    if not point.is_assumed:
        return ""
    return (
        f" The accuracy is that of fp32 weights. Quantize the file on the Export page to measure "
        f"it in {SHORT[point.weights]}."
    )


def joint_line(view: Overview) -> str:
    """Say what these weights alone save of the unpruned network in float32."""
    whole = plan_size(view.summary, None).bytes
    saving, name = formats.percent(1 - view.unpruned_stored / whole), SHORT[view.weights]
    measured = [p for p in view.measured if not p.is_assumed]
    known = formats.plural(len(measured), "network") if measured else "No network"
    kinds = next(TITLES[choice] for choice, w in CHOICES.items() if w == view.weights)
    return (
        f"{name} alone saves {saving} of the unpruned network's bytes in fp32. {known} measured in "
        f"{kinds} on these images."
    )


def _kept(plan: PrunePlan) -> tuple[tuple[str, Kept], ...]:
    return tuple(sorted(plan.kept.items()))


def _in_bytes(summary: ModelSummary, point: ParetoPoint, weights: str) -> ParetoPoint:
    """Return an archive's point with its bytes at a precision, for fronts."""
    m = point.measurement
    size = dataclasses.replace(m.size, bytes=plan_size(summary, point.plan, weights).bytes)
    return dataclasses.replace(point, measurement=dataclasses.replace(m, size=size))


def _stored(view: Overview, point: PlanPoint, weights: str) -> PlanPoint:
    """Return a plan whose accuracy is of float32 with its bytes at a precision."""
    n_bytes = plan_size(view.summary, point.plan, weights).bytes
    return dataclasses.replace(
        point,
        title=_title(view, point.title, n_bytes, SHORT[weights]),
        values=point.values | {"bytes": float(n_bytes)},
        weights=weights,
        twin=None,  # one mark a plan: filled means measured with these weights
    )


def _measured(
    view: Overview, point: ParetoPoint, weights: str, policies: tuple[str, ...]
) -> PlanPoint:
    """Return a network that was measured with quantized weights."""
    m = point.measurement
    assert m.drop is not None  # others are not stored
    named = policies or (point.plan.policy,)
    whole = plan_size(view.summary, None).bytes
    saving = 1 - plan_size(view.summary, point.plan).bytes / whole
    title = fronts.title(named, saving)
    return PlanPoint(
        id=point.point_id,
        plan=point.plan,
        title=_title(view, title, m.size.bytes, SHORT[m.conditions.weights]),
        accuracy=m.accuracy,
        drop=m.drop,
        values=_costs(m),
        policies=named,
        measurement=m,
        weights=weights,
    )


def _costs(m: Measurement) -> dict[str, float]:
    return {"bytes": float(m.size.bytes), "energy": m.energy_pj, "sops": m.sops}


def _title(view: Overview, title: str, n_bytes: int, name: str) -> str:
    """Return a plan's title with what it saves of the unpruned network in float32."""
    saving = 1 - n_bytes / plan_size(view.summary, None).bytes
    return f"{title}; {formats.percent(saving)} in {name}"


def _archive_of(points: Sequence[ParetoPoint]) -> ParetoArchive:
    """Return an archive for the fronts of quantized networks alone."""
    c, plan = points[0].measurement.conditions, points[0].plan
    return ParetoArchive(
        model=plan.model,
        weights_hash=plan.weights_hash,
        data=c.data,
        split=c.split,
        transform=c.transform,
        T=c.T,
        precision=c.precision,
        n_images=c.n_images,
        points=tuple(points),
    )
