"""A plan as a short text for a link: how many units each group loses, ranked as the model ranks.

The text is base64url of a version byte and a zlib body: weights-hash prefix, model name, criterion,
then one or two bytes a group. Anyone may write a link, so reading one has limits.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from psvit_core.errors import InvalidPlanError
from psvit_core.plans import kept_units
from psvit_core.records import ModelSummary, PrunePlan

POLICY = "shared"  # of plans that came by a link
MAX_TEXT = 4000  # characters
_VERSION = 1
_HASH_BYTES = 6  # of the weights hash
_MAX_NAME = 60  # bytes
_MAX_BODY = 16_384  # bytes, unpacked
_MAX_GROUPS = 4096
_TEXT = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class SharedPlan:
    """What a link says."""

    model: str  # registered name, or a pruned file's name without its folder
    hash_prefix: str  # hex
    criterion: str
    steps: tuple[int, ...]  # removed units by group in network order, a head at a time

    def plan(self, summary: ModelSummary) -> PrunePlan:
        """The plan, for the model that it was made for.

        Raises:
            InvalidPlanError: If this is another model, or it has no ranking by that criterion.
        """
        if not summary.weights_hash.startswith(self.hash_prefix):
            raise InvalidPlanError(
                f"The link is for {self.model} with weights {self.hash_prefix}, not for weights "
                f"{summary.weights_hash[:12]}. Open that model, or make a plan for this one."
            )
        if len(self.steps) != len(summary.groups):
            raise InvalidPlanError(
                f"The link names {len(self.steps)} channel groups; {summary.model} has "
                f"{len(summary.groups)}. Ask for a new link."
            )
        return _plan(summary, self.criterion, self.steps)


def share_text(summary: ModelSummary, plan: PrunePlan) -> str:
    """The plan as a text of letters, digits, ``-`` and ``_``.

    Raises:
        InvalidPlanError: If the plan does not fit the model, or keeps other units than the best
            ones by its criterion: a count a group cannot tell which.
    """
    plan.check(summary.groups, summary.weights_hash)
    steps = tuple(
        (g.n_units - len(plan.kept.get(g.group_id, range(g.n_units)))) // (g.heads or 1)
        for g in summary.groups
    )
    kept = {g: units for g, units in plan.kept.items() if len(units) < summary.by_id[g].n_units}
    if plan.criterion not in summary.rankings or (
        _plan(summary, plan.criterion, steps).kept != kept
    ):
        raise InvalidPlanError(
            f"A link tells how many units go, ranked by {' or '.join(summary.rankings)}; this "
            f"plan's units ({plan.criterion}) were chosen otherwise. Share it as a JSON file."
        )
    name = Path(summary.model).name.encode()[:_MAX_NAME].decode(errors="ignore")
    body = bytearray(bytes.fromhex(summary.weights_hash[: 2 * _HASH_BYTES]))
    for text in (name, plan.criterion):
        body += _number(len(text.encode())) + text.encode()
    for step in steps:
        body += _number(step)
    packed = bytes([_VERSION]) + zlib.compress(bytes(body), 9)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def read_share(text: str) -> SharedPlan:
    """What a link's text says.

    Raises:
        InvalidPlanError: If it is no such text, is cut off, or was written by a newer version.
    """
    text = text.strip()
    if len(text) > MAX_TEXT or not _TEXT.fullmatch(text):
        raise InvalidPlanError(
            f"This is no link to a plan: it has {len(text)} characters, or others than letters, "
            "digits, - and _. Copy the whole link again."
        )
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise _damaged() from error
    if packed[:1] != bytes([_VERSION]):
        raise InvalidPlanError(
            f"The link is of version {packed[0] if packed else 'none'}; this is version "
            f"{_VERSION}. Copy the whole link again, or open it where it was made."
        )
    reader = _Reader(_unpacked(packed[1:]))
    prefix = reader.take(_HASH_BYTES).hex()
    model, criterion = reader.text(), reader.text()
    steps = []
    while reader.left:
        steps.append(reader.number())
        if len(steps) > _MAX_GROUPS:
            raise _damaged()
    return SharedPlan(model=model, hash_prefix=prefix, criterion=criterion, steps=tuple(steps))


def _plan(summary: ModelSummary, criterion: str, steps: tuple[int, ...]) -> PrunePlan:
    ranking = summary.ranking(criterion)
    kept = {}
    for group, step in zip(summary.groups, steps, strict=True):
        removed = step * (group.heads or 1)
        if removed >= group.n_units:
            raise InvalidPlanError(
                f"The link removes {removed} of the {group.n_units} units of {group.group_id}; at "
                "least one stays. Copy the whole link again."
            )
        if removed:
            kept[group.group_id] = kept_units(group, ranking[group.group_id], removed)
    return PrunePlan(
        model=summary.model, weights_hash=summary.weights_hash, criterion=criterion, kept=kept,
        policy=POLICY,
    )  # fmt: skip


def _number(value: int) -> bytes:
    """Seven bits a byte, lowest first; the eighth says that more follow."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _damaged() -> InvalidPlanError:
    return InvalidPlanError(
        "The link is damaged: it cannot be read as a plan. Copy the whole link again."
    )


def _unpacked(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(packed, _MAX_BODY)
    except zlib.error as error:
        raise _damaged() from error
    if not unpacker.eof or unpacker.unused_data:  # too long, cut off, or more behind it
        raise _damaged()
    return body


class _Reader:
    """Reads a body from its beginning."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._body) - self._at

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > self.left:
            raise _damaged()
        self._at += n_bytes
        return self._body[self._at - n_bytes : self._at]

    def number(self) -> int:
        value = 0
        for place in range(3):  # up to 2 million units
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return value
        raise _damaged()

    def text(self) -> str:
        n_bytes = self.number()
        try:
            return self.take(min(n_bytes, _MAX_NAME + 1)).decode()
        except UnicodeDecodeError as error:
            raise _damaged() from error
