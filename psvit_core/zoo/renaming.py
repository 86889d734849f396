"""Released files whose patch embeddings have older names: entries are matched by position.

The Max-Former weights were saved by an older version of the code, which no commit contains. Its
authors load them by position: entry i of the file goes to entry i of the model. Here every position
is checked, and a file that fails one check is refused with its first differences.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.sizing import Shapes

_EMBEDDING = re.compile(r"patch_embed\d+\.")
_OTHER_ORDER = (
    "the tensors are not in the model's order (.safetensors files do not keep the order; "
    "use the original file)"
)
_NAMED = 3  # differences that a message lists


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's tensors, in order.

    Args:
        shapes: Shape of every tensor.
        by_position: True if released files may have older names.
    """

    shapes: Shapes
    by_position: bool


def layout_of(model: SpikingModel) -> Layout:
    """Return the layout of a model, with or without weights."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Layout(shapes, model.loads_by_position)


def adapt_names(layout: Layout, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return tensors under the model's names, if only names in patch embeddings are older ones.

    Every position must agree in shape and in the last part of the name, in the whole name outside
    the patch embeddings, and in the embedding's number inside.

    Args:
        layout: The model's; nothing is renamed unless it allows matching by position.
        tensors: A state dict in its own order.

    Returns:
        The renamed tensors, or ``tensors`` itself if all names are the model's or a check fails.
    """
    expected = layout.shapes
    if not layout.by_position or expected.keys() == tensors.keys():
        return tensors
    if position_faults(expected, tensors):
        return tensors
    return dict(zip(expected, tensors.values(), strict=True))


def renaming_note(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str:
    """Return what ``adapt_names`` did, as a sentence for the user; empty if it renamed nothing."""
    if after is before:
        return ""
    n_renamed = sum(old != new for old, new in zip(before, after, strict=True))
    return (
        f"{n_renamed} tensors of the patch embeddings have older names and were matched by "
        "position; only the accuracy can confirm the match"
    )


def position_faults(expected: Shapes, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return why a file's entries cannot be matched by position, the first differences first.

    Args:
        expected: Shapes of the model's tensors in order.
        tensors: The file's state dict in its own order.
    """
    if len(expected) != len(tensors):
        return [f"{len(tensors)} tensors instead of {len(expected)}"]
    ours, theirs = (
        [name for name in names if not _EMBEDDING.match(name)] for names in (expected, tensors)
    )
    if ours != theirs and sorted(ours) == sorted(theirs):
        return [_OTHER_ORDER]
    found = ((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    return [
        f"entry {i} is {_shown(theirs)} in place of {_shown(ours)}"
        for i, (ours, theirs) in enumerate(zip(expected.items(), found, strict=True), start=1)
        if not _belongs(ours, theirs)
    ]


def position_text(layout: Layout, tensors: Mapping[str, Tensor]) -> str:
    """Return the first differences by position as a part of a message, or an empty text."""
    if not layout.by_position or layout.shapes.keys() == tensors.keys():
        return ""
    faults = position_faults(layout.shapes, tensors)
    more = f"; {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return f"by position: {'; '.join(faults[:_NAMED])}{more}" if faults else ""


Entry = tuple[str, tuple[int, ...]]


def _belongs(ours: Entry, theirs: Entry) -> bool:
    (name, shape), (other_name, other_shape) = ours, theirs
    if shape != other_shape:
        return False
    embedding = _EMBEDDING.match(name)
    if embedding is None:
        return name == other_name
    same_leaf = name.rpartition(".")[2] == other_name.rpartition(".")[2]
    return same_leaf and other_name.startswith(embedding.group())


def _shown(entry: Entry) -> str:
    name, shape = entry
    return f"{name} {shape}"


def count_renamed(layout: Layout, found: Shapes) -> int:
    """Return the number of entries of patch embeddings that match apart from their names.

    Without them, a damaged file with older names would seem nearest to another model.

    Args:
        layout: The model's; 0 unless it allows matching by position.
        found: Shapes of the file's tensors.
    """
    if not layout.by_position:
        return 0
    ours, theirs = (
        Counter(
            (name.split(".")[0], name.rpartition(".")[2], shape)
            for name, shape in shapes.items()
            if name not in others and _EMBEDDING.match(name)
        )
        for shapes, others in ((layout.shapes, found), (found, layout.shapes))
    )
    return (ours & theirs).total()
