"""What recoveries take from the unpruned model, computed once for a model and its images.

Every plan of a model is recovered towards the same outputs of the same layers. A process keeps them
for the models used last, so that only the pruned model runs for a further plan or method.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from functools import cached_property

import torch
from torch import Tensor, nn

from psvit_core.callbacks import Tick
from psvit_core.data import EvalSet
from psvit_core.evaluate import conditions_of, place
from psvit_core.groups import COMPUTE_LAYERS, find_groups
from psvit_core.records import ChannelGroup
from psvit_core.recover.lockstep import Halt, lockstep, run_once
from psvit_core.recover.streams import Outputs, trace_outputs
from psvit_core.runtime import Run
from psvit_core.storage.predictions import Array
from psvit_core.storage.store import digest
from psvit_core.zoo.base import SpikingModel

#: Bytes of layer outputs that a process keeps, of all models together.
KEPT_BYTES = 512 << 20
_MOST_KEPT = 4  # models, or sets of images


class Teacher:
    """The unpruned model on its calibration images.

    Args:
        model: The unpruned model, placed, in evaluation mode; its weights must not change.
        fit: Images that layers are fitted to.
        held_out: Images that methods are compared on.
        run: Device, batch, precision.
    """

    def __init__(self, model: SpikingModel, fit: EvalSet, held_out: EvalSet, run: Run) -> None:
        self.model, self.fit, self.held_out, self.run = model, fit, held_out, run
        self._expected: Array | None = None
        self._values: dict[str, list[Halt]] | None = None  # by module, one for each batch

    @cached_property
    def groups(self) -> Sequence[ChannelGroup]:
        """The model's groups."""
        return find_groups(self.model)

    @cached_property
    def outputs(self) -> Outputs:
        """What becomes of the outputs of layers."""
        [x] = self.fit.take([0]).batches(1, self.run.dtype)
        return trace_outputs(self.model, tuple(x.shape[1:]))

    @cached_property
    def order(self) -> list[str]:
        """All modules that a forward pass runs exactly once, in execution order."""
        named = [name for name, _ in self.model.named_modules() if name]
        return run_once(self.model, named, self.fit, self.run)

    @cached_property
    def layers(self) -> list[str]:
        """The layers that can be refitted, in execution order."""
        modules = dict(self.model.named_modules())
        return [
            name
            for name in self.order
            if isinstance(modules[name], COMPUTE_LAYERS) and can_refit(self.model, name)
        ]

    @cached_property
    def stream_readers(self) -> list[str]:
        """Modules that read a stream before a branch is added to it."""
        found = {addition.before for addition in self.outputs.additions.values()}
        return [name for name in self.order if name in found]

    def expected(self, tick: Tick) -> Array:
        """Return the logits of the held-out images, (n_images, num_classes)."""
        if self._expected is None:
            self._expected = run_logits(self.model, self.held_out, self.run, tick)
        return self._expected

    def fit_run(self, memory: int) -> Run:
        """Return the run for the images to fit to: in one batch where that changes no result.

        Args:
            memory: Memory limit of halted batches, in bytes.
        """
        if self.model.batch_coupled or not self._fits(memory):
            return self.run
        return dataclasses.replace(self.run, batch=max(len(self.fit), 1))

    def is_shared(self, memory: int, tick: Tick) -> bool:
        """Complete what recoveries take from this model, if several may then run at once.

        They may not where this model runs along with the pruned one, on another device, or where
        the images of two do not fit into the memory together.

        Args:
            memory: Memory limit of halted batches of all that run at once, in bytes.
            tick: Called before each batch; may raise to stop.
        """
        if self.run.device != "cpu" or self.model.batch_coupled or not self._fits(memory):
            return False
        if 2 * self.halted_bytes > memory:
            return False
        self._known_values(self.fit_run(memory), tick)
        self.expected(tick)
        _ = self.groups, self.outputs, self.order, self.stream_readers, self.classifier
        return True

    def _fits(self, memory: int) -> bool:
        return self.value_bytes <= min(memory, KEPT_BYTES)

    @cached_property
    def classifier(self) -> tuple[str, int] | None:
        """The linear layer whose outputs are the logits of each time step, and their number."""
        few = self.fit.take(range(min(len(self.fit), 2)))
        [x] = few.batches(len(few), self.run.dtype)
        made: dict[str, Tensor] = {}
        logits = self._watch(x, lambda name, inputs, output: made.update({name: output}))
        for name in reversed(self.layers):
            if isinstance(self.model.get_submodule(name), nn.Linear) and made[name].dim() == 2:
                found = average_steps(made[name], len(made[name]) // len(few))
                if found.shape == logits.shape and torch.allclose(found, logits, atol=1e-5):
                    return name, len(made[name]) // len(few)
        return None

    @property
    def value_bytes(self) -> int:
        """Bytes of the outputs of all layers and of the streams, for all images to fit to."""
        return self._image_bytes[0] * len(self.fit)

    @property
    def halted_bytes(self) -> int:
        """Bytes that all images to fit to hold at most while they are halted, by a rough count."""
        return self._image_bytes[1] * len(self.fit)

    @cached_property
    def _image_bytes(self) -> tuple[int, int]:
        """Shares of one image in ``value_bytes`` and ``halted_bytes``."""
        kept, halted = 0, 0

        def count(name: str, inputs: Tensor, output: Tensor) -> None:
            nonlocal kept, halted
            kept += _seen(self, name, inputs, output)
            # A BatchNorm behind the layer, where batches halt too, reads and returns its output.
            larger = max(inputs, output, key=lambda x: x.nbytes)
            halted = max(halted, Halt(name, self.model, larger, larger).held_bytes)

        [x] = self.fit.take([0]).batches(1, self.run.dtype)
        self._watch(x, count)
        return kept, halted

    def together(
        self, small: SpikingModel, names: Sequence[str], memory: int, tick: Tick
    ) -> Generator[list[tuple[Halt, Halt]], None, None]:
        """Take all images through a pruned model and this one, halting at these modules.

        This model's values are kept if there is room for them; otherwise it runs along.

        Args:
            small: The pruned model, placed, in evaluation mode.
            names: Modules in execution order, each run exactly once a forward.
            memory: Memory limit of halted batches, in bytes.
            tick: Called before each step of a batch; may raise to stop.

        Yields:
            For each module: the halts of every batch there, (pruned model's, this model's). Of this
            model's, only layers have outputs, and only readers of streams have inputs.
        """
        run = self.fit_run(memory)
        if not self._fits(memory):
            both = (small, self.model)
            steps = lockstep(both, names, self.fit, run, memory=memory, tick=tick)
            with closing(steps):
                for met in steps:
                    yield [(ours, theirs) for ours, theirs in met]
            return
        values = self._known_values(run, tick)
        steps = lockstep((small,), names, self.fit, run, memory=memory, tick=tick)
        with closing(steps):
            for met in steps:
                known = values.get(met[0][0].name)  # none of a BatchNorm, which is not fitted
                yield [(ours, known[i] if known else ours) for i, (ours,) in enumerate(met)]

    def _known_values(self, run: Run, tick: Tick) -> dict[str, list[Halt]]:
        if self._values is not None:
            return self._values
        found: dict[str, list[Halt]] = {}
        nothing = torch.empty(0)

        def keep(name: str, inputs: Tensor, output: Tensor) -> None:
            layer = self.model.get_submodule(name)
            reads = inputs.clone() if name in self.stream_readers else nothing
            made = output.clone() if name in self.layers else nothing
            found.setdefault(name, []).append(Halt(name, layer, reads, made))

        for x in self.fit.batches(run.batch, run.dtype):
            tick()
            self._watch(x, keep)
        self._values = found
        _forget_others(self)
        return found

    @torch.no_grad()
    def _watch(self, x: Tensor, see: Callable[[str, Tensor, Tensor], None]) -> Tensor:
        """Run a batch; ``see`` gets each layer's and each stream reader's input and output.

        Returns:
            The logits.
        """

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            return lambda layer, inputs, output: see(name, inputs[0], output)

        with ExitStack() as hooks, self.run.autocast:
            for name in {*self.layers, *self.stream_readers}:
                handle = self.model.get_submodule(name).register_forward_hook(hook(name))
                hooks.callback(handle.remove)
            logits: Tensor = self.model(x.to(self.run.device))
        return logits


def average_steps(x: Tensor, steps: int) -> Tensor:
    """Average (time steps x images, n) over the time steps."""
    return x.unflatten(0, (steps, -1)).mean(0)


def can_refit(model: SpikingModel, name: str) -> bool:
    """Return whether a layer's weights can be fitted by least squares."""
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Linear) or is_pointwise(layer):
        return True
    return (
        isinstance(layer, nn.Conv2d)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def is_pointwise(layer: nn.Module) -> bool:
    """Return whether a convolution reads every input position for one output position."""
    return (
        isinstance(layer, (nn.Conv1d, nn.Conv2d))
        and layer.groups == 1
        and {*layer.kernel_size, *layer.stride} == {1}
        and not any(layer.padding)
    )


def _seen(teacher: Teacher, name: str, inputs: Tensor, output: Tensor) -> int:
    """Return the bytes to keep of a module's input and output."""
    of_layer = output.nbytes if name in teacher.layers else 0
    return of_layer + (inputs.nbytes if name in teacher.stream_readers else 0)


@torch.no_grad()
def run_logits(model: SpikingModel, data: EvalSet, run: Run, tick: Tick) -> Array:
    """Return a model's logits, (n_images, num_classes) float64."""
    found = []
    with run.autocast:
        for x in data.batches(run.batch, run.dtype, run.workers):
            tick()
            found.append(model(x.to(run.device)).double().cpu())
    return torch.cat(found).numpy()


_teachers: OrderedDict[str, Teacher] = OrderedDict()  # used last at the end


def find_teacher(
    original: SpikingModel, weights: str, fit: EvalSet, held_out: EvalSet, run: Run
) -> Teacher:
    """Return the teacher for a model and its images, the one that the process keeps if it does.

    Args:
        original: The unpruned model.
        weights: Hash of its weights.
        fit: Images that layers are fitted to.
        held_out: Images that methods are compared on.
        run: Device, batch, precision.
    """
    images = [[conditions_of(original, part, run).to_dict(), *part.ids] for part in (fit, held_out)]
    key = digest([weights, original.T, list(original.input_shape), *images])
    placed = place(original, run)
    found = _teachers.pop(key, None) or Teacher(placed, fit, held_out, run)
    found.model = placed  # the same weights; an earlier object may have been changed since
    _teachers[key] = found
    while len(_teachers) > _MOST_KEPT:
        _teachers.popitem(last=False)
    return found


def _forget_others(newest: Teacher) -> None:
    """Forget the values of the teachers used longest ago where they do not fit with the newest."""
    free = KEPT_BYTES - newest.value_bytes
    for key, teacher in reversed(list(_teachers.items())):
        if teacher is newest:
            continue
        if teacher._values is not None:
            free -= teacher.value_bytes
        if free < 0:
            del _teachers[key]
