"""Choice of a sweep's executor (incremental, or full if the model cannot be recorded) and batch."""

from __future__ import annotations

import logging

from psvit_core.data import EvalSet
from psvit_core.incremental.executor import CellExecutor, FullExecutor, IncrementalExecutor
from psvit_core.incremental.graph import GraphError
from psvit_core.incremental.joint import share_recording
from psvit_core.incremental.propagation import propagate, record_network, with_wide_sums
from psvit_core.records import PrunePlan
from psvit_core.runtime import Portions, Run, channels_last, device_of, free_memory
from psvit_core.sensitivity.spec import SweepSpec
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import CUSTOM_FAMILY

log = logging.getLogger(__name__)

_PROCESS_GROWTH = 2.5  # process memory relative to live values: freed memory is returned late
_NATIVE_BATCHES = 8  # batches at once: native programs take a few images at a time in any case
_STACKED_DEVICES = ("cuda",)  # where the cells of a group run as one batch
_STACKED_BATCHES = 8  # batches of images of cells at once


def prepare(
    spec: SweepSpec, model: SpikingModel, data: EvalSet, run: Run, memory_budget: int | None = None
) -> tuple[CellExecutor, int]:
    """Choose incremental or full execution for a sweep, and the number of images per batch.

    Args:
        spec: The sweep.
        model: The model, placed.
        data: The images.
        run: Device, batch, precision.
        memory_budget: Bytes that the values of a batch may take; a quarter of the free memory if
            None.

    Returns:
        The executor, and its batch: the run's batch or a multiple of it, or less if the memory
        budget requires it.
    """
    (x,) = data.take([0]).batches(1)
    try:
        recorded = record_network(model, tuple(x.shape[1:]))
        network = with_wide_sums(recorded) if run.is_reduced else recorded
        propagations = {g.group_id: propagate(network, g) for g in spec.summary.groups}
    except GraphError as reason:
        log.info("%s: every cell runs in full, because %s", model.name, reason)
        return FullExecutor(model, lambda group, kept: _plan_of(spec, group, kept)), run.batch
    share_recording(model, tuple(x.shape[1:]), spec.summary.weights_hash, recorded)  # joint plans
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: channels_last(t.detach()) for name, t in tensors.items()}
    # The published QKFormer couples the images of a batch; a custom model may reorder them.
    independent = not model.batch_coupled and model.family != CUSTOM_FAMILY
    stacks = device_of(run.device).type in _STACKED_DEVICES
    executor = IncrementalExecutor(
        network, propagations, weights, independent, stacks, may_be_native=not run.is_reduced
    )
    if model.batch_coupled:
        return executor, run.batch
    batch = run.batch * (_NATIVE_BATCHES if executor.is_native else 1)
    budget = memory_budget or free_memory(run.device) // 4
    itemsize = 2 if run.precision == "float64" else 1  # relative to float32
    bytes_per_image = executor.bytes_per_image() * itemsize * _PROCESS_GROWTH
    fitting = int(budget / max(bytes_per_image, 1))
    if fitting < 1:
        log.warning("a single image may take more than the memory budget of %d bytes", budget)
    batch = int(min(batch, max(fitting, 1)))
    if executor.stacked:
        # What the values of the full model leave; one batch of rows is part of them.
        free = budget / (itemsize * _PROCESS_GROWTH) - executor.bytes_per_image() * batch
        further = int(max(free, 0) / max(executor.bytes_per_row(), 1))
        size = min(batch + further, _STACKED_BATCHES * batch)
        # With still fewer rows, it is better to halve the batch: its values take the memory.
        executor.stacked.portions = Portions(size, least=max(1, batch // _STACKED_BATCHES))
    return executor, batch


def _plan_of(spec: SweepSpec, group: str, kept: tuple[int, ...]) -> PrunePlan:
    return PrunePlan(
        model=spec.summary.model,
        weights_hash=spec.summary.weights_hash,
        criterion=spec.criterion,
        kept={group: kept},
    )
