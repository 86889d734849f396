"""Small widgets that several panels share: a table of facts, buttons and links to download."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

import pandas as pd
import streamlit as st

from psvit_core.jobs.client import Job
from psvit_core.storage.store import Store
from ui.model.foreign import in_markdown
from ui.shell import downloads

NO_TOOLBAR = {"displayModeBar": False}  # plotly's own buttons over a chart


def facts_table(facts: Iterable[tuple[str, str]]) -> None:
    """Draw (name, value) pairs as a table of two columns; both may contain markdown."""
    body = "\n".join(f"| {name} | {value} |" for name, value in facts)
    st.markdown(f"| | |\n|:--|:--|\n{body}")


def show_warnings(warnings: Iterable[str]) -> None:
    """Draw warnings about numbers that may be wrong."""
    for warning in warnings:
        st.warning(in_markdown(warning), icon=":material/warning:")


def csv_button(frame: pd.DataFrame, file_name: str, *, key: str) -> None:
    """Draw the button that downloads a table as CSV."""
    st.download_button(
        "Download CSV",
        frame.to_csv(index=False),
        file_name=file_name,
        mime="text/csv",
        key=key,
        icon=":material/download:",
        on_click="ignore",
    )


def download_link(
    store: Store, job: Job, path: Path, *, text: str = "Download", label: str = ""
) -> None:
    """Draw the link that downloads the file written by a job.

    Args:
        store: The store with the job.
        job: The finished job.
        path: The file that it wrote.
        text: The link's text.
        label: The link's name for screen readers, if it differs from ``text``.
    """
    link, name = escape(downloads.file_link(store, job)), escape(path.name)
    aria = f' aria-label="{escape(label)}"' if label else ""
    st.html(
        f'<a class="psvit-button" href="{link}" download="{name}"{aria}>{escape(text)}</a>',
        width="content",
    )
