"""Running all calibration images through models in step: layer by layer, every layer met once.

A layer that is fitted to its inputs must see them as the layers before it, already fitted, make
them. Running the models anew for every layer costs layers x forwards; here each batch runs in a
thread of its own that halts at every layer of interest until all batches have come there, so that
one forward of each model is enough. Only one thread runs at a time, in the order of the batches:
results are deterministic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from psvit_core.data import EvalSet
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

#: Bytes of halted batches that are held at a time.
DEFAULT_MEMORY = 4 << 30
_HELD = 4  # a halted batch is counted as so many times the input and output where it halts

_here = threading.local()  # .lane: the lane that the present thread runs


@dataclass
class Halt:
    """One batch at one layer of one model, its output computed and not yet used.

    ``again`` is set by whoever changed the layer: its output is then computed anew.
    """

    name: str
    layer: nn.Module
    input: Tensor
    output: Tensor
    again: bool = False

    @property
    def held_bytes(self) -> int:
        """About what this batch holds in memory while it halts here."""
        return _HELD * (self.input.nbytes + self.output.nbytes)


class _Abandoned(BaseException):
    """Unwinds a thread whose batch is given up; no error of the model may catch it."""


class _Lane:
    """A forward of one model on one batch that runs from halt to halt."""

    def __init__(self, forward: Callable[[], object]) -> None:
        self._forward = forward
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        self._awaited: str | None = None
        self._abandoned = False
        self._error: BaseException | None = None
        self._threads = torch.get_num_threads()
        self.at: Halt | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self, until: str | None = None) -> Halt | None:
        """Run to the next halt (to the one at ``until``); None when the forward is over."""
        self._awaited = until
        self._go.release()
        self._came.acquire()
        if self._error is not None:
            raise self._error
        return self.at

    def close(self) -> None:
        """Give up; what the batch holds is free afterwards."""
        self._abandoned = True
        self._go.release()
        self._thread.join()
        self.at = None

    def halt(self, at: Halt) -> None:
        """Called in the thread, at a layer of interest."""
        if self._awaited not in (None, at.name):
            return
        self.at = at
        self._came.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # threads do not inherit it
        _here.lane = self
        try:
            self._wait()
            with torch.no_grad():
                self._forward()
        except _Abandoned:
            return
        except BaseException as error:  # raised where the forward was asked for
            self._error = error
        self.at = None
        self._came.release()


@contextmanager
def _halting(model: SpikingModel, names: Sequence[str]) -> Iterator[None]:
    """Let lanes halt at these layers while the block runs."""

    def at(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            halt = Halt(name, layer, inputs[0], output)
            _here.lane.halt(halt)
            return layer.forward(*inputs) if halt.again else None

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
    tick: Callable[[], None],
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
    size = run.batch
    waiting = [data.take(range(i, min(i + size, len(data)))) for i in range(0, len(data), size)]
    lanes: list[tuple[_Lane, ...]] = []
    parts: list[EvalSet] = []

    def start() -> None:
        part = waiting.pop(0)
        [x] = part.batches(len(part), run.dtype)
        placed = x.to(run.device)
        lanes.append(tuple(_Lane(partial(_forward, model, placed, run)) for model in models))
        parts.append(part)

    def step(together: tuple[_Lane, ...], until: str | None = None) -> tuple[Halt, ...]:
        tick()
        halts = [lane.advance(until) for lane in together]
        return tuple(halt for halt in halts if halt is not None)

    def close_all() -> None:
        for together in lanes:
            for lane in together:
                lane.close()

    with ExitStack() as stack:
        for model in models:
            stack.enter_context(_halting(model, names))
        stack.callback(close_all)
        start()
        while True:
            here = [step(together) for together in lanes]
            if not here[0]:
                return
            held = sum(halt.held_bytes for halt in here[0])
            while len(lanes) > 1 and held * len(lanes) > memory:
                for lane in lanes.pop():
                    lane.close()
                here.pop()
                waiting.insert(0, parts.pop())
            while waiting and held * (len(lanes) + 1) <= memory:
                start()
                here.append(step(lanes[-1], here[0][0].name))
            yield here


def _forward(model: SpikingModel, x: Tensor, run: Run) -> None:
    with run.autocast:
        model(x)


def run_once(model: SpikingModel, names: Sequence[str], data: EvalSet, run: Run) -> list[str]:
    """Those of ``names`` that a forward runs exactly once, in the order in which it runs them."""
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
