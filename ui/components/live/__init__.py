"""The progress of a job, followed by the browser itself: no page is rerun for it.

An inline Streamlit component. Its JavaScript asks a route of the app (``ui/panels/live``) again and
again; the answer comes as soon as there is something new. It draws the progress and tells other
components of the page (event ``psvit-progress``). When the job has ended, the page is rerun once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__).parent
_component = st.components.v2.component(
    "psvit_live",
    html='<div class="live"><progress></progress><div class="line" role="status"></div></div>',
    css=(_HERE / "live.css").read_text(encoding="utf-8"),
    js=(_HERE / "live.js").read_text(encoding="utf-8"),
)


def follow(job_id: str, address: str, first: dict[str, Any], *, key: str) -> None:
    """Draw a job's progress, and rerun the fragment or page around it once the job has ended.

    Args:
        job_id: The job.
        address: Relative address of the route that answers with its progress.
        first: The progress to show before the first answer.
        key: The component's key.
    """
    data = {"job": job_id, "address": address, "first": first}
    _component(key=key, data=data, on_ended_change=_ignore)


def _ignore() -> None:
    """Do nothing: the rerun itself shows the result."""
