"""Finds the state dict inside the content of a checkpoint file, however it is wrapped.

Trainers store the weights next to other things: a moving average, optimiser, epoch, arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psvit_core.errors import CheckpointError
from psvit_core.records import FileEntry

#: Entries that contain the weights in files of known trainers.
WRAPPERS = frozenset(
    {
        "state_dict",
        "model",
        "model_state_dict",
        "model_state",
        "net",
        "network",
        "module",
        "weights",
        "params",
        "state",
        "model_weights",
        "net_state_dict",
        "checkpoint",
    }
)
#: Entries and prefixes of an exponential moving average of the weights.
AVERAGES = frozenset(
    {
        "state_dict_ema",
        "model_ema",
        "ema",
        "ema_state_dict",
        "ema_model",
        "ema_net",
        "module_ema",
        "model_ema_state_dict",
        "params_ema",
        "shadow",
        "averaged_model",
        "swa_model",
    }
)
#: Prefixes of tensor names that stand for a wrapper around the network.
PREFIXES = AVERAGES | frozenset(
    {
        "module",
        "_orig_mod",
        "model",
        "net",
        "network",
        "backbone",
        "encoder",
        "base_model",
        "student",
        "teacher",
        "online_model",
        "_forward_module",
        "_fsdp_wrapped_module",
        "snn",
        "wrapped",
    }
)
#: Prefixes that compilers and trainers insert before any part of a name.
INSERTED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: Entries whose tensors are never weights.
_NEVER = frozenset(
    {
        "optimizer",
        "optimizers",
        "optim",
        "optimizer_state_dict",
        "optimizer_states",
        "opt",
        "scheduler",
        "schedulers",
        "lr_scheduler",
        "lr_schedulers",
        "scheduler_state_dict",
        "scaler",
        "amp",
        "amp_scaler",
        "loss_scaler",
        "grad_scaler",
        "callbacks",
        "loops",
        "args",
        "hyper_parameters",
        "config",
    }
)
_MAX_DEPTH = 5
_SMALL = 0.1  # of the largest entry: too few tensors to be a network
_TOP = "top level"


class AmbiguousEntryError(CheckpointError):
    """A file contains several state dicts, or only an average, and none was chosen.

    Args:
        message: The message.
        entries: All of them.
    """

    def __init__(self, message: str, entries: tuple[FileEntry, ...] = ()) -> None:
        super().__init__(message)
        self.entries = entries


@dataclass(frozen=True)
class Entry:
    """A mapping with tensors inside a file."""

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...] = field(default=(), repr=False)  # names of other values in it

    @property
    def name(self) -> str:
        """Return the dotted path, as messages and --entry show it."""
        return ".".join(self.path) or _TOP

    @property
    def is_average(self) -> bool:
        """Return True for a moving average of the weights."""
        return any(part in AVERAGES for part in self.path)

    @property
    def record(self) -> FileEntry:
        """Return what a report says of it."""
        average = self.is_average or self.has_average_prefix
        return FileEntry(name=self.name, n_tensors=len(self.tensors), is_average=average)

    @property
    def has_average_prefix(self) -> bool:
        """Return True if all names say that they belong to a moving average."""
        return all(AVERAGES & set(name.split(".")[:-1]) for name in self.tensors)


def find_entries(content: Any, expected: Collection[str] = ()) -> list[Entry]:
    """Return the mappings in a file that may be a network's state dict, in the file's order.

    Args:
        content: What ``torch.load`` returned, or a mapping of tensors.
        expected: Names of the tensors of a user's own network, whose parts may be named like
            prefixes.
    """
    found = []
    for entry in _walk(content, (), set()):
        found += [entry] if _is_one_network(entry, set(expected)) else _split(entry)
    largest = max((len(entry.tensors) for entry in found), default=0)
    # beside a network, single tensors such as the best accuracy or weights of a loss are no network
    return [entry for entry in found if len(entry.tensors) > _SMALL * largest]


def _walk(content: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[Entry]:
    """Yield all mappings with tensors; each object once, because a file may contain cycles."""
    if id(content) in seen or len(path) > _MAX_DEPTH:
        return
    if isinstance(content, Mapping):
        items = [(key, value) for key, value in content.items() if isinstance(key, str)]
    elif isinstance(content, (list, tuple)):
        items = [(str(i), value) for i, value in enumerate(content)]
    else:
        return
    seen.add(id(content))
    tensors = {key: value for key, value in items if isinstance(value, Tensor)}
    if tensors and isinstance(content, Mapping):
        rest = tuple(k for k, v in items if k not in tensors and not isinstance(v, Mapping))
        yield Entry(path, tensors, rest)
    for key, value in items:
        if key not in _NEVER:
            yield from _walk(value, (*path, key), seen)


def _is_one_network(entry: Entry, expected: set[str]) -> bool:
    """Return True if a dict has most of the expected names once, behind any prefix."""
    parts = [name.split(".") for name in entry.tensors]
    ends = {".".join(part[i:]) for part in parts for i in range(len(part))}
    return len(ends & expected) > len(expected) / 2 and len(parts) < 1.5 * len(expected)


def _split(entry: Entry) -> list[Entry]:
    """Return a network and its average separately, if they are in one dict under two prefixes."""
    by_prefix: dict[str, dict[str, Tensor]] = {}
    for name, tensor in entry.tensors.items():
        prefix, _, rest = name.partition(".")
        if rest and prefix in PREFIXES:
            by_prefix.setdefault(prefix, {})[rest] = tensor
    if not by_prefix:
        return [entry]
    names = Counter(_core(name) for part in by_prefix.values() for name in part)
    names.update(name for name in entry.tensors if name.partition(".")[0] not in by_prefix)
    if sum(n > 1 for n in names.values()) < len(names) / 2:
        return [entry]  # the prefixes are parts of one network
    bare = {n: t for n, t in entry.tensors.items() if n.partition(".")[0] not in by_prefix}
    parts = [Entry((*entry.path, prefix), part) for prefix, part in by_prefix.items()]
    return [*([Entry(entry.path, bare, entry.ignored)] if bare else []), *parts]


def _core(name: str) -> str:
    """Return a tensor's name without any wrapper in front."""
    while (parts := name.partition("."))[2] and parts[0] in PREFIXES:
        name = parts[2]
    return name


# ---- choice ----------------------------------------------------------------------------------


def choose_entry(
    content: Any, path: Path, *, ema: bool, entry: str | None, expected: Collection[str] = ()
) -> tuple[Entry, list[Entry]]:
    """Return the state dict to load from a file's content, and all of its state dicts.

    Args:
        content: What ``torch.load`` returned, or a mapping of tensors.
        path: The file, for messages.
        ema: Choose a moving average.
        entry: Name of the entry to choose: its dotted path, or the path's last parts.
        expected: As in ``find_entries``.

    Raises:
        AmbiguousEntryError: If there are several, or only an average, and none is chosen.
        CheckpointError: If there is no such entry.
    """
    found = find_entries(content, expected)
    if not found:
        raise CheckpointError(
            f"{path} contains no state dict of named tensors{_contents(content)}. Give the file "
            "that contains the weights."
        )
    if entry is not None:
        return _named(found, path, entry), found
    wanted = [e for e in found if e.is_average == ema]
    if ema and not wanted:
        wanted = [e for e in found if e.has_average_prefix]
    if not wanted and ema:
        raise CheckpointError(
            f"{path} contains no moving average, only {_listed(found)}. Omit --ema."
        )
    if not wanted:
        raise AmbiguousEntryError(
            f"{path} contains only a moving average ({_listed(found)}). Load it with --ema.",
            tuple(e.record for e in found),
        )
    chosen = _preferred(wanted)
    if chosen is None:
        first = wanted[0].path[-1] if wanted[0].path else _TOP
        raise AmbiguousEntryError(
            f"{path} contains several state dicts: {_listed(wanted)}. Choose one with --entry, "
            f"such as --entry {first!r}, or save it alone.",
            tuple(e.record for e in found),
        )
    return chosen, found


def choice_note(chosen: Entry, found: list[Entry], entry: str | None) -> str:
    """Return a note on the choice of an entry; empty if there was none to make.

    Args:
        chosen: The entry that is loaded.
        found: All entries of the file.
        entry: The name by which the user chose it.
    """
    if entry is not None:
        return f"entry {entry} was chosen from {_listed(found)}"
    others = [e for e in found if e is not chosen]
    note = f"entry {chosen.name} was loaded; the file also contains {_listed(others)}"
    return note if others else ""


def _named(found: list[Entry], path: Path, name: str) -> Entry:
    matching = [e for e in found if e.name == name or f".{e.name}".endswith(f".{name}")]
    exact = [e for e in matching if e.name == name] or matching
    if len(exact) != 1:
        raise CheckpointError(
            f"{path} has {len(exact) or 'no'} entries {name!r}. It contains {_listed(found)}; name "
            "one of them with --entry."
        )
    return exact[0]


def _preferred(entries: list[Entry]) -> Entry | None:
    """Return the only entry, the only one with a usual name, or one of equal ones; else None."""
    usual = [e for e in entries if not e.path or e.path[-1] in WRAPPERS | PREFIXES]
    candidates = usual or entries
    first = candidates[0]
    same = all(_same_tensors(first, other) for other in candidates[1:])
    return first if same else None


def _same_tensors(a: Entry, b: Entry) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(
        t is b.tensors[name] or _is_equal(t, b.tensors[name]) for name, t in a.tensors.items()
    )


def _is_equal(a: Tensor, b: Tensor) -> bool:
    plain = not (a.is_meta or b.is_meta) and a.layout == b.layout == torch.strided
    return plain and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def _listed(entries: list[Entry]) -> str:
    return ", ".join(f"{e.name} ({len(e.tensors)} tensors)" for e in entries)


def _contents(content: Any) -> str:
    """Describe what a file contains in place of a state dict."""
    if not isinstance(content, Mapping):
        return f"; it contains a {type(content).__name__}"
    names = [f"{key} ({type(value).__name__})" for key, value in list(content.items())[:4]]
    return f"; it contains {', '.join(names)}" if names else "; it is an empty dict"
