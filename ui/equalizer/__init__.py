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
_component = st.components.v2.component(
    "psvit_equalizer",
    html='<div class="eq"></div>',
    css=(_HERE / "equalizer.css").read_text(encoding="utf-8"),
    js=(_HERE / "equalizer.js").read_text(encoding="utf-8"),
)


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
