"""Edits that the equalizer sends: checked, then applied to the draft.

A browser can send anything, so every field is checked against the model before it is used.

An edit belongs to a gesture of the user: a drag, a painted stroke, a run of key presses, a lock.
The browser numbers its edits and sends each until it is acknowledged, so that none is lost while
the script runs. Edits that were applied before are skipped by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary
from ui.model import drafts
from ui.model.drafts import MAX_PERCENT, Draft, locked_reason


class EditError(PsvitError, ValueError):
    """An edit that does not fit the model or its locks."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change made by one gesture, or by part of one."""

    seq: int  # increasing number of the edit
    gesture: int  # edits of one gesture are undone together
    percents: dict[str, int] = field(default_factory=dict)  # group -> percent removed
    locks: dict[str, bool] = field(default_factory=dict)  # group -> locked or not


@dataclass(frozen=True, kw_only=True)
class Acknowledgement:
    """The last edit applied, and the equalizer that sent it."""

    sender: str = ""
    seq: int = 0


def read_edits(
    payload: object, summary: ModelSummary, ack: Acknowledgement
) -> tuple[list[Edit], Acknowledgement]:
    """Return the new edits of a message, in order, and their acknowledgement.

    Raises:
        EditError: If the message is malformed or made for another model.
    """
    if not isinstance(payload, Mapping):
        raise EditError(f"A message must be a JSON object; got {payload!r:.40}. Reload the page.")
    sender, entries = payload.get("sender"), payload.get("edits")
    if not isinstance(sender, str) or not 0 < len(sender) <= 40 or not isinstance(entries, list):
        raise EditError("A message must name its sender and list its edits. Reload the page.")
    if payload.get("weights") != summary.weights_hash:
        raise EditError("This edit was made for another model. Reload the page.")
    done = ack.seq if ack.sender == sender else 0
    new = [edit for entry in entries if (edit := _read_edit(entry, summary)).seq > done]
    new.sort(key=lambda edit: edit.seq)
    return new, Acknowledgement(sender=sender, seq=new[-1].seq if new else done)


def _read_edit(entry: object, summary: ModelSummary) -> Edit:
    if not isinstance(entry, Mapping):
        raise EditError(f"An edit must be a JSON object; got {entry!r:.40}. Reload the page.")
    percents, locks = entry.get("percents") or {}, entry.get("locks") or {}
    seq, gesture = entry.get("seq"), entry.get("gesture")
    if not (_is_int(seq) and seq > 0 and _is_int(gesture) and gesture > 0):
        raise EditError(
            f"An edit's numbers must be positive integers; got {seq!r:.30} and {gesture!r:.30}. "
            "Reload the page."
        )
    if not isinstance(percents, Mapping) or not isinstance(locks, Mapping):
        raise EditError("An edit must map groups to percents and to locks. Reload the page.")
    if unknown := sorted(str(g) for g in {*percents, *locks} if g not in summary.by_id):
        raise EditError(f"The model has no channel group {unknown[0]!r:.60}. Reload the page.")
    for group_id, percent in percents.items():
        if not _is_int(percent) or not 0 <= percent <= MAX_PERCENT:
            raise EditError(
                f"Group {group_id!r} can lose 0 to {MAX_PERCENT} percent, in whole numbers; got "
                f"{percent!r:.40}."
            )
    for group_id, locked in locks.items():
        if not isinstance(locked, bool):
            raise EditError(
                f"The lock of group {group_id!r} must be true or false; got {locked!r:.40}."
            )
    return Edit(seq=seq, gesture=gesture, percents=dict(percents), locks=dict(locks))


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def apply_edit(
    draft: Draft, summary: ModelSummary, edit: Edit, criterion: str | None = None
) -> Draft:
    """Return the draft after an edit: first its ratios, then its locks.

    Args:
        draft: The draft before.
        summary: The model.
        edit: The change.
        criterion: Criterion that ranks units from now on if the draft is empty.

    Raises:
        EditError: If the edit changes a group that is locked, by the user or by its structure.
    """
    for group_id in edit.percents:
        group = summary.by_id[group_id]
        if group_id in draft.locked:
            raise EditError(f"{group.label} is locked. Unlock it first.")
        if reason := locked_reason(group):
            raise EditError(f"{group.label} cannot be pruned: {reason}.")
    if edit.percents:
        ratios = {group_id: percent / 100 for group_id, percent in edit.percents.items()}
        draft = drafts.with_ratios(draft, summary, ratios, criterion)
    return drafts.with_locks(draft, summary, edit.locks) if edit.locks else draft
