"""What the equalizer sends, checked, and what it does to the draft; no streamlit.

A browser can send anything, so every field is checked against the model before it is used. One
step is one gesture of the user: a drag, a painted stroke, a run of key presses, a lock. Steps are
numbered by the browser and sent until they are acknowledged, so that none is lost while the script
runs; steps that were done before are left out by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary
from ui import drafts
from ui.drafts import MAX_PERCENT, Draft
from ui.equalizer.columns import locked_reason


class EditError(PsvitError, ValueError):
    """An edit that does not fit the model or its locks."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A change by one gesture, or by a part of it."""

    seq: int  # number of this change; grows
    gesture: int  # steps of one gesture are one step to undo
    percents: dict[str, int] = field(default_factory=dict)  # group -> percent removed
    locks: dict[str, bool] = field(default_factory=dict)  # group -> locked or not


@dataclass(frozen=True, kw_only=True)
class Ack:
    """The last step that was done, and the browser's equalizer that sent it."""

    sender: str = ""
    seq: int = 0


def read_steps(payload: object, summary: ModelSummary, ack: Ack) -> tuple[list[Step], Ack]:
    """The steps of a message that were not done yet, in order, and their acknowledgement.

    Raises:
        EditError: If the message is not one of the equalizer, or is for another model.
    """
    if not isinstance(payload, Mapping):
        raise EditError(f"An edit is a JSON object, not {payload!r:.40}.")
    sender, steps = payload.get("sender"), payload.get("steps")
    if not isinstance(sender, str) or not 0 < len(sender) <= 40 or not isinstance(steps, list):
        raise EditError("An edit names its sender and its steps. Reload the page.")
    if payload.get("weights") != summary.weights_hash:
        raise EditError("This edit was made for another model. Reload the page.")
    done = ack.seq if ack.sender == sender else 0
    found = [step for entry in steps if (step := _read_step(entry, summary)).seq > done]
    found.sort(key=lambda step: step.seq)
    return found, Ack(sender=sender, seq=found[-1].seq if found else done)


def _read_step(entry: object, summary: ModelSummary) -> Step:
    if not isinstance(entry, Mapping):
        raise EditError(f"A step is a JSON object, not {entry!r:.40}.")
    percents, locks = entry.get("percents") or {}, entry.get("locks") or {}
    seq, gesture = entry.get("seq"), entry.get("gesture")
    if not (_whole(seq) and seq > 0 and _whole(gesture) and gesture > 0):
        raise EditError(f"A step has positive numbers; got {seq!r:.30} and {gesture!r:.30}.")
    if not isinstance(percents, Mapping) or not isinstance(locks, Mapping):
        raise EditError("A step maps groups to percents and to locks.")
    if unknown := sorted(str(g) for g in {*percents, *locks} if g not in summary.by_id):
        raise EditError(f"The model has no channel group {unknown[0]!r:.60}.")
    for group_id, percent in percents.items():
        if not _whole(percent) or not 0 <= percent <= MAX_PERCENT:
            raise EditError(
                f"Group {group_id!r} can lose 0 to {MAX_PERCENT} percent, in whole percents; got "
                f"{percent!r:.40}."
            )
    for group_id, on in locks.items():
        if not isinstance(on, bool):
            raise EditError(f"The lock of group {group_id!r} is true or false, not {on!r:.40}.")
    return Step(seq=seq, gesture=gesture, percents=dict(percents), locks=dict(locks))


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def apply_step(
    draft: Draft, summary: ModelSummary, step: Step, criterion: str | None = None
) -> Draft:
    """The draft after a step: first its ratios, then its locks.

    Args:
        draft: The draft before.
        summary: The model.
        step: What changes.
        criterion: What an empty draft ranks units by from now on.

    Raises:
        EditError: If the step moves a group that is locked, by the user or by its structure.
    """
    for group_id in step.percents:
        group = summary.by_id[group_id]
        if group_id in draft.locked:
            raise EditError(f"{group.label} is locked. Unlock it first.")
        if reason := locked_reason(group):
            raise EditError(f"{group.label} cannot be pruned: {reason}.")
    if step.percents:
        ratios = {group_id: percent / 100 for group_id, percent in step.percents.items()}
        draft = drafts.with_ratios(draft, summary, ratios, criterion)
    return drafts.with_locks(draft, summary, step.locks) if step.locks else draft
