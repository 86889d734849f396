"""What runs the cells of a sweep: from where they differ, or where that cannot be told in full."""

from __future__ import annotations

import logging

from psvit_core.data import EvalSet
from psvit_core.records import PrunePlan
from psvit_core.runtime import Run, channels_last, free_memory
from psvit_core.sensitivity.replay import Cells, Replay, Silencing
from psvit_core.sensitivity.spread import record_network, spread
from psvit_core.sensitivity.table import SweepSpec
from psvit_core.tape import TapeError
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import CUSTOM

log = logging.getLogger(__name__)

_GROWTH = 2.5  # of the process beside the values alive: what is freed is not given back at once
_BATCHES_AT_ONCE = 8  # where native code takes a few images at a time whatever the batch


def prepare(
    spec: SweepSpec,
    model: SpikingModel,
    data: EvalSet,
    run: Run,
    memory_budget: int | None = None,
) -> tuple[Cells, int]:
    """What runs the cells of a sweep, and on how many images at once.

    Args:
        spec: The sweep.
        model: The model, placed.
        data: The images.
        run: Device, batch, precision.
        memory_budget: Bytes that values of a batch may take; a quarter of what is free when None.

    Returns:
        The cells, and on how many images at once they are run: the run's batch or some of these,
        less where the budget asks for it.
    """
    (x,) = data.take([0]).batches(1)
    try:
        network = record_network(model, tuple(x.shape[1:]))
        spreads = {g.group_id: spread(network, g) for g in spec.summary.groups}
    except TapeError as reason:
        log.info("%s: every cell is run in full, since %s", model.name, reason)
        return Silencing(model, lambda group, kept: _one_group(spec, group, kept)), run.batch
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: channels_last(t.detach()) for name, t in tensors.items()}
    # The published QKFormer mixes a batch's images; a user's model may order them in its own way.
    independent = not model.batch_coupled and model.family != CUSTOM
    cells = Replay(network, spreads, weights, finish_early=independent)
    if model.batch_coupled:
        return cells, run.batch
    batch = run.batch * (_BATCHES_AT_ONCE if cells.is_native else 1)
    budget = memory_budget or free_memory(run.device) // 4
    itemsize = 2 if run.precision == "float64" else 1
    fits = int(budget / max(cells.bytes_per_image() * itemsize * _GROWTH, 1))
    if fits < 1:
        log.warning("one image at a time may take more than the memory budget of %d bytes", budget)
    return cells, int(min(batch, max(fits, 1)))


def _one_group(spec: SweepSpec, group: str, kept: tuple[int, ...]) -> PrunePlan:
    return PrunePlan(
        model=spec.summary.model,
        weights_hash=spec.summary.weights_hash,
        criterion=spec.criterion,
        kept={group: kept},
    )
