"""A model's forward pass as a flat list of steps, so that any part of it can be run on its own.

``record`` runs the pass once on shapes alone and writes down every torch call. The list holds for
any batch size: it is recorded at two, and an argument that differs grows linearly with the batch.
A sweep uses it to run only what a pruned group changes (``sensitivity.spread``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

_BATCHES = (2, 3)  # 1 would not show where a size is the batch's
_CHECKED = 7  # the tape of these two must be right for this one


_LookUp = Callable[[Mapping[int, Tensor], Mapping[Any, Any], int, torch.device], Any]


class TapeError(Exception):
    """A forward pass that cannot be written down; the message says why."""


@dataclass(frozen=True)
class Value:
    """What a step gave, or the input (index 0), as an argument of a later step."""

    index: int


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer as an argument."""

    name: str


@dataclass(frozen=True)
class Sized:
    """An integer argument that grows with the batch: ``base + slope * batch``."""

    base: int
    slope: int

    def at(self, batch: int) -> int:
        """The integer for this many images."""
        return self.base + self.slope * batch


@dataclass(frozen=True)
class Rows:
    """The length of a weight's first axis as an argument: the groups of a depthwise convolution."""

    name: str


class Made(ABC):
    """An argument that is made of weights beforehand and looked up among them; hashable."""

    @abstractmethod
    def names(self) -> list[str]:
        """The weights."""

    @abstractmethod
    def of(self, weights: Mapping[Any, Any]) -> Any:
        """The argument that these weights make."""


@dataclass(frozen=True)
class Step:
    """One torch call.

    Attributes:
        call: The function.
        args, kwargs: Its arguments; tensors as ``Value`` or ``Weight``.
        out: Index of the value that it gives; of the first one where it gives several.
        several: How many values it gives where it gives a tuple, else None.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: int
    several: int | None = None

    @cached_property
    def slots(self) -> tuple[tuple[int, _LookUp], ...]:
        """Positional arguments that must be looked up when the step runs, and how."""
        found = ((place, _look_up(argument)) for place, argument in enumerate(self.args))
        return tuple((place, look_up) for place, look_up in found if look_up is not None)

    def inputs(self) -> list[int]:
        """Indices of the values that it reads."""
        return self._inputs

    @cached_property
    def _inputs(self) -> list[int]:
        return [a.index for a in _leaves((self.args, dict(self.kwargs))) if isinstance(a, Value)]

    def weights(self) -> list[str]:
        """Names of the parameters and buffers that it reads."""
        named: list[str] = []
        for a in _leaves((self.args, dict(self.kwargs))):
            if isinstance(a, Weight):
                named.append(a.name)
            elif isinstance(a, Made):
                named += a.names()
        return named

    def made(self) -> list[Made]:
        """What it reads that is made of weights."""
        return [a for a in _leaves((self.args, dict(self.kwargs))) if isinstance(a, Made)]

    def outs(self) -> range:
        """Indices of the values that it gives."""
        return range(self.out, self.out + (1 if self.several is None else self.several))


@dataclass(frozen=True)
class Tape:
    """A forward pass for any batch size.

    Attributes:
        steps: In order.
        result: What the pass returns, tensors as ``Value``.
        shapes: Shape of every value; entries that grow with the batch are ``Sized``.
        n_values: Values in all; index 0 is the input.
    """

    steps: tuple[Step, ...]
    result: Any
    shapes: tuple[tuple[int | Sized, ...], ...]

    @property
    def n_values(self) -> int:
        """How many values there are; 0 is the input."""
        return len(self.shapes)

    def at(self, batch: int) -> Tape:
        """The tape for one batch size: no ``Sized`` in it."""

        def number(leaf: Any) -> Any:
            return leaf.at(batch) if isinstance(leaf, Sized) else leaf

        steps = []
        for step in self.steps:
            args, kwargs = _map((step.args, dict(step.kwargs)), number)
            steps.append(Step(step.call, args, kwargs, step.out, step.several))
        return Tape(tuple(steps), self.result, _map(self.shapes, number))

    def batch_axis(self, value: int) -> tuple[int, int] | None:
        """(axis, rows per image) of the axis that holds the images; None where none does."""
        for axis, size in enumerate(self.shapes[value]):
            if isinstance(size, Sized):
                return axis, size.slope
        return None


def record(
    function: Callable[[Tensor], Any],
    weights: Mapping[str, Tensor],
    image_shape: Sequence[int],
    dtype: torch.dtype,
) -> Tape:
    """Write down what ``function`` does to a batch of images.

    Args:
        function: Runs the pass; its tensors are on the meta device.
        weights: Every parameter and buffer that it reads, by name.
        image_shape: Shape of one image (or of its frames).
        dtype: Of the images.

    Raises:
        TapeError: If the pass writes in place, depends on values or calls what cannot be seen.
    """
    first, second = (_record(function, weights, (b, *image_shape), dtype) for b in _BATCHES)
    if len(first.steps) != len(second.steps):
        raise TapeError("it takes other steps for another batch size")
    steps = []
    for a, b in zip(first.steps, second.steps, strict=True):
        if (a.call, a.out, a.several) != (b.call, b.out, b.several):
            raise TapeError("it takes other steps for another batch size")
        args, kwargs = _merge((a.args, dict(a.kwargs)), (b.args, dict(b.kwargs)))
        steps.append(Step(a.call, args, kwargs, a.out, a.several))
    shapes = tuple(_merge(a, b) for a, b in zip(first.shapes, second.shapes, strict=True))
    tape = Tape(tuple(steps), first.result, shapes)
    if tape.at(_CHECKED) != _record(function, weights, (_CHECKED, *image_shape), dtype):
        raise TapeError("its sizes do not grow evenly with the batch size")
    return tape


def record_once(
    function: Callable[[Tensor], Any],
    weights: Mapping[str, Tensor],
    image_shape: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tape, int]:
    """A tape for one batch size alone, a third of the work, and that size; else as ``record``."""
    return _record(function, weights, (_BATCHES[0], *image_shape), dtype), _BATCHES[0]


def _record(
    function: Callable[[Tensor], Any],
    weights: Mapping[str, Tensor],
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tape:
    x = torch.empty(tuple(shape), dtype=dtype, device="meta")
    recorder = _Recorder(x, weights)
    try:
        with torch.no_grad(), recorder:
            result = function(x)
    except TapeError:
        raise
    except Exception as error:  # of a user's module: whatever stops it, it cannot be written down
        raise TapeError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    outputs = _map(result, recorder.known)
    return Tape(tuple(recorder.steps), outputs, tuple(tuple(t.shape) for t in recorder.values))


class _Recorder(TorchFunctionMode):
    def __init__(self, x: Tensor, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.values = [x]  # kept, so that no id is used twice
        self._names: dict[int, Value | Weight] = {id(t): Weight(n) for n, t in weights.items()}
        self._names[id(x)] = Value(0)
        self._same: dict[tuple[Any, ...], int] = {}
        self._doubles: list[Tensor] = []

    def known(self, argument: Any) -> Any:
        """The argument as it stands on the tape."""
        if not isinstance(argument, Tensor):
            return argument
        if id(argument) not in self._names:
            raise TapeError("it uses a tensor that is neither a weight nor made by a torch call")
        return self._names[id(argument)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = func(*args, **kwargs)
        if isinstance(given, Tensor):
            made: list[Tensor] = [given]
        elif isinstance(given, (tuple, list)) and any(isinstance(t, Tensor) for t in given):
            made = list(given)
        else:
            self._refuse_in_place(func, kwargs)
            if not isinstance(given, _PLAIN):
                raise TapeError(f"{resolve_name(func) or func} gives {type(given).__name__}")
            return given  # a question about shapes or types
        self._refuse_in_place(func, kwargs)
        if all(id(t) in self._names for t in made):
            return given  # itself again, such as contiguous()
        several = None if isinstance(given, Tensor) else len(made)
        known_args, known_kwargs = _map((tuple(args), dict(kwargs)), self.known)
        step = Step(func, known_args, known_kwargs, len(self.values), several)
        try:
            key = (func, several, step.args, tuple(step.kwargs.items()))
            before = self._same.setdefault(key, step.out)
        except TypeError:  # an argument that cannot be hashed: no second look
            before = step.out
        if before != step.out:  # the same call on the same values: one step serves both
            for offset, t in enumerate(made):
                self._names[id(t)] = Value(before + offset)
                self._doubles.append(t)
            return given
        self.steps.append(step)
        for t in made:
            self._names[id(t)] = Value(len(self.values))
            self.values.append(t)
        return given

    def _refuse_in_place(self, func: Any, kwargs: Any) -> None:
        name = getattr(func, "__name__", "")
        if (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE or "out" in kwargs:
            raise TapeError(f"it writes in place ({name})")


_PLAIN = (int, float, bool, str, type(None), tuple, torch.dtype, torch.device, torch.layout,
          torch.memory_format)  # fmt: skip
_IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}


def _map(tree: Any, change: Callable[[Any], Any]) -> Any:
    """``tree`` with every leaf changed; tuples, lists and dicts are walked."""
    if isinstance(tree, (tuple, list)):
        return tuple(_map(t, change) for t in tree)
    if isinstance(tree, dict):
        return {key: _map(t, change) for key, t in tree.items()}
    return change(tree)


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    _map(tree, found.append)
    return found


def _merge(a: Any, b: Any) -> Any:
    """Two recordings of an argument as one for any batch size."""
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
        return tuple(_merge(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: _merge(a[key], b[key]) for key in a}
    if a == b:
        return a
    if type(a) is int and type(b) is int:
        slope = (b - a) // (_BATCHES[1] - _BATCHES[0])
        return Sized(a - slope * _BATCHES[0], slope)
    raise TapeError(f"an argument depends on the batch size: {a!r}, {b!r}")


def run_step(
    step: Step,
    values: dict[int, Tensor],
    weights: Mapping[Any, Any],
    batch: int,
    device: torch.device,
) -> None:
    """Do one step; what it gives is added to ``values``.

    Args:
        step: The step.
        values: The values that it reads, by index.
        weights: Parameters and buffers by name, and what is ``Made`` of them.
        batch: Number of images.
        device: Where tensors are made that the pass makes anew.
    """
    args, kwargs = list(step.args), step.kwargs
    for place, look_up in step.slots:
        args[place] = look_up(values, weights, batch, device)
    if kwargs:
        kwargs = {
            name: _real(argument, values, weights, batch, device)
            for name, argument in kwargs.items()
        }
    given = step.call(*args, **kwargs)
    if step.several is None:
        values[step.out] = given
    else:
        values.update(zip(step.outs(), given, strict=True))


def _look_up(argument: Any) -> _LookUp | None:
    """How to find a top-level argument; None where it is always the same."""
    kind = type(argument)
    if kind is Value:
        return lambda values, weights, batch, device: values[argument.index]
    if kind is Weight:
        return lambda values, weights, batch, device: weights[argument.name]
    if isinstance(argument, Made):
        return lambda values, weights, batch, device: weights[argument]
    changing = (Value, Weight, Sized, Rows, Made, torch.device)
    if any(isinstance(leaf, changing) for leaf in _leaves(argument)):
        return lambda values, weights, batch, device: _real(
            argument, values, weights, batch, device
        )
    return None


def _real(
    tree: Any,
    values: Mapping[int, Tensor],
    weights: Mapping[Any, Any],
    batch: int,
    device: torch.device,
) -> Any:
    def real(argument: Any) -> Any:
        kind = type(argument)
        if kind is Value:
            return values[argument.index]
        if kind is Weight:
            return weights[argument.name]
        if kind is Sized:
            return argument.at(batch)
        if kind is Rows:
            return weights[argument.name].shape[0]
        if isinstance(argument, Made):
            return weights[argument]
        if kind is torch.device:
            return device
        return argument

    return _map(tree, real)
