"""Layer-by-layer execution of models over all calibration images, in one forward per model.

A layer that is fitted to its inputs needs the outputs of earlier layers that are already fitted.
Running the models again for every layer would take one forward per layer. Instead, each batch runs
in its own thread, which halts at every selected layer until all batches have reached it. Only one
thread runs at a time, in the order of the batches, so results are deterministic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from psvit_core.callbacks import Tick
from psvit_core.data import EvalSet
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

#: Memory limit of halted batches, in bytes.
DEFAULT_MEMORY = 4 << 30
_HELD = 4  # memory of a halted batch, as a multiple of the halted layer's input and output

_local = threading.local()  # .lane: the lane that runs in this thread


@dataclass
class Halt:
    """One batch halted at one layer of one model: the output is computed but not yet used.

    Set ``recompute`` after changing the layer, so that its output is computed again.
    """

    name: str
    layer: nn.Module
    input: Tensor
    output: Tensor
    recompute: bool = False

    @property
    def held_bytes(self) -> int:
        """Estimated memory of the halted batch, in bytes."""
        return _HELD * (self.input.nbytes + self.output.nbytes)


class _Abandoned(BaseException):
    """Unwinds the thread of an abandoned batch. No handler for ``Exception`` catches it."""


class _Lane:
    """Forward pass of one model on one batch, run from halt to halt."""

    def __init__(self, forward: Callable[[], object]) -> None:
        self._forward = forward
        self._resumed, self._halted = threading.Semaphore(0), threading.Semaphore(0)
        self._awaited: str | None = None
        self._abandoned = False
        self._error: BaseException | None = None
        self._threads = torch.get_num_threads()
        self.at: Halt | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self, until: str | None = None) -> Halt | None:
        """Run to the next halt, or to the layer ``until``. Return None after the last layer."""
        self._awaited = until
        self._resumed.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error
        return self.at

    def close(self) -> None:
        """Abandon the batch and free its memory."""
        self._abandoned = True
        self._resumed.release()
        self._thread.join()
        self.at = None

    def halt(self, at: Halt) -> None:
        """Halt at a selected layer. Called in the lane's thread."""
        if self._awaited not in (None, at.name):
            return
        self.at = at
        self._halted.release()
        self._wait()

    def _wait(self) -> None:
        self._resumed.acquire()
        if self._abandoned:
            raise _Abandoned

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # new threads do not inherit it
        _local.lane = self
        try:
            self._wait()
            with torch.no_grad():
                self._forward()
        except _Abandoned:
            return
        except BaseException as error:  # advance() raises it in the caller's thread
            self._error = error
        self.at = None
        self._halted.release()


@contextmanager
def _halting(model: SpikingModel, names: Sequence[str]) -> Iterator[None]:
    """Make lanes halt at these layers inside the ``with`` block."""

    def at(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            lane: _Lane | None = getattr(_local, "lane", None)
            if lane is None:  # another job runs the model between two steps
                return None
            halt = Halt(name, layer, inputs[0], output)
            lane.halt(halt)
            return layer.forward(*inputs) if halt.recompute else None

        return hook

    with ExitStack() as hooks:
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(at(name))
            hooks.callback(handle.remove)
        yield


def lockstep(
    models: Sequence[SpikingModel],
    names: Sequence[str],
    data: EvalSet,
    run: Run,
    *,
    memory: int = DEFAULT_MEMORY,
    tick: Tick,
) -> Generator[list[tuple[Halt, ...]], None, None]:
    """Take all images through ``models`` together, halting at the layers ``names``.

    Where all batches do not fit into ``memory``, a layer sees as many as do; the others follow, on
    the layers fitted so far, as soon as there is room. So early layers of high resolution see fewer
    images, which have many positions each. At least one batch is always there.

    Args:
        models: Of one architecture, placed where ``run`` says, in evaluation mode.
        names: Layers that each model runs exactly once a forward.
        data: Images, in fixed batches of ``run.batch``.
        run: Device, batch, precision.
        memory: Bytes that halted batches may hold, by a rough count.
        tick: Called before each step of a batch; may raise to stop.

    Yields:
        For each layer, in the order of the network: the halts of every batch there, one for each
        model.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(_halting(model, names))
        batches = _Batches(models, data, run, tick)
        stack.callback(batches.close)
        batches.start()
        while True:
            here = [batches.advance(lanes) for lanes in batches.lanes]
            if not here[0]:
                return
            held = sum(halt.held_bytes for halt in here[0])
            while len(batches.lanes) > 1 and held * len(batches.lanes) > memory:
                batches.put_back()
                here.pop()
            while batches.waiting and held * (len(batches.lanes) + 1) <= memory:
                batches.start()
                here.append(batches.advance(batches.lanes[-1], here[0][0].name))
            yield here


class _Batches:
    """The batches of a lockstep run: those that wait, and the lanes of those that run.

    Args:
        models: As for ``lockstep``.
        data: Images.
        run: Device, batch, precision.
        tick: Called before each step of a batch.
    """

    def __init__(self, models: Sequence[SpikingModel], data: EvalSet, run: Run, tick: Tick) -> None:
        size, n = run.batch, len(data)
        self.waiting = [data.take(range(i, min(i + size, n))) for i in range(0, n, size)]
        self.lanes: list[tuple[_Lane, ...]] = []  # for each running batch, one lane per model
        self._running: list[EvalSet] = []
        self._models, self._run, self._tick = models, run, tick

    def start(self) -> None:
        """Start the next waiting batch."""
        part = self.waiting.pop(0)
        [x] = part.batches(len(part), self._run.dtype)
        placed = x.to(self._run.device)
        self.lanes.append(
            tuple(_Lane(partial(_forward, model, placed, self._run)) for model in self._models)
        )
        self._running.append(part)

    def put_back(self) -> None:
        """Stop the batch started last; it waits again."""
        for lane in self.lanes.pop():
            lane.close()
        self.waiting.insert(0, self._running.pop())

    def advance(self, lanes: tuple[_Lane, ...], until: str | None = None) -> tuple[Halt, ...]:
        """Run one batch to its next layer, or to the layer ``until``."""
        self._tick()
        halts = [lane.advance(until) for lane in lanes]
        return tuple(halt for halt in halts if halt is not None)

    def close(self) -> None:
        """Stop all lanes."""
        for lanes in self.lanes:
            for lane in lanes:
                lane.close()


def _forward(model: SpikingModel, x: Tensor, run: Run) -> None:
    with run.autocast:
        model(x)


def run_once(model: SpikingModel, names: Sequence[str], data: EvalSet, run: Run) -> list[str]:
    """Return the layers in ``names`` that a forward runs exactly once, in execution order."""
    met: list[str] = []
    with ExitStack() as hooks:
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(
                lambda layer, inputs, name=name: met.append(name)
            )
            hooks.callback(handle.remove)
        [x] = data.take([0]).batches(1, run.dtype)
        with torch.no_grad():
            _forward(model, x.to(run.device), run)
    return [name for name in met if met.count(name) == 1]
