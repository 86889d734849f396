"""What a page tells of a model: what the network is, its sizes, its channel groups."""

from __future__ import annotations

import streamlit as st

from psvit_core.records import ModelSummary, Size
from psvit_core.zoo.cards import ModelCard
from ui import charts, tables, words

TERMS = {
    "Channel group": "the set of channels that must be removed together, across all layers that "
    "write or read them. It is what a plan prunes.",
    "Unit": "one member of a group: a channel, with its weights in every layer of the group.",
    "Per head": "an attention group keeps the same number of units in each of its heads.",
    "Residual stream": "the channels that every block adds to; removing one touches all of them.",
    "MACs": "multiply-accumulates of one image and one time step, counted as if dense.",
    "Memory": "bytes of what inference reads, 32-bit, BatchNorm statistics included.",
}


def card_panel(card: ModelCard | None, summary: ModelSummary | None) -> None:
    """What the model is and where its weights come from.

    Args:
        card: Its card; None for a pruned file.
        summary: Its description; None before its weights are there.
    """
    st.header(card.title if card else "Pruned model", anchor=False)
    st.markdown(" · ".join(_facts(card, summary)))
    if card is None:
        st.caption(f"File: `{summary.model if summary else ''}`")
        return
    st.caption(f"Architecture: {card.paper}")
    if card.training:
        st.caption(_training_line(card))
    for entry in card.published:
        doubt = "" if entry.verified else ", not checked at the source"
        st.caption(
            f"Published top-1: **{entry.top1:.2f} %** with T = {entry.T} at {entry.px} pixels "
            f"({entry.source}{doubt})"
        )
    if card.notes:
        st.caption(card.notes)


def _facts(card: ModelCard | None, summary: ModelSummary | None) -> list[str]:
    facts = []
    if summary is not None:
        channels, height, width = summary.input_shape
        facts = [
            f"family `{summary.family}`",
            f"T = {summary.T} time step{'s' if summary.T != 1 else ''}",
            f"input {channels} × {height} × {width}",
            f"{summary.num_classes} classes",
        ]
    elif card is not None:
        facts = [f"family `{card.family}`", f"{card.parameters:,} parameters"]
    return [*facts, f"data `{card.data}`"] if card else facts


def _training_line(card: ModelCard) -> str:
    t = card.training
    return (
        f"Trained here for {t['epochs']} epochs with seed {t['seed']}; epoch {t['best_epoch']} was "
        f"chosen on the validation split. Top-1 on validation: {_share(t, 'val')}; on test, "
        f"never used for choices: {_share(t, 'test')} (torch {t['torch']})."
    )


def _share(training: object, split: str) -> str:
    assert hasattr(training, "__getitem__")
    right, whole = training[f"{split}_correct"], training[f"{split}_images"]
    return f"**{words.percent(right / whole, 2)}** ({right} of {whole} images)"


def size_tiles(size: Size, n_groups: int) -> None:
    """Size and compute of the unpruned model."""
    with st.container(horizontal=True, key="model-tiles"):
        st.metric("Parameters", f"{size.params:,}", width=150)
        st.metric("Memory", words.megabytes(size.bytes), width=150)
        st.metric("MACs a time step", words.count(size.macs), width=150)
        st.metric("Channel groups", n_groups, width=150)


def bytes_panel(summary: ModelSummary, *, key: str, dark: bool) -> None:
    """Where the bytes are, block by block."""
    st.header("Where the bytes are", anchor=False)
    st.plotly_chart(
        charts.byte_bars(tables.bytes_by_block(summary), dark=dark),
        key=key,
        theme=None,
        config={"displayModeBar": False},
        alt="Bytes of each block of the network",
    )
    st.caption(
        "Bytes of each block's tensors. What only a residual stream touches (its normalisation, "
        "the classifier's input) stands under that stream. Removing channels frees bytes in every "
        "layer that reads them too, so savings do not simply add up; the Tune page gives the true "
        "joint size."
    )


def groups_panel(summary: ModelSummary, *, key: str) -> None:
    """The table of channel groups."""
    st.dataframe(
        tables.group_rows(summary),
        key=key,
        hide_index=True,
        height="content" if len(summary.groups) < 24 else 480,
        column_config={
            "block": "Block",
            "group": "Group",
            "kind": "Kind",
            "units": st.column_config.NumberColumn("Units", help="channels that can be removed"),
            "heads": st.column_config.TextColumn("Heads", help="each keeps the same number"),
            "group_id": st.column_config.TextColumn("group_id", help="its name in plans and files"),
        },
    )


def terms_panel() -> None:
    """The words used on the pages."""
    st.header("In a word", anchor=False)
    st.markdown("\n\n".join(f"**{term}**: {text}" for term, text in TERMS.items()))
