"""Notifications of the browser when a job has ended: the switch, and what shows them.

Two inline Streamlit components. The switch asks the browser for its permission, which needs a
click, and remembers the answer in this browser. The other one is on every page and invisible: it
shows a notification for each job that it is told of, and says whether it may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st

_HERE = Path(__file__).parent
_notices = st.components.v2.component(
    "psvit_notices", js=(_HERE / "notices.js").read_text(encoding="utf-8"), isolate_styles=False
)
_switch = st.components.v2.component(
    "psvit_notify_switch",
    html='<label class="notify"><input type="checkbox" role="switch"><span></span></label>'
    '<div class="note" role="status"></div>',
    css=(_HERE / "switch.css").read_text(encoding="utf-8"),
    js=(_HERE / "switch.js").read_text(encoding="utf-8"),
)


def show_notices(
    notices: Sequence[dict[str, str]],
    *,
    allowed: bool,
    key: str,
    on_change: Callable[[bool], None],
) -> None:
    """Show notifications, each once, if this browser's user asked for them.

    Args:
        notices: Of the last jobs that ended: ``id``, ``title`` and ``text``, all plain.
        allowed: Whether the browser shows them, as far as is known.
        key: The component's key.
        on_change: Called when it is known better.
    """

    def change() -> None:
        on_change(st.session_state[key].allowed is True)

    _notices(key=key, data={"notices": list(notices), "allowed": allowed}, on_allowed_change=change)


def notify_switch(*, key: str) -> None:
    """Draw the switch. It belongs to the browser: the page does not learn its state from here."""
    _switch(key=key, data={"label": "Notify me in this browser when a job ends"})
