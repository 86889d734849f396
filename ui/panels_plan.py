"""A plan in words: what every page says of it."""

from __future__ import annotations

from pathlib import Path

from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.size import memory_saving, plan_size
from ui import words
from ui.predict import POLICY_NAMES


def plan_line(summary: ModelSummary, plan: PrunePlan) -> str:
    """A plan in one line."""
    base, size = plan_size(summary, None), plan_size(summary, plan)
    return (
        f"**{len(plan.kept)} of {len(summary.groups)}** groups pruned · saves "
        f"**{words.percent(1 - size.bytes / base.bytes)}** of the memory "
        f"({words.megabytes(base.bytes)} → {words.megabytes(size.bytes)}) · "
        f"{size.params:,} parameters · {POLICY_NAMES.get(plan.policy, plan.policy)}, units ranked "
        f"by {plan.criterion}"
    )


def default_file_name(summary: ModelSummary, plan: PrunePlan) -> str:
    """A file name that says which model and how much is saved."""
    saved = round(100 * memory_saving(summary, plan))
    stem = Path(summary.model).stem.removesuffix("-pruned")
    return f"{stem}-saves{saved}.safetensors"
