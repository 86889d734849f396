"""The equalizer: one column a channel group, its sensitivity as heat, the user's handle on top.

An inline Streamlit component: ``equalizer.js`` draws and edits in the browser, at once and by
itself; what was changed comes here as steps (``edits``), what is true goes there as data
(``columns``). While Python works the browser shows its own unacknowledged steps on top.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__).parent
#: Puts what stays while a plan is made where the equalizer finds it. It is drawn outside the part
#: of the page that an edit runs again, so that an edit does not send it again.
_BOARD_JS = """
export default function ({ data }) {
  const boards = (globalThis.psvitBoards ??= new Map());
  if (boards.size > 8) boards.clear();
  boards.set(data.stamp, data);
  globalThis.dispatchEvent(new Event("psvit-board"));
}
"""
_board = st.components.v2.component("psvit_board", js=_BOARD_JS, isolate_styles=False)
_component = st.components.v2.component(
    "psvit_equalizer",
    html='<div class="eq"></div>',
    css=(_HERE / "equalizer.css").read_text(encoding="utf-8"),
    js=(_HERE / "equalizer.js").read_text(encoding="utf-8"),
)


def board(fixed: dict[str, Any], *, key: str) -> None:
    """Hand over what stays while a plan is made; shows nothing.

    Args:
        fixed: Columns, terms and looks under their ``stamp``.
        key: The component's key.
    """
    with st.container(key=f"{key}-hidden"):
        _board(key=key, data=fixed)


def equalizer(data: dict[str, Any], *, key: str, on_edit: Callable[[object], None]) -> None:
    """Draw the equalizer.

    Args:
        data: What ``panels_tune.equalizer_data`` puts together.
        key: The component's key.
        on_edit: Called with each message of steps.
    """

    def edited() -> None:
        on_edit(st.session_state[key].edit)

    _component(key=key, data=data, on_edit_change=edited)
