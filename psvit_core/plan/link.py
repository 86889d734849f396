"""Plans as short texts for links: the number of units removed from each group, by a ranking.

The text is base64url of a version byte and a zlib body: a prefix of the weights hash, the model
name, the criterion, then one or two bytes per group. Links are untrusted input, so all sizes are
limited.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from psvit_core.errors import InvalidPlanError
from psvit_core.plan.build import plan_from_counts
from psvit_core.records import ModelSummary, PrunePlan

POLICY = "shared"  # policy of plans from links
MAX_TEXT = 4000  # characters
_VERSION = 1
_HASH_BYTES = 6  # of the weights hash
_MAX_NAME = 60  # bytes
_MAX_BODY = 16_384  # bytes, decompressed
_MAX_GROUPS = 4096
_TEXT = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class SharedPlan:
    """Content of a link."""

    model: str  # registered name, or the name of a pruned file without its folder
    hash_prefix: str  # hex
    criterion: str
    steps: tuple[int, ...]  # removed units per head, by group in network order

    def plan(self, summary: ModelSummary) -> PrunePlan:
        """Return the plan for the model that the link was created for.

        Raises:
            InvalidPlanError: If it is another model or lacks a ranking by the criterion.
        """
        if not summary.weights_hash.startswith(self.hash_prefix):
            raise InvalidPlanError(
                f"The link is for {self.model} with weights {self.hash_prefix}, not for weights "
                f"{summary.weights_hash[:12]}. Open that model, or create a plan for this one."
            )
        if len(self.steps) != len(summary.groups):
            raise InvalidPlanError(
                f"The link names {len(self.steps)} channel groups; {summary.model} has "
                f"{len(summary.groups)}. Create a new link."
            )
        return _plan(summary, self.criterion, self.steps)


def share_text(summary: ModelSummary, plan: PrunePlan) -> str:
    """Encode a plan as a text of letters, digits, ``-`` and ``_``.

    Raises:
        InvalidPlanError: If the plan is for another model, or does not keep the best units by its
            criterion: a link stores only the number of units per group.
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
            "Links only support plans that keep the best units by "
            f"{' or '.join(summary.rankings)}; the units of this plan ({plan.criterion}) were "
            "chosen differently. Share it as a JSON file."
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
    """Decode the text of a link.

    Raises:
        InvalidPlanError: If the text is not a link, is incomplete, or has another version.
    """
    text = text.strip()
    if len(text) > MAX_TEXT or not _TEXT.fullmatch(text):
        raise InvalidPlanError(
            f"This is not a link to a plan: it must have 1 to {MAX_TEXT} letters, digits, - or _; "
            f"it has {len(text)} characters. Copy the whole link again."
        )
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise _damaged() from error
    if packed[:1] != bytes([_VERSION]):
        raise InvalidPlanError(
            f"The link has version {packed[0] if packed else 'none'}; this program reads version "
            f"{_VERSION}. Copy the whole link again, or open it with the program that made it."
        )
    reader = _Reader(_unpacked(packed[1:]))
    prefix = reader.take(_HASH_BYTES).hex()
    model, criterion = reader.text(), reader.text()
    steps = []
    while reader.remaining:
        steps.append(reader.number())
        if len(steps) > _MAX_GROUPS:
            raise _damaged()
    return SharedPlan(model=model, hash_prefix=prefix, criterion=criterion, steps=tuple(steps))


def _plan(summary: ModelSummary, criterion: str, steps: tuple[int, ...]) -> PrunePlan:
    counts = {}
    for group, step in zip(summary.groups, steps, strict=True):
        removed = step * (group.heads or 1)
        if removed >= group.n_units:
            raise InvalidPlanError(
                f"The link removes {removed} of the {group.n_units} units of {group.group_id}; at "
                "least one must remain. Copy the whole link again."
            )
        counts[group.group_id] = removed
    return plan_from_counts(summary, counts, criterion=criterion, policy=POLICY)


def _number(value: int) -> bytes:
    """Encode an integer, seven bits per byte, lowest first; the eighth bit marks more bytes."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _damaged() -> InvalidPlanError:
    return InvalidPlanError(
        "The link is damaged and does not contain a plan. Copy the whole link again."
    )


def _unpacked(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(packed, _MAX_BODY)
    except zlib.error as error:
        raise _damaged() from error
    if not unpacker.eof or unpacker.unused_data:  # too long, incomplete, or followed by more data
        raise _damaged()
    return body


class _Reader:
    """Sequential reader of a decompressed body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def remaining(self) -> int:
        return len(self._body) - self._at

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > self.remaining:
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
