"""The picture of the network, in which a group can be chosen.

An inline Streamlit component. ``psvit_core.picture`` draws the picture; the JavaScript puts it on
the page, shows a group's layers beside it, and reports the group that is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st

from psvit_core.records import ChannelGroup

_HERE = Path(__file__).parent
_component = st.components.v2.component(
    "psvit_picture",
    html='<div class="pic"><div class="pic-card" role="region" aria-label="Layers of the group">'
    '</div><div class="pic-net"></div></div>',
    css=(_HERE / "picture.css").read_text(encoding="utf-8"),
    js=(_HERE / "picture.js").read_text(encoding="utf-8"),
)


def picture(
    svg: str,
    groups: Sequence[ChannelGroup],
    *,
    chosen: str | None,
    key: str,
    on_choose: Callable[[str], None],
) -> None:
    """Draw the picture.

    Args:
        svg: From ``network_svg``.
        groups: The model's groups, in its order.
        chosen: Id of the group that is marked; None for none.
        key: The component's key.
        on_choose: Called with the id of the group that was clicked, or chosen with Enter.
    """
    ids = [group.group_id for group in groups]

    def pick() -> None:
        group_id = chosen_group(st.session_state[key].pick, ids)
        if group_id is not None:
            on_choose(group_id)

    at = ids.index(chosen) if chosen in ids else -1
    _component(key=key, data={"svg": svg, "ids": ids, "chosen": at}, on_pick_change=pick)


def chosen_group(message: object, ids: Sequence[str]) -> str | None:
    """Return the group that a message of the browser names; None if it names none of these."""
    return message if isinstance(message, str) and message in ids else None
