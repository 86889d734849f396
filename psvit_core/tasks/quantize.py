"""Quantize a network's weights, write the file, and measure it. Torch is imported inside."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.callbacks import Tick, keep_going
from psvit_core.errors import DataError
from psvit_core.files import check_model_file
from psvit_core.pareto import PlanOrigin, add_quantized
from psvit_core.records import Measurement, PrunePlan
from psvit_core.records.jobs import QuantizeResult
from psvit_core.tasks.finetune import load_original
from psvit_core.tasks.recover import (
    as_trained,
    load_written,
    origin_of,
    provenance_plan,
    since_pruning,
)
from psvit_core.tasks.session import Session

if TYPE_CHECKING:
    from psvit_core.zoo.base import SpikingModel

_POLICY = "none"
_NOTE = "removes nothing"


@dataclass(frozen=True, kw_only=True)
class WrittenWeights:
    """A quantized file."""

    out: Path
    kind: str  # one of ``STORED_WEIGHTS``
    file_bytes: int
    weights_bytes: int  # that inference reads, as stored
    float32_bytes: int  # of the same tensors in float32
    memory_saving: float  # against the unpruned network in float32, as ``Measurement`` has it
    relative_change: float  # root of the sum of squares of all weights' changes, over the weights'


@dataclass(frozen=True, kw_only=True)
class QuantizedMeasurement:
    """A quantized file, measured on a session's images."""

    measured: Measurement  # compared with the unpruned network, if its weights are available
    alone: Measurement  # compared with the same network in float32


def write_quantized(session: Session, kind: str, out: str | Path) -> WrittenWeights:
    """Quantize the session's network and write it to a file that opens again.

    A network that was never pruned gets a plan that removes nothing.

    Args:
        session: A pruned, recovered, trained or whole network.
        kind: One of ``STORED_WEIGHTS``.
        out: The file; ends in ``.safetensors``.

    Raises:
        ModelError: If the network is quantized already, not in float32, or beyond float16.
        CheckpointError: If the file would not open again.
        OutputError: If it cannot be written.
    """
    from psvit_core.surgery import stored_bytes
    from psvit_core.zoo.pruned import check_arguments, save_pruned
    from psvit_core.zoo.quantized import quantize_weights, weights_bytes

    check_model_file(out)
    model = _with_provenance(session.model)
    check_arguments(model)
    small = quantize_weights(model, kind)
    path = save_pruned(small, out)
    n_bytes = weights_bytes(small)
    return WrittenWeights(
        out=path,
        kind=kind,
        file_bytes=path.stat().st_size,
        weights_bytes=n_bytes,
        float32_bytes=stored_bytes(model),
        memory_saving=1 - n_bytes / int(model.provenance["origin_bytes"]),
        relative_change=_relative_change(model, small),
    )


def quantize_file(
    session: Session, source: str | Path, kind: str, out: Path, tick: Tick = keep_going
) -> QuantizeResult:
    """Quantize a pruned file of the session's model, and measure it if there are images.

    Args:
        session: The unpruned model and its images.
        source: The pruned file.
        kind: As for ``write_quantized``.
        out: As for ``write_quantized``.
        tick: Called before each batch; may raise to stop.

    Returns:
        What a job stores, without what is read from the file afterwards.

    Raises:
        ModelError: As ``write_quantized``.
        CheckpointError: As ``write_quantized``, or if ``source`` is no pruned file.
        OutputError: If the file cannot be written.
    """
    warnings: tuple[str, ...] = ()
    try:
        session.data  # noqa: B018  # first: frames set the time steps
    except DataError as error:  # the file is written, and needs no images
        warnings = (f"Not measured: {error}",)
    subject = dataclasses.replace(session.subject, model=str(source), checkpoint=None, entry=None)
    small = load_written(session, Path(source))
    own = dataclasses.replace(session, subject=subject, _model=small, _description=None)
    done = write_quantized(own, kind, out)
    found = None if warnings else measure_quantized(own, done.out, tick, session.model)
    return QuantizeResult(
        path=str(done.out),
        file_measurement=found.measured if found else None,
        kind=done.kind,
        weights_bytes=done.weights_bytes,
        float32_bytes=done.float32_bytes,
        memory_saving=done.memory_saving,
        against_float32=found.alone if found else None,
        warnings=warnings,
    )


def measure_quantized(
    session: Session, path: Path, tick: Tick = keep_going, unpruned: SpikingModel | None = None
) -> QuantizedMeasurement:
    """Measure a written file on the session's images, and record the result in it.

    The file is read again, and its network runs once. It is compared with the unpruned network, as
    a plan is, and with the same network in float32: this is the loss by quantization alone. The
    store keeps the first comparison beside the archive of plans (``pareto.add_quantized``), whose
    bytes are float32.

    Args:
        session: The network that was quantized, and its images.
        path: The file that ``write_quantized`` wrote.
        tick: Called before each batch; may raise to stop.
        unpruned: The unpruned network, if it is at hand; otherwise, and if the file was pruned from
            another one, that is looked up by the file's provenance.

    Raises:
        DataError: If there are no images.
    """
    from psvit_core.evaluate import measure_against
    from psvit_core.zoo.checkpoint import load_model
    from psvit_core.zoo.recorded import record_measurement

    quantized, model = load_model(path), session.model
    if "T" in quantized.arguments:
        quantized.set_time_steps(model.T)
    base = unpruned if unpruned is not None and _is_origin(unpruned, quantized) else None
    if base is None:
        base = load_original(session, quantized) if model.provenance else model
    if base is not None and "T" in base.arguments:
        base.set_time_steps(model.T)
    plan, run, store = provenance_plan(quantized), session.run, session.store
    origins = [origin_of(base, plan), (model, empty_plan(model))]
    found, alone = measure_against(
        quantized, origins, session.data, run=run, store=store, tick=tick
    )
    measured = as_stored(as_trained(found, quantized, plan), quantized)
    record_measurement(path, measured)
    if measured.drop is not None:
        since = since_pruning(quantized)
        made = PlanOrigin(policy=plan.policy, criterion=plan.criterion, **since)
        add_quantized(store, measured, made, batch_coupled=quantized.batch_coupled)
    return QuantizedMeasurement(measured=measured, alone=as_stored(alone, quantized))


def as_stored(measured: Measurement, model: SpikingModel) -> Measurement:
    """Return a measurement of a model with the bytes of its weights as they are stored.

    ``conditions.weights`` then names their kind. Of float32 weights it stays as it is.
    """
    from psvit_core.zoo.quantized import weights_bytes, weights_kind

    kind = weights_kind(model)
    if kind == measured.conditions.weights:
        return measured
    n_bytes = weights_bytes(model)
    origin = int(model.provenance["origin_bytes"])
    return dataclasses.replace(
        measured,
        conditions=dataclasses.replace(measured.conditions, weights=kind),
        size=dataclasses.replace(measured.size, bytes=n_bytes),
        memory_saving=1 - n_bytes / origin,
    )


def _is_origin(unpruned: SpikingModel, small: SpikingModel) -> bool:
    """Return whether a model is the first ancestor of a pruned one."""
    from psvit_core.zoo.checkpoint import weights_hash

    return weights_hash(unpruned) == str(small.provenance["origin_weights_hash"])


def _with_provenance(model: SpikingModel) -> SpikingModel:
    """Return a model that a file can be made of: itself, or a copy that nothing is pruned from."""
    from psvit_core.surgery import apply_plan

    return model if model.provenance else apply_plan(model, empty_plan(model))


def empty_plan(model: SpikingModel) -> PrunePlan:
    """Return the plan that removes nothing, with which a whole network becomes a file."""
    from psvit_core.groups import plan_from_kept

    return dataclasses.replace(plan_from_kept(model, {}), policy=_POLICY, note=_NOTE)


def _relative_change(model: SpikingModel, small: SpikingModel) -> float:
    from psvit_core.zoo.quantized import layer_weights

    before, after = model.state_dict(), small.state_dict()
    changed = total = 0.0
    for name in layer_weights(model):
        weight = before[name].double()
        changed += float((after[name].double() - weight).square().sum())
        total += float(weight.square().sum())
    return (changed / total) ** 0.5 if total else 0.0
