"""When the values of a forward pass come and go, and what memory they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psvit_core.sensitivity.spread import Network, Spread
from psvit_core.tape import Sized, Tape

#: Bytes that torch needs beside a step's inputs and output, relative to these: convolutions copy
#: both into another layout (measured, benchmarks/sweep.py).
WORKSPACE = 2.0


@dataclass(frozen=True)
class Plans:
    """Of what must be run again for a group: its counting steps and the others."""

    counts: LocalPlan
    steps: LocalPlan

    @classmethod
    def of(cls, network: Network, found: Spread) -> Plans:
        """The plans of a group."""
        return cls(LocalPlan(network, found.counts), LocalPlan(network, found.steps))

    def peak(self, size: Sequence[int]) -> int:
        """Largest memory per image while either runs; ``size``: bytes per image of each value."""
        return max(self.counts.peak(size), self.steps.peak(size))


class LocalPlan:
    """When the values of some steps come and go."""

    def __init__(self, network: Network, positions: Sequence[int]) -> None:
        steps = network.tape.steps
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        keep = {network.logits, *network.readers.values()}
        constants = {i for p in constant_steps(network.tape) for i in steps[p].outs()}
        made = {i for p in positions for i in steps[p].outs()}
        for position in positions:
            for i in steps[position].outs():
                last[i] = position
            for i in steps[position].inputs():
                last[i] = position
                if i not in made:
                    first.setdefault(i, position)
        self.enters: dict[int, list[int]] = {}
        self.leaves: dict[int, list[int]] = {}
        for i, position in first.items():
            if i not in constants:
                self.enters.setdefault(position, []).append(i)
        for i, position in last.items():
            if i not in keep and i not in constants:
                self.leaves.setdefault(position, []).append(i)
        self._network, self._positions = network, positions

    def peak(self, size: Sequence[int]) -> int:
        """Largest memory per image while the steps run."""
        held = most = 0
        views: dict[int, int] = {}
        for position in self._positions:
            step = self._network.tape.steps[position]
            for i in (*self.enters.get(position, ()), *step.outs()):
                views[i] = size[i]
                held += size[i]
            touched = sum(size[i] for i in {*step.inputs(), *step.outs()})
            most = max(most, held + int(touched * WORKSPACE))
            for i in self.leaves.get(position, ()):
                held -= views.pop(i, 0)
        return most


def constant_steps(tape: Tape) -> set[int]:
    """Steps that give the same for any images: they are run once."""
    varying = {0}
    constant = set()
    for position, step in enumerate(tape.steps):
        if any(i in varying for i in step.inputs()) or tape.batch_axis(step.out) is not None:
            varying.update(step.outs())
        else:
            constant.add(position)
    return constant


def steps_towards(tape: Tape, wanted: set[int]) -> set[int]:
    """Positions of the steps that lead to these values."""
    wanted = set(wanted)
    needed = set()
    for position in reversed(range(len(tape.steps))):
        step = tape.steps[position]
        if any(i in wanted for i in step.outs()):
            needed.add(position)
            wanted.update(step.inputs())
    return needed


def bytes_per_image_of(shape: Sequence[int | Sized]) -> int:
    """Bytes of a float32 value for each image of a batch; 0 where it is the same for all."""
    grows = any(isinstance(n, Sized) for n in shape)
    numbers = 1
    for n in shape:
        numbers *= n.slope if isinstance(n, Sized) else n
    return 4 * numbers if grows else 0
