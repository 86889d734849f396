"""Native programs of cells that differ in the width of one group.

The cells of a group run the same nodes on the same values of the full model. Behind the group's
readers, their programs are equal up to the places of values in memory. So a cell takes the program
of the cell before it, keeps every value at its place, and writes again only the nodes whose
operands differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from psvit_core.incremental.arena import ChangedError
from psvit_core.incremental.builder import ProgramBuilder, ProgramInput, Written
from psvit_core.incremental.graph import Node
from psvit_core.incremental.program import ProgramRunner
from psvit_core.kernels import native, ops
from psvit_core.kernels.structs import Conv, Operation


@dataclass
class _Step:
    """The part of a program that computes a node.

    Attributes:
        node: The node.
        weights: Keys of the weights that it reads.
        loaded: Values of the full model that it is the first to read.
        first: Position of its first operation.
        written: Its operations in the last program.
    """

    node: Node
    weights: Sequence[Any]
    loaded: Sequence[int]
    first: int
    written: Written


class ProgramSeries:
    """Runs the same nodes with other weights, one cell after the other.

    Args:
        programs: Writes programs from nothing.
        positions: Positions of the nodes.
        leaves: By position, the values that no later node reads.
        per_run: Number of images that run at a time.
        n_images: Most images that a cell can have.

    Attributes:
        reads: Values that the nodes read.
    """

    def __init__(
        self,
        programs: ProgramRunner,
        positions: Sequence[int],
        leaves: Mapping[int, Sequence[int]],
        per_run: int,
        n_images: int,
    ) -> None:
        self._programs, self._positions, self._leaves = programs, positions, leaves
        self._per_run, self._n_images = per_run, n_images
        self._steps: list[_Step] = []
        self._builder: ProgramBuilder | None = None
        self._program: native.Program | None = None
        self._weights: Mapping[Any, Any] = {}
        nodes = programs.graph.nodes
        self.reads = {i for position in positions for i in nodes[position].inputs()}

    def run(
        self, inputs: Mapping[int, ProgramInput], weights: Mapping[Any, Any], images: Tensor
    ) -> dict[int, Tensor]:
        """Run the nodes on some images; arguments and result as for ``ProgramRunner.run``."""
        builder, program = self._programs_for(inputs, weights)
        native.run_program(program, images, self._per_run)
        return {i: result[: len(images)].clone() for i, result in builder.results.items()}

    def _programs_for(
        self, inputs: Mapping[int, ProgramInput], weights: Mapping[Any, Any]
    ) -> tuple[ProgramBuilder, native.Program]:
        builder, program = self._builder, self._program
        if builder is not None and program is not None:
            try:
                self._write_changes(builder, program, inputs, weights)
            except ChangedError:
                builder = program = None
        if builder is None or program is None:
            builder, program = self._write_all(inputs, weights)
        self._builder, self._program, self._weights = builder, program, weights
        return builder, program

    def _write_all(
        self, inputs: Mapping[int, ProgramInput], weights: Mapping[Any, Any]
    ) -> tuple[ProgramBuilder, native.Program]:
        """Write a program from nothing, and note what each node wrote."""
        self._steps = []
        operations: list[Operation] = []
        values: dict[int, Tensor] = {}

        def note(builder: ProgramBuilder, node: Node) -> None:
            loaded = [i for i in node.inputs() if i not in values]
            for i in (*loaded, *node.outputs()):
                values[i] = builder.values[i]
            written = builder.take()
            keys = self._programs.weights_of(node)
            self._steps.append(_Step(node, keys, loaded, len(operations), written))
            operations.extend(written.operations)

        builder = self._programs.build(
            self._positions, inputs, self._leaves, weights, self._n_images, self._per_run, note
        )
        builder.values.update(values)
        return builder, builder.program(operations)

    def _write_changes(
        self,
        builder: ProgramBuilder,
        program: native.Program,
        inputs: Mapping[int, ProgramInput],
        weights: Mapping[Any, Any],
    ) -> None:
        """Write the nodes again whose weights, inputs or values have changed.

        Raises:
            ChangedError: If a node needs other memory than before.
        """
        new = {i for i, given in inputs.items() if not _is_same(given, builder.inputs.get(i))}
        builder.inputs, builder.weights = inputs, weights
        changed: set[int] = set()  # values with other shapes or strides
        before = self._weights
        for step in self._steps:
            if (
                any(i in changed for i in step.node.inputs())
                or any(i in new for i in step.loaded)
                or any(weights[key] is not before[key] for key in step.weights)
            ):
                changed.update(self._write_again(builder, program, step))

    def _write_again(
        self, builder: ProgramBuilder, program: native.Program, step: _Step
    ) -> Iterable[int]:
        """Write a node again; return those of its values whose place or shape has changed."""
        node, values = step.node, builder.values
        touched = (*step.loaded, *node.outputs())
        old = {i: values[i] for i in touched}
        for i in step.loaded:
            del values[i]  # so that it is loaded again
        arena = builder.write_again(step.written.allocated)
        self._programs.write(builder, node)
        arena.check_complete()
        written = builder.take()
        if len(written.operations) != len(step.written.operations) or builder.scratch > (
            program.scratch
        ):
            raise ChangedError("other operations or more scratch memory")
        for operation, before in zip(written.operations, step.written.operations, strict=True):
            if operation.kind != before.kind:
                raise ChangedError("another kind of operation")
            if isinstance(operation, Conv) and isinstance(before, Conv):
                ops.keep_neuron(operation, before)
        step.written = Written(written.operations, step.written.allocated, written.referenced)
        program.replace(step.first, written.operations)
        return [i for i in touched if _layout(values[i]) != _layout(old[i])]


def _is_same(given: ProgramInput, before: ProgramInput | None) -> bool:
    return (
        before is not None
        and given.value is before.value
        and given.channels is None
        and before.channels is None
    )


def _layout(value: Tensor) -> tuple[Any, ...]:
    place = value.storage_offset() if value.is_meta else value.data_ptr()
    return value.is_meta, place, value.shape, value.stride()
