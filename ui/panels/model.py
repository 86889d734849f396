"""A model on screen: what the network is, its sizes, its channel groups, the glossary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from psvit_core.records import ModelSummary, Size, Subject
from psvit_core.zoo.cards import ModelCard, shipped_summary
from psvit_core.zoo.sizing import format_arguments
from ui.charts.bytes import bytes_chart
from ui.model import formats, provenance, tables
from ui.model.foreign import in_code
from ui.model.stored_weights import FLOAT32
from ui.panels.widgets import NO_TOOLBAR

MANY_GROUPS = 24  # a longer table scrolls
TILE = 150  # pixels


def card_panel(
    card: ModelCard | None, summary: ModelSummary | None, source: Subject | None = None
) -> None:
    """Draw what the model is and where its weights come from.

    Args:
        card: Its card; None for a file.
        summary: Its description; None before its weights are available.
        source: What it was opened from.
    """
    st.header(_title(card, summary), anchor=False)
    own = source is not None and source.checkpoint is not None
    st.markdown(" · ".join(_facts(card, summary, own=own)))
    for line in _source_lines(card, summary, source):
        st.caption(line)
    if card is None:
        return
    st.caption(f"Architecture: {card.paper}")
    included = shipped_summary(card.name)
    if own and (not included or not summary or included.weights_hash != summary.weights_hash):
        return  # what the card says of training and results is not about these weights
    if card.training:
        st.caption(_training_line(card))
    for entry in card.published:
        st.caption(
            f"Published top-1: **{entry.top1:.2f} %** with T = {entry.T} at {entry.px} pixels "
            f"({entry.label})"
        )
    if card.available:
        st.caption(f"Weights: {card.available} Licence: {card.licence}.")
    if card.notes:
        st.caption(card.notes)


def _source_lines(
    card: ModelCard | None, summary: ModelSummary | None, source: Subject | None
) -> list[str]:
    """Return in markdown where the weights were read from, and with which arguments."""
    file = source.checkpoint if source is not None and card is not None else None
    if card is None and summary is not None:
        file = source.model if source is not None else summary.model
    if not file:
        return []
    lines = [f"File: {in_code(file)}"]
    if source is not None and source.entry:
        lines.append(f"Weights in the file: {in_code(source.entry)}")
    given = _arguments(source) if source is not None else ""
    return [*lines, f"Arguments: {in_code(given)}"] if given else lines


def _arguments(source: Subject) -> str:
    """Return the arguments that a file was opened with, as text."""
    named = {
        "T": source.time_steps,
        "image_size": source.image_size,
        "num_heads": source.num_heads,
        **source.arguments,
    }
    return format_arguments({name: value for name, value in named.items() if value is not None})


def _title(card: ModelCard | None, summary: ModelSummary | None) -> str:
    if card is not None:
        return card.title
    pruned = summary is None or provenance.is_pruned(summary.model)
    return "Pruned model" if pruned else "Model from a checkpoint"


def _facts(card: ModelCard | None, summary: ModelSummary | None, *, own: bool) -> list[str]:
    facts = []
    if summary is not None:
        channels, height, width = summary.input_shape
        facts = [
            f"family {in_code(summary.family)}",
            f"T = {summary.T} time step{'s' if summary.T != 1 else ''}",
            f"input {channels} × {height} × {width}",
            f"{summary.num_classes} classes",
        ]
    elif card is not None:
        facts = [f"family `{card.family}`", f"{card.parameters:,} parameters"]
    return [*facts, f"data `{card.data}`"] if card and not own else facts


def _training_line(card: ModelCard) -> str:
    t = card.training
    return (
        f"Trained for {t['epochs']} epochs with seed {t['seed']}; epoch {t['best_epoch']} was "
        f"selected on the validation split. Top-1 on validation: {_share(t, 'val')}; on test, "
        f"not used for selection: {_share(t, 'test')} (torch {t['torch']})."
    )


def _share(training: Mapping[str, Any], split: str) -> str:
    correct, images = training[f"{split}_correct"], training[f"{split}_images"]
    return f"**{formats.percent(correct / images, 2)}** ({correct} of {images} images)"


def size_tiles(size: Size, n_groups: int) -> None:
    """Draw the size and compute of the unpruned model."""
    with st.container(horizontal=True, key="model-tiles"):
        st.metric("Parameters", f"{size.params:,}", width=TILE)
        st.metric("Memory", formats.megabytes(size.bytes), width=TILE)
        st.metric("MACs per time step", formats.short_count(size.macs), width=TILE)
        st.metric("Channel groups", n_groups, width=TILE)


def bytes_panel(summary: ModelSummary, *, key: str, dark: bool) -> None:
    """Draw the bytes of each block."""
    st.header("Memory by block", anchor=False)
    st.plotly_chart(
        bytes_chart(tables.bytes_by_block(summary), dark=dark),
        key=key,
        theme=None,
        config=NO_TOOLBAR,
        alt="Bytes of each block of the network",
    )
    quantized = provenance.stored_weights(summary.model) != FLOAT32
    fp32 = " in fp32, as pruning writes them" if quantized else ""
    st.caption(
        f"Bytes of each block's tensors{fp32}. Tensors that belong only to a residual stream (its "
        "normalisation, the classifier's input) are listed under that stream. Removing channels "
        "also frees bytes in every layer that reads them, so savings do not simply add up; the "
        "Tune page shows the exact joint size."
    )


def groups_panel(summary: ModelSummary, *, key: str) -> None:
    """Draw the table of channel groups."""
    st.dataframe(
        tables.group_rows(summary),
        key=key,
        hide_index=True,
        height="content" if len(summary.groups) < MANY_GROUPS else 480,
        column_config={
            "block": "Block",
            "group": "Group",
            "kind": "Kind",
            "units": st.column_config.NumberColumn("Units", help="Channels that can be removed."),
            "heads": st.column_config.TextColumn(
                "Heads", help="Each head keeps the same number of units."
            ),
            "group_id": st.column_config.TextColumn(
                "group_id", help="The group's name in plans and files."
            ),
        },
    )
