"""A plan in one line, and its file: name, download, upload."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import ModelSummary, PrunePlan
from ui.model import formats, state
from ui.model.foreign import in_markdown
from ui.model.formats import POLICY_NAMES

MAX_FILE_MB = 20
_MAX_STEM = 55  # characters of the model's name in a file name; names may have 80 in all


def plan_line(summary: ModelSummary, plan: PrunePlan) -> str:
    """Return a plan's size and origin in one line of markdown."""
    base, size = plan_size(summary, None), plan_size(summary, plan)
    made_by = in_markdown(POLICY_NAMES.get(plan.policy, plan.policy))
    return (
        f"**{len(plan.kept)} of {len(summary.groups)}** groups pruned · saves "
        f"**{formats.percent(1 - size.bytes / base.bytes)}** of the memory "
        f"({formats.megabytes(base.bytes)} → {formats.megabytes(size.bytes)}) · "
        f"{size.params:,} parameters · {made_by}, units ranked by {in_markdown(plan.criterion)}"
    )


def default_file_name(summary: ModelSummary, plan: PrunePlan, *, as_pruned: bool = False) -> str:
    """Return a checkpoint name made of the model's name and the memory saved, in percent.

    Args:
        summary: The model.
        plan: The plan.
        as_pruned: Whether to say that nothing was recovered, next to a recovered file. That one
            says nothing: only the job finds out whether there are images to recover with.
    """
    saved = round(100 * memory_saving(summary, plan))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(summary.model).stem.removesuffix("-pruned"))
    stem = stem.strip("._-")[:_MAX_STEM] or "model"
    return f"{stem}-saves{saved}{'-as-pruned' if as_pruned else ''}.safetensors"


def plan_button(summary: ModelSummary, plan: PrunePlan, *, key: str) -> None:
    """Draw the button that downloads a plan as JSON."""
    st.download_button(
        "Download plan (JSON)",
        json.dumps(plan.to_dict(), indent=1),
        file_name=default_file_name(summary, plan).replace(".safetensors", ".plan.json"),
        mime="application/json",
        key=key,
        icon=":material/download:",
        on_click="ignore",
    )


def plan_uploader(label: str, use: Callable[[bytes], str], *, key: str) -> None:
    """Draw the field that opens a plan file.

    Args:
        label: The field's label.
        use: Takes the file's content and returns the message to show, in markdown; its
            ``PsvitError`` is shown as an error.
        key: The widget's key; the field is emptied after each file, so that the same file can be
            opened again.
    """
    widget = state.resettable_key(key)

    def load() -> None:
        content = state.uploaded(widget)
        if content is None:
            return
        state.reset_widget(key)
        try:
            state.leave_message(use(content))
        except PsvitError as error:
            state.leave_message(f"Could not open the plan. {in_markdown(str(error))}", "error")

    st.file_uploader(label, "json", key=widget, on_change=load, max_upload_size=MAX_FILE_MB)
