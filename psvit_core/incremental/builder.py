"""Values, memory and operations of a native program while it is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psvit_core.incremental.arena import Arena, FixedArena
from psvit_core.incremental.graph import Node, Value, Weight, run_node
from psvit_core.kernels import native, ops
from psvit_core.kernels.ops import UnsupportedError, memory_order
from psvit_core.kernels.structs import Conv, Operation

META = torch.device("meta")
_MAX_ARENA = 1 << 40  # elements, more than any arena has; the meta device allocates nothing

_Layout = tuple[torch.Size, tuple[int, ...], int]  # shape, strides, offset of the first element


@dataclass(frozen=True)
class ProgramInput:
    """A value of the full model that a program reads.

    Attributes:
        value: The value for the whole batch.
        image_axis: Axis of (time steps x images); None where the value is the same for all images.
        batch: Number of images in ``value``.
        channels: An axis and the indices to take from it (int64); None takes all of them.
    """

    value: Tensor
    image_axis: int | None
    batch: int
    channels: tuple[int, Tensor] | None


@dataclass(frozen=True)
class Written:
    """What a builder wrote for a node.

    Attributes:
        operations: The operations.
        allocated: Offset in the arena and number of elements of each allocation.
        referenced: Memory outside the arena that the operations point to.
    """

    operations: list[Operation]
    allocated: list[tuple[int, int]]
    referenced: list[Tensor]


class GraphLayouts:
    """Results that all programs of a graph share: layouts of views, scalars, fusible convolutions.

    Args:
        dtype: Type of all values.
        fusible: For the input of a neuron, the output of the convolution that it is a view of,
            where the neuron is its only reader.
    """

    def __init__(self, dtype: torch.dtype, fusible: Mapping[int, int]) -> None:
        self.dtype, self.fusible = dtype, fusible
        self._views: dict[tuple[Any, ...], _Layout | None] = {}
        self._scalars: dict[float, Tensor] = {}

    def scalar(self, number: float) -> Tensor:
        """Return a number as a tensor without axes."""
        if number not in self._scalars:
            self._scalars[number] = torch.tensor(number, dtype=self.dtype)
        return self._scalars[number]

    def view(
        self, node: Node, source: Tensor, weights: Mapping[Any, Any], per_run: int
    ) -> _Layout | None:
        """Return the layout of a view in the memory of its source; None if torch would copy."""
        key = (node.out, per_run, source.shape, source.stride())
        if key not in self._views:
            x = torch.empty_strided(source.shape, source.stride(), dtype=self.dtype, device=META)
            values = {node.inputs()[0]: x}
            run_node(node, values, weights, per_run, META)
            result = values[node.out]
            is_view = result.untyped_storage()._cdata == x.untyped_storage()._cdata
            layout = (result.shape, result.stride(), int(result.storage_offset()))
            self._views[key] = layout if is_view else None
        return self._views[key]


class ProgramBuilder:
    """A native program under construction.

    Values in the arena are tensors on the meta device, whose storage offset is their place.

    Args:
        layouts: What all programs of the graph share.
        inputs: By index, every value that the program reads and does not compute.
        weights: Parameters and buffers by name, and every ``DerivedWeight``.
        n_images: Number of images in all.
        per_run: Number of images that run at a time.
    """

    def __init__(
        self,
        layouts: GraphLayouts,
        inputs: Mapping[int, ProgramInput],
        weights: Mapping[Any, Any],
        n_images: int,
        per_run: int,
    ) -> None:
        self.layouts, self.weights, self.per_run = layouts, weights, per_run
        self.values: dict[int, Tensor] = {}
        self.results: dict[int, Tensor] = {}
        self.lengths: dict[int, int] = {}  # elements of the nodes' outputs, per image
        self.inputs = inputs
        self._n_images, self._dtype = n_images, layouts.dtype
        self._operations: list[Operation] = []
        self.scratch = 0
        self._own_arena = Arena()
        self._arena: Arena | FixedArena = self._own_arena
        self._allocated: list[tuple[int, int]] = []
        self._memory = torch.empty(_MAX_ARENA, dtype=self._dtype, device=META)
        self._places: dict[int, int] = {}  # value -> offset of its memory in the arena
        self._users: dict[int, int] = {}  # offset -> number of values in this memory
        self._temporaries: list[int] = []  # offsets that only the current node needs
        self._convs: dict[int, Conv] = {}  # value -> the convolution that computes it
        self._referenced: list[Tensor] = []  # memory that operations point to

    def program(self, operations: list[Operation] | None = None) -> native.Program:
        """Return the program; it points to memory that this builder keeps alive.

        Args:
            operations: Those of all nodes, if ``take`` was called after each.
        """
        operations = self._operations if operations is None else operations
        return native.Program(operations, self._dtype, self._own_arena.size, self.scratch)

    def take(self) -> Written:
        """Return what was written since the last call; the caller now keeps its memory alive."""
        written = Written(self._operations, self._allocated, self._referenced)
        self._operations, self._allocated, self._referenced = [], [], []
        return written

    def write_again(self, allocated: Sequence[tuple[int, int]]) -> FixedArena:
        """Prepare to write a node for another width, at the places that it had before.

        Args:
            allocated: Its allocations (``Written``).

        Returns:
            The memory that the node is given.
        """
        arena = self._arena = FixedArena(allocated)
        self._places.clear()
        self._users.clear()
        return arena

    def emit(self, operation: Operation, scratch: int = 0) -> None:
        """Append an operation that needs this many bytes of scratch memory."""
        self._operations.append(operation)
        self.scratch = max(self.scratch, scratch)

    # ---- memory ------------------------------------------------------------------------------

    def allocate(self, shape: Sequence[int], order: Sequence[int]) -> Tensor:
        """Return a new dense value in the arena; ``order`` gives its axes, the slowest first."""
        strides, n = [0] * len(shape), 1
        for axis in reversed(order):
            strides[axis] = n
            n *= shape[axis]
        offset = self._arena.allocate(n)
        self._allocated.append((offset, n))
        self._users[offset] = 1
        return self._memory.as_strided(tuple(shape), strides, offset)

    def allocate_temporary(self, shape: Sequence[int], order: Sequence[int]) -> Tensor:
        """Allocate memory that is released at the end of the current node."""
        value = self.allocate(shape, order)
        self.release_after_node(value)
        return value

    def release_after_node(self, value: Tensor) -> None:
        """Release a value that was allocated but never defined at the end of the current node."""
        self._temporaries.append(int(value.storage_offset()))

    def keep(self, tensor: Tensor) -> Tensor:
        """Return a tensor outside the arena and keep its memory alive."""
        if tensor.dtype != self._dtype:
            raise UnsupportedError(f"a tensor of {tensor.dtype}")
        self._referenced.append(tensor)
        return tensor

    def _release(self, offset: int) -> None:
        self._users[offset] -= 1
        if not self._users[offset]:
            del self._users[offset]
            self._arena.free(offset)

    # ---- values ------------------------------------------------------------------------------

    def define(self, index: int, value: Tensor, memory: Tensor | None = None) -> None:
        """Set a value of the graph to an allocated tensor, or to a view of ``memory``."""
        self.values[index] = value
        self._places[index] = int((value if memory is None else memory).storage_offset())

    def define_view(self, index: int, value: Tensor, base: int) -> None:
        """Set a value of the graph to a view of the memory of value ``base``."""
        self.values[index] = value
        if base in self._places:
            self._places[index] = self._places[base]
            self._users[self._places[index]] += 1

    def define_conv(self, index: int, value: Tensor, operation: Conv) -> None:
        """Set a value to the output of a convolution, which a neuron may be fused into."""
        self.define(index, value)
        self._convs[index] = operation

    def conv_before(self, index: int) -> Conv | None:
        """Return the convolution whose whole output a neuron's input is, if no other node reads it.

        Args:
            index: The neuron's input.
        """
        operation = self._convs.get(self.layouts.fusible.get(index, -1))
        if operation is None or self.values[index].numel() != ops.conv_output_numel(operation):
            return None
        return operation

    def operand(self, argument: Any) -> Tensor:
        """Return the tensor of a node's argument: a value, a weight or a number."""
        if type(argument) is Value:
            return self.values[argument.index]
        if type(argument) is Weight:
            return self.keep(self.weights[argument.name])
        if isinstance(argument, (int, float)):
            return self.layouts.scalar(float(argument))
        raise UnsupportedError(f"an argument {argument!r}")

    def load_inputs(self, node: Node) -> None:
        """Make every input of a node available."""
        for index in node.inputs():
            if index not in self.values:
                self._load(index)

    def end_node(self) -> None:
        """Release the memory that only the current node needed."""
        for offset in self._temporaries:
            self._release(offset)
        self._temporaries.clear()

    def discard(self, index: int) -> None:
        """Release a value that no later node reads."""
        self.values.pop(index, None)
        self._convs.pop(index, None)
        offset = self._places.pop(index, None)
        if offset is not None:
            self._release(offset)

    def store(self, index: int) -> None:
        """Copy a value to ``results``."""
        value = self.values[index]
        if value.dim() not in (1, 2) or value.shape[0] != self.per_run:
            raise UnsupportedError("a result that is not (images,) or (images, n)")
        shape = (self._n_images, *value.shape[1:])
        result = self.results.get(index)
        if result is None or result.shape != shape:
            result = self.results[index] = torch.empty(shape, dtype=self._dtype)
        self.emit(ops.store(value.unsqueeze(1) if value.dim() == 1 else value, result))

    def _load(self, index: int) -> None:
        given = self.inputs[index]
        if given.image_axis is None:
            self.values[index] = self.keep(given.value)
            return
        shape = list(given.value.shape)
        shape[given.image_axis] = shape[given.image_axis] // given.batch * self.per_run
        if given.channels is not None:
            shape[given.channels[0]] = len(given.channels[1])
            self._referenced.append(given.channels[1])
        value = self.allocate(shape, memory_order(given.value.stride()))
        images = (given.image_axis, given.batch)
        self.emit(ops.load(value, self.keep(given.value), images, given.channels))
        self.define(index, value)
