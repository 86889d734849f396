"""Brings the tensors of a state dict to the published names; every change becomes a note.

Wrappers put prefixes in front of all names (``module.``, ``_orig_mod.``), profilers and neurons add
tensors that are no weights, and some trainers leave the BatchNorm counters out. None of these
changes what the network computes. Nothing else is renamed, dropped or added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from psvit_core.zoo.entries import INSERTED, PREFIXES

#: Last parts of the names of tensors that are no weights, with where they come from.
EXTRAS = {
    "v": "states of SpikingJelly's neurons",
    "v_seq": "states of SpikingJelly's neurons",
    "spike_seq": "states of SpikingJelly's neurons",
    "total_ops": "counts of the profiler thop",
    "total_params": "counts of the profiler thop",
    "n_averaged": "counter of the averaged model",
}
_COUNTER = "num_batches_tracked"
_FEW = 8  # with fewer tensors, a part that all names share may be a layer and not a wrapper
_DOUBLE = torch.float64

Notes = list[str]


def clean_tensors(
    tensors: Mapping[str, Tensor], expected: Collection[str] | None = None
) -> tuple[dict[str, Tensor], Notes]:
    """Return the tensors under their published names, and notes on what was changed.

    Args:
        tensors: A state dict as a trainer saved it.
        expected: The network's own names, if it is a user's: only names that are not among them are
            changed.
    """
    kept, notes = _without_extras(tensors, expected or ())
    stages = _strip_stages(kept)
    index = len(stages) - 1
    if expected is not None:
        overlaps = [len(stage.keys() & set(expected)) for stage, _ in stages]
        index = overlaps.index(max(overlaps))
    clean, prefixes = stages[index]
    if prefixes:
        notes.insert(0, f"prefix {', '.join(f'{prefix}.' for prefix in prefixes)} removed")
    clean, counted = _with_counters(clean, expected)
    return clean, [*notes, *counted, *_conversions(clean)]


def _without_extras(
    tensors: Mapping[str, Tensor], expected: Collection[str]
) -> tuple[dict[str, Tensor], Notes]:
    """Drop the tensors that are no weights, unless the network has them behind any prefix."""
    dropped = [
        name
        for name in tensors
        if name.rpartition(".")[2] in EXTRAS and not _endings(name) & set(expected)
    ]
    sources = Counter(EXTRAS[name.rpartition(".")[2]] for name in dropped)
    kept = {name: tensor for name, tensor in tensors.items() if name not in set(dropped)}
    return kept, [f"{_count(n, 'tensor')} dropped: {source}" for source, n in sources.items()]


def _endings(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}


# ---- prefixes --------------------------------------------------------------------------------


def _strip_stages(
    tensors: Mapping[str, Tensor],
) -> list[tuple[dict[str, Tensor], tuple[str, ...]]]:
    """Return the tensors with no prefix removed, with the first one, the first two, and so on."""
    stages = [(dict(tensors), tuple[str, ...]())]
    while True:
        current, removed = stages[-1]
        if prefixes := _outer_prefixes(current):
            names = {name: _without_first(name, prefixes) for name in current}
        else:
            prefixes = sorted({part for name in current for part in name.split(".")} & INSERTED)
            names = {name: _without_inserted(name) for name in current}
        if not prefixes or len(set(names.values())) < len(names):
            return stages
        new = tuple(prefix for prefix in prefixes if prefix not in removed)
        stages.append(({names[n]: t for n, t in current.items()}, (*removed, *new)))


def _outer_prefixes(names: Collection[str]) -> list[str]:
    """Return the wrappers that stand first in some names, or the one part that all share."""
    firsts = dict.fromkeys(name.partition(".")[0] for name in names if "." in name)
    if known := [first for first in firsts if first in PREFIXES]:
        return known
    if len(firsts) != 1 or len(names) < _FEW or any("." not in name for name in names):
        return []
    seconds = {name.split(".")[1] for name in names}
    is_wrapper = len(seconds) > 1 and not any(second.isdecimal() for second in seconds)
    return list(firsts) if is_wrapper else []


def _without_inserted(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in INSERTED)


def _without_first(name: str, prefixes: Sequence[str]) -> str:
    first, _, rest = name.partition(".")
    return rest if rest and first in prefixes else name


# ---- counters and types ----------------------------------------------------------------------


def _with_counters(
    tensors: Mapping[str, Tensor], expected: Collection[str] | None
) -> tuple[dict[str, Tensor], Notes]:
    """Add missing BatchNorm counters and make all of them integers; inference reads none."""
    notes: Notes = []
    missing = [
        counter
        for name in tensors
        if name.endswith("running_mean") and f"{name[:-4]}var" in tensors
        for counter in [name.removesuffix("running_mean") + _COUNTER]
        if counter not in tensors and (expected is None or counter in expected)
    ]
    complete = _inserted(tensors, missing)
    if missing:
        notes.append(
            f"{_count(len(missing), 'counter')} {_COUNTER} missing in the file, set to 0: "
            "inference does not use them"
        )
    floating = [
        name
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] == _COUNTER and tensor.is_floating_point()
    ]
    for name in floating:
        complete[name] = tensors[name].nan_to_num(0, 0, 0).to(torch.int64)
    return complete, notes


def _inserted(tensors: Mapping[str, Tensor], counters: Collection[str]) -> dict[str, Tensor]:
    """Add counters in their places, because the order of some files decides their names."""
    complete, missing = dict[str, Tensor](), set(counters)
    for name, tensor in tensors.items():
        complete[name] = tensor
        counter = name.removesuffix("running_var") + _COUNTER
        if name.endswith("running_var") and counter in missing:
            complete[counter] = torch.zeros((), dtype=torch.int64)
    return complete


def _conversions(tensors: Mapping[str, Tensor]) -> Notes:
    """Say which floats are stored in another type than the one computed with."""
    kinds = Counter(t.dtype for t in tensors.values() if t.is_floating_point())
    return [
        f"{_count(n, 'tensor')} converted from {str(dtype).removeprefix('torch.')} to float32"
        + ("; the values keep their lower precision" if dtype.itemsize < _SINGLE else "")
        for dtype, n in kinds.items()
        if dtype != torch.float32
    ]


_SINGLE = torch.float32.itemsize


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
