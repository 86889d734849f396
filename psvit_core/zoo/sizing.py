"""Reading a model's size from the names and shapes of its tensors, and what must be asked for.

Every family implements ``SpikingModel.read_size`` (arguments that the shapes reveal) and
``SpikingModel.choices`` (arguments that no tensor reveals, with their possible values).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psvit_core.errors import ModelError
from psvit_core.records import Choice, Option

__all__ = [
    "SIZE_ARGUMENTS",
    "Choice",
    "Option",
    "Shapes",
    "choice_text",
    "command_option",
    "count_blocks",
    "format_arguments",
    "heads_choice",
    "image_size_choice",
    "option_name",
    "parse_arguments",
    "parse_value",
    "pooling_choice",
    "ratio",
    "time_steps_choice",
]

Shapes = Mapping[str, tuple[int, ...]]

#: Arguments that some family needs beside ``T``, ``image_size`` and ``num_heads``.
SIZE_ARGUMENTS = (
    "family",
    "pooling_stat",
    "batch_coupled",
    "chunk_size",
    "levels",
)
_COUNTS = frozenset({"T", "image_size", "num_heads", "chunk_size", "levels"})
_TEXT_ARGUMENTS = frozenset({"pooling_stat"})  # digits that are no number
_MAX_DIGITS = 10  # longer numbers are no argument of a network


def count_blocks(shapes: Iterable[str], prefix: str) -> int:
    """Return the number of consecutive blocks ``PREFIX.0``, ``PREFIX.1``, ... that have tensors."""
    names = {
        name[len(prefix) + 1 :].split(".")[0] for name in shapes if name.startswith(f"{prefix}.")
    }
    count = 0
    while str(count) in names:
        count += 1
    return count


def ratio(hidden: int, width: int) -> int | float:
    """Return a ratio with ``int(width * ratio) == hidden``: a whole number if there is one."""
    if hidden % width == 0:
        return hidden // width
    quotient = hidden / width
    return quotient if int(width * quotient) == hidden else math.nextafter(quotient, math.inf)


def heads_choice(
    widths: Sequence[int], published: Sequence[int] = (), argument: str = "num_heads"
) -> Choice:
    """Return the choice of the number of heads: published numbers first, then other divisors.

    Args:
        widths: Widths that the heads must divide.
        published: Numbers of heads that were published for this family, the most likely first.
        argument: The family's name of the argument.
    """
    common = math.gcd(*widths)
    divisors = [n for n in range(1, common + 1) if common % n == 0]
    first = [Option(n, "published for this family") for n in published if n in divisors]
    usual = [n for n in divisors if widths[-1] // n == 64 and n not in published]
    rest = [n for n in divisors if n not in published and n not in usual]
    return Choice(
        argument,
        (
            *first,
            *(Option(n, "64 channels per head") for n in usual),
            *(Option(n, f"divides {common}") for n in rest),
        ),
    )


def time_steps_choice(published: Sequence[int] = (4,)) -> Choice:
    """Return the choice of ``T``: published numbers of time steps first; any other is possible."""
    options = tuple(Option(n, "published for this family") for n in published)
    return Choice("T", options, open_ended=True)


def image_size_choice(published: Sequence[int]) -> Choice:
    """Return the choice of ``image_size``: published sides in pixels; any other is possible."""
    options = tuple(Option(n, "published for this family") for n in published)
    return Choice("image_size", options, open_ended=True)


def pooling_choice() -> Choice:
    """Return the choice of ``pooling_stat``, the stem stages that halve the resolution."""
    published = {
        "1111": "published for ImageNet, stride 16",
        "0011": "published for CIFAR, stride 4",
    }
    texts = [f"{n:04b}" for n in range(15, -1, -1)]
    rest = {text: f"stride {2 ** text.count('1')}" for text in texts if text not in published}
    return Choice(
        "pooling_stat", tuple(Option(text, why) for text, why in (published | rest).items())
    )


# ---- text ------------------------------------------------------------------------------------


def option_name(argument: str) -> str:
    """Return an argument with its command-line option, as messages show it."""
    return f"{argument} ({command_option(argument)})"


def command_option(argument: str) -> str:
    """Return the command-line option of an argument."""
    return "--time-steps" if argument == "T" else f"--{argument.replace('_', '-')}"


def choice_text(choice: Choice) -> str:
    """List the possible values of an argument with what speaks for each."""
    by_reason: dict[str, list[str]] = {}
    for option in choice.options:
        by_reason.setdefault(option.reason, []).append(str(option.value))
    listed = "; ".join(f"{' or '.join(v)} [{reason}]" for reason, v in by_reason.items())
    more = "; or another" if choice.open_ended else ""
    return f"{option_name(choice.argument)}: {listed}{more}"


def format_arguments(arguments: Mapping[str, Any]) -> str:
    """Format arguments as ``parse_arguments`` reads them: ``num_heads=8, T=4``."""
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def parse_arguments(text: str) -> dict[str, Any]:
    """Parse arguments such as ``num_heads=8, T=4, pooling_stat=0011``.

    Raises:
        ModelError: If a part is not ``name=value``, or no family has such an argument or value.
    """
    arguments: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (equals and name.isidentifier() and value):
            raise ModelError(
                f"Write arguments as name=value, such as num_heads=8, T=4; got {part!r}."
            )
        arguments[name] = _checked(name, parse_value(name, value))
    return arguments


def _checked(name: str, value: Any) -> Any:
    """Return a value of an argument; raise ``ModelError`` if no family takes it."""
    known = {*_COUNTS, *SIZE_ARGUMENTS}
    if name not in known:
        raise ModelError(f"Unknown argument {name!r}. Known arguments: {', '.join(sorted(known))}.")
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if name in _COUNTS and not is_count:
        raise ModelError(f"{name} must be a whole number of at least 1; got {value!r:.20}.")
    if name == "batch_coupled" and not isinstance(value, bool):
        raise ModelError(f"batch_coupled must be True or False; got {value!r:.20}.")
    return value


def parse_value(name: str, text: str) -> Any:
    """Parse the value of an argument: a truth value, a whole number, or text."""
    if text in ("True", "False"):
        return text == "True"
    is_number = text.isdecimal() and name not in _TEXT_ARGUMENTS
    return int(text) if is_number and len(text) < _MAX_DIGITS else text
