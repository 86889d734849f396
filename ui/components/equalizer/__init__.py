"""The equalizer: one column per channel group, its sensitivity as heat, a handle on top.

An inline Streamlit component. The JavaScript draws and edits in the browser at once. Edits come
back as numbered messages (``edits``); the plan's true state goes there as data (``columns``). Until
Python answers, the browser shows its unacknowledged edits on top of that state.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__).parent
#: Joined to one module in this order; later files use earlier ones.
SCRIPTS = ("helpers.js", "state.js", "build.js", "view.js", "equalizer.js")
#: Stores the data that edits do not change where the equalizer finds it. It is drawn outside the
#: fragment that an edit reruns, so that an edit does not send it again.
_PRELOAD_JS = """
export default function ({ data }) {
  const preloaded = (globalThis.psvitEqualizerData ??= new Map());
  if (preloaded.size > 8) preloaded.clear();
  preloaded.set(data.stamp, data);
  globalThis.dispatchEvent(new Event("psvit-equalizer-data"));
}
"""
_preload = st.components.v2.component("psvit_equalizer_data", js=_PRELOAD_JS, isolate_styles=False)
_component = st.components.v2.component(
    "psvit_equalizer",
    html='<div class="eq"></div>',
    css=(_HERE / "equalizer.css").read_text(encoding="utf-8"),
    js="\n".join((_HERE / name).read_text(encoding="utf-8") for name in SCRIPTS),
)


def preload(fixed: dict[str, Any], *, key: str) -> None:
    """Send the data that edits do not change to the browser; draws nothing.

    Args:
        fixed: Columns, size terms and heat settings, with the ``stamp`` that names them.
        key: The component's key.
    """
    with st.container(key=f"{key}-hidden"):
        _preload(key=key, data=fixed)


def equalizer(data: dict[str, Any], *, key: str, on_edit: Callable[[object], None]) -> None:
    """Draw the equalizer.

    Args:
        data: The plan's state, its predicted and measured drop, and the last acknowledgement.
        key: The component's key.
        on_edit: Called with each message of edits, for ``edits.read_edits``.
    """

    def edited() -> None:
        on_edit(st.session_state[key].edit)

    _component(key=key, data=data, on_edit_change=edited)
