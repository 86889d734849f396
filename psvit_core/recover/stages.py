"""Refit of all layers in network order, which also corrects the error of the residual streams.

``readers`` refits the layers that lost inputs. Here every layer is refitted, because its inputs
come from pruned layers even where it lost none. A layer whose output is added to a residual stream
has another target: the branch's output in the unpruned network plus the error that the stream has
so far. What one branch could not restore is thus left to the next.

With ``norms``, each BatchNorm is re-estimated right after the layer before it is refitted, so that
later layers are fitted to the inputs that they will have. A layer without a bias is then fitted up
to a shift, which its BatchNorm takes up. Least squares shrink what they predict: before a neuron,
the new variance undoes that, because too small a current never reaches the threshold. Before an
addition to a stream, only the mean is set: the stream needs the smallest error.

The classifier is last fitted to the unpruned model's probabilities (``classifier``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from psvit_core.callbacks import Tick
from psvit_core.records import LayerRefit, PrunePlan
from psvit_core.recover.classifier import fit_probabilities
from psvit_core.recover.lockstep import Halt
from psvit_core.recover.norms import find_norms, set_statistics
from psvit_core.recover.readers import Fit, Refits, selected
from psvit_core.recover.teacher import Teacher, average_steps
from psvit_core.selection import remaining_positions
from psvit_core.zoo.base import SpikingModel

_MAX_SCALE = 10.0  # of a BatchNorm's inverse, relative to its median: tiny weights would blow up


@torch.no_grad()
def refit_stages(
    small: SpikingModel,
    teacher: Teacher,
    plan: PrunePlan,
    *,
    norms: bool,
    memory: int,
    tick: Tick,
) -> Refits:
    """Refit all of ``small``'s layers in place, with one forward of each model.

    A layer keeps its weights unless the refit lowers its squared error over the images.

    Args:
        small: The pruned model of ``plan``, placed, in evaluation mode.
        teacher: The unpruned model and the images.
        plan: The plan.
        norms: Also re-estimate every BatchNorm.
        memory: Memory limit of halted batches, in bytes.
        tick: Called before each step of a batch; may raise to stop.
    """
    stages = _Stages(small, teacher, plan, find_norms(small) if norms else ())
    wanted = {*teacher.layers, *stages.readers, *stages.norms}
    names = [name for name in teacher.order if name in wanted]
    with closing(teacher.together(small, names, memory, tick)) as steps:
        for met in steps:
            stages.run(met)
            tick()
    return Refits(tuple(stages.refits), stages.statistics_bytes, stages.held_bytes)


class _Stages:
    """The refits so far, and the errors of the streams before the next additions.

    Args:
        small: The pruned model.
        teacher: The unpruned model and the images.
        plan: The plan.
        norms: BatchNorms to re-estimate.
    """

    def __init__(
        self, small: SpikingModel, teacher: Teacher, plan: PrunePlan, norms: Sequence[str]
    ) -> None:
        self.norms = set(norms) & set(teacher.order)
        self.refits: list[LayerRefit] = []
        self.statistics_bytes = self.held_bytes = 0
        self._small, self._teacher, self._plan = small, teacher, plan
        self._classifier = teacher.classifier  # found before the models are halted
        order = {name: i for i, name in enumerate(teacher.order)}
        self._additions = {
            name: found
            for name, found in teacher.outputs.additions.items()
            if order.get(found.before, len(order)) < order.get(name, -1)
        }
        self._errors: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._before_streams = {addition.norm for addition in self._additions.values()}

    @property
    def readers(self) -> set[str]:
        """Modules that read a stream before an addition."""
        return {addition.before for addition in self._additions.values()}

    def run(self, met: Sequence[tuple[Halt, ...]]) -> None:
        """Process one module, at which all batches have halted in both models."""
        name = met[0][0].name
        self.held_bytes = max(self.held_bytes, sum(h.held_bytes for halts in met for h in halts))
        for key in [key for key in self._errors if key[1] >= len(met)]:
            del self._errors[key]  # of batches that were put back
        if name in self._teacher.layers:
            self._refit(name, met)
        elif name in self.readers:
            for i, (ours, theirs) in enumerate(met):
                self._errors[name, i] = (theirs.input, ours.input)
        else:
            set_statistics([ours for ours, _ in met], variance=name not in self._before_streams)

    def _refit(self, name: str, met: Sequence[tuple[Halt, ...]]) -> None:
        rows = remaining_positions(f"{name}.weight", 0, self._teacher.groups, self._plan)
        norm = self._teacher.outputs.norms.get(name)
        fit = Fit(met[0][0].layer, free_mean=norm in self.norms)
        for i, (ours, theirs) in enumerate(met):
            target = selected(theirs.output, rows)
            correction = self._correction(name, i, theirs.output, ours.output, rows)
            fit.add(ours, target if correction is None else target + correction)
        refit = fit.solve(name)
        for ours, _ in met:
            ours.recompute = refit.kept
        if self._classifier is not None and name == self._classifier[0]:
            self._fit_classifier(met, self._classifier[1])
        self.refits.append(refit)
        self.statistics_bytes = max(self.statistics_bytes, fit.bytes)

    def _fit_classifier(self, met: Sequence[tuple[Halt, ...]], steps: int) -> None:
        layer = met[0][0].layer
        assert isinstance(layer, nn.Linear)
        inputs = torch.cat([average_steps(ours.input, steps) for ours, _ in met])
        wanted = torch.cat([average_steps(theirs.output, steps) for _, theirs in met])
        fit_probabilities(layer, inputs, wanted)
        for ours, _ in met:
            ours.recompute = True

    def _correction(
        self, name: str, batch: int, theirs: Tensor, ours: Tensor, rows: Tensor | None
    ) -> Tensor | None:
        """Return what a layer must add to its output to correct the stream; None if nothing.

        Args:
            name: The layer.
            batch: Position of the batch.
            theirs: The layer's output in the unpruned model.
            ours: The layer's output in the pruned model.
            rows: Channels of ``theirs`` that remain; None: all.
        """
        addition = self._additions.get(name)
        streams = self._errors.get((addition.before, batch)) if addition else None
        if addition is None or streams is None:
            return None
        wanted, found = _as_outputs(streams[0], theirs), _as_outputs(streams[1], ours)
        if wanted is None or found is None:
            return None
        error = selected(wanted, rows) - found
        norm = self._small.get_submodule(addition.norm)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        if norm.running_var is None:
            return None
        scale = (norm.running_var + norm.eps).sqrt()
        if norm.weight is not None:
            scale = scale / norm.weight
        limit = _MAX_SCALE * scale.abs().median()
        scale = scale.nan_to_num(0.0, posinf=float(limit), neginf=-float(limit))
        return (error * scale.clamp(-limit, limit)[:, None]).view_as(ours)


def _as_outputs(stream: Tensor, output: Tensor) -> Tensor | None:
    """Reshape a stream to (rows, channels, positions) of a layer's output; None if it differs."""
    n_rows, n_channels, n_places = output.shape[0], output.shape[1], output[0, 0].numel()
    for axis in range(1, stream.dim()):
        shape = stream.shape
        before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        if (before, shape[axis], after) == (n_rows, n_channels, n_places):
            return stream.reshape(n_rows, n_channels, n_places)
    return None
