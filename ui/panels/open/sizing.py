"""The form for a checkpoint of any size: what its tensors reveal, and what must be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from psvit_core.records import Choice, Sizing
from psvit_core.zoo.sizing import parse_value
from ui.model import open_files
from ui.model.foreign import in_markdown
from ui.panels.widgets import action_button

_WIDTH = 320  # pixels
_LABELS = {
    "T": "Time steps (T)",
    "image_size": "Image size in pixels (image_size)",
    "num_heads": "Attention heads (num_heads)",
    "pooling_stat": "Stages that pool (pooling_stat)",
    "batch_coupled": "Coupled batches (batch_coupled)",
}


def sizing_form(
    file: str, sizings: Sequence[Sizing], *, key: str, entry: str | None = None
) -> None:
    """Draw what is known of a file, a field for each argument to choose, and the button to open.

    Nothing is chosen in advance, because no tensor supports one value over another.
    """
    sizing, given = _family(sizings, key=key)
    if sizing is None:
        return
    size = " · ".join(f"{name} = {value}" for name, value in sizing.size.items())
    st.markdown(
        f"**{sizing.title}**  \nRead from the tensors: {in_markdown(size)}  \n"
        f"{sizing.parameters:,} parameters · {sizing.n_groups} channel groups"
    )
    for caution in sizing.cautions:
        st.warning(in_markdown(caution))
    with st.container(horizontal=True, key=f"{key}-fields"):
        for choice in sizing.choices:
            value = _field(choice, key=f"{key}-{sizing.family}-{choice.argument}")
            if value is not None:
                given[choice.argument] = value
    missing = [c.argument for c in sizing.choices if c.argument not in given]
    if missing:
        st.caption(
            f"To open the file, choose {', '.join(missing)}: the tensors do not reveal them."
        )
    action_button(
        "Open with these arguments",
        open_files.open_file,
        file,
        given,
        entry,
        key=f"{key}-go",
        type="primary",
        icon=":material/folder_open:",
        disabled=bool(missing),
    )


def _family(sizings: Sequence[Sizing], *, key: str) -> tuple[Sizing | None, dict[str, Any]]:
    """Return the sizing of the chosen family, and the argument that names it if there are more."""
    if len(sizings) == 1:
        return sizings[0], {}
    by_family = {sizing.family: sizing for sizing in sizings}
    family = st.selectbox(
        "Family (these have the same tensors)",
        list(by_family),
        index=None,
        placeholder="Choose",
        format_func=lambda name: by_family[name].title,
        key=f"{key}-family",
        width=_WIDTH,
        persist_state="session",
    )
    return (by_family[family], {"family": family}) if family else (None, {})


def _field(choice: Choice, *, key: str) -> Any:
    """Draw the field of one argument; return its value, or None while nothing is chosen."""
    reasons = {str(option.value): option.reason for option in choice.options}
    text = st.selectbox(
        _LABELS.get(choice.argument, choice.argument),
        list(reasons),
        index=None,
        placeholder="Choose or type" if choice.open_ended else "Choose",
        accept_new_options=choice.open_ended,
        format_func=lambda value: f"{value} · {reasons[value]}" if value in reasons else value,
        key=key,
        width=_WIDTH,
        persist_state="session",
    )
    if text is None or not text.strip():
        return None
    value = parse_value(choice.argument, text.strip())
    if choice.open_ended and not (isinstance(value, int) and value >= 1):
        got = in_markdown(repr(text)[:20])
        st.error(f"{choice.argument} must be a whole number of at least 1; got {got}.")
        return None
    return value
