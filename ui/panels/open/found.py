"""Result of loading a file: the model's family, sizes and channel groups, unused tensors, locks."""

from __future__ import annotations

import streamlit as st

from psvit_core.plan.size import plan_size
from psvit_core.records import ModelSummary
from ui.model import formats, open_files, provenance
from ui.model.drafts import locked_reason
from ui.model.foreign import in_code, in_markdown
from ui.model.stored_weights import FLOAT32, SHORT, counted, quantized_note
from ui.panels.frame import Frame
from ui.panels.model import card_panel, groups_panel, size_tiles

_NAMED = 3  # unused tensors that are listed by name


def found_panel(page: Frame, *, key: str) -> None:
    """Draw the load report of the open model."""
    summary = page.summary
    st.header("2 · Check what was found", anchor=False)
    subject, card = page.workspace.subject, page.workspace.card
    card_panel(card, summary, subject)
    if card is not None and card.weights and subject.checkpoint:
        st.button(
            "Use the included weights",
            key=f"{key}-included",
            on_click=open_files.open_model,
            args=(card.name,),
        )
    weights = provenance.stored_weights(subject.model)
    size_tiles(plan_size(summary, None, counted(weights)), len(summary.groups))
    if weights != FLOAT32:
        _quantized(subject.model, weights)
    st.markdown("  \n".join(f":material/{icon}: {text}" for icon, text in report_lines(summary)))
    with st.expander(f"All {len(summary.groups)} channel groups", key=f"{key}-groups-open"):
        groups_panel(summary, key=f"{key}-groups")


def _quantized(model: str, weights: str) -> None:
    """Say in which form a file stores its weights, what it was measured at, and what it is for."""
    st.info(
        f"Weights of convolutions and linear layers are stored in **{SHORT[weights]}**; the memory "
        f"above is that of the stored tensors. {quantized_note(weights)}",
        icon=":material/compress:",
    )
    for measured in provenance.recorded(model):
        st.caption(in_markdown(formats.recorded_line(measured)))


def report_lines(summary: ModelSummary) -> list[tuple[str, str]]:
    """Return the load report as (icon, markdown) pairs."""
    stored = summary.shapes.tensors
    unused = [tensor.name for tensor in stored if tensor.role == "unused"]
    lines = [("check_circle", f"All {len(stored)} tensors were found; none is left over.")]
    if unused:
        some = ", ".join(in_code(name) for name in unused[:_NAMED])
        more = f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else ""
        text = f"{len(unused)} tensors are not used by the network and do not count as memory"
        lines.append(("info", f"{text}: {some}{more}."))
    locked = [(group, reason) for group in summary.groups if (reason := locked_reason(group))]
    lines += [
        ("lock", f"{in_markdown(group.label)} is locked: {in_markdown(reason)}.")
        for group, reason in locked
    ]
    if not locked:
        lines.append(("lock_open", "No channel group is locked: every group can lose units."))
    if summary.batch_coupled:
        text = "An image's result depends on the other images of its batch, so batches are fixed"
        lines.append(("link", f"{text} and intervals are wider."))
    return lines
