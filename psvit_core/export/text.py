"""The text of an exported Python file."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from psvit_core.errors import ModelError
from psvit_core.export.bundle import SPIKINGJELLY_NEURONS, TORCH_NEURONS, Bundle
from psvit_core.export.origin import origin_comment
from psvit_core.files import MODEL_SUFFIX
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import card_of

_WIDTH = 96  # of a literal on one line
_DOCSTRING = '''\
"""A spiking network that stands alone: its definition. Its weights are in the file beside it.

Needs {needed}. Run this file, or write

    from {name} import load, normalise

    network = load()  # in evaluation mode, on the CPU
    logits = network(normalise(pixels))  # pixels in [0, 1], (B, C, H, W)
"""

# SPDX-License-Identifier: Apache-2.0
#
'''


def torch_source(
    model: SpikingModel, name: str, *, weights: str | None = None, spikingjelly: bool = False
) -> str:
    """Return the Python file of an export.

    Args:
        model: The model.
        name: The file's name without its suffix; it can be imported.
        weights: Name of the file of the weights beside it; None for the same name.
        spikingjelly: Use SpikingJelly's LIF neuron.
    """
    constants = _constants(model, weights or f"{name}{MODEL_SUFFIX}")
    neurons = SPIKINGJELLY_NEURONS if spikingjelly else TORCH_NEURONS
    bundle = Bundle(type(model), neurons, {name for name, _, _ in constants})
    needed = "torch, safetensors and spikingjelly" if spikingjelly else "torch and safetensors"
    head = _DOCSTRING.format(name=name, needed=needed) + origin_comment(model)
    literals = "\n".join(_assignments(constants))
    main = 'if __name__ == "__main__":\n    main()'
    text = f"{head}\n\n{bundle.imports()}\n\n{literals}\n\n\n{bundle.text()}\n\n\n{main}\n"
    compile(text, f"{name}.py", "exec")  # a fault shows here, not where the file is used
    return text


def _constants(model: SpikingModel, weights: str) -> list[tuple[str, Any, str]]:
    """Return the constants of a file: name, value, comment."""
    transform = card_of(model).at(model.input_shape[1]).transform
    return [
        ("WEIGHTS", weights, "beside this file"),
        ("ARGUMENTS", model.arguments, "of the unpruned network; scales depend on them"),
        ("WIDTHS", model.widths, "units that the network has now, by channel group"),
        ("INPUT_SHAPE", model.input_shape, "channels, height, width"),
        ("RESIZE", transform.resize, "first: the image's shorter side, in pixels"),
        ("INTERPOLATION", transform.interpolation, "of this resizing, antialiased"),
        ("CROP", transform.crop, "second: the side of a square from the centre"),
        ("PAD", transform.pad, "third: zeros on every side, as `normalise` adds them"),
        ("MEAN", transform.mean, "last: subtracted from pixels in [0, 1]"),
        ("STD", transform.std, "and the divisor"),
    ]


def _assignments(constants: list[tuple[str, Any, str]]) -> Iterator[str]:
    for name, value, comment in constants:
        text = f"{name} = {literal(value, len(name) + len(comment) + 5)}"
        opening, newline, rest = text.partition("\n")
        yield f"{opening}  # {comment}{newline}{rest}"


def literal(value: Any, offset: int = 0, indent: str = "") -> str:
    """Return a value as Python source that contains nothing but literals.

    Args:
        value: Numbers, text, lists, tuples or dictionaries of these.
        offset: Characters before it on its line.
        indent: Of its line.

    Raises:
        ModelError: If the value is anything else.
    """
    text = _literal(value, offset, indent)
    if ast.literal_eval(text) != value:
        raise ModelError(f"{value!r:.80} cannot be written as a constant.")
    return text


def _literal(value: Any, offset: int, indent: str) -> str:
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value) if value.isascii() and value.isprintable() else ascii(value)
    if isinstance(value, Mapping):
        inner = f"{indent}    "
        pairs = [(f"{_literal(k, 0, '')}: ", v) for k, v in value.items()]
        lines = [f"{inner}{k}{_literal(v, len(inner + k), inner)}," for k, v in pairs]
        return "\n".join(["{", *lines, f"{indent}}}"])
    if isinstance(value, list | tuple):
        opening, closing = "[]" if isinstance(value, list) else "()"
        items = [_literal(v, 0, "") for v in value]
        comma = "," if isinstance(value, tuple) and len(items) == 1 else ""
        line = f"{opening}{', '.join(items)}{comma}{closing}"
        if offset + len(line) <= _WIDTH:
            return line
        inner = f"{indent}    "
        lines = [f"{inner}{_literal(v, len(inner), inner)}," for v in value]
        return "\n".join([opening, *lines, f"{indent}{closing}"])
    raise ModelError(f"{value!r:.80} cannot be written as a constant.")
