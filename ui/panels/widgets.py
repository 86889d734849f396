"""Small widgets that several panels share: a table of facts, buttons and links to download."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from psvit_core.files import is_file
from psvit_core.jobs.client import Job
from psvit_core.storage.store import Store
from ui.model import state
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


def was_clicked(label: str, *, key: str, **options: Any) -> bool:
    """Draw a button; return whether it was clicked.

    A click also counts if another change interrupted the run that it started: ``st.button`` alone
    forgets it then.

    Args:
        label: The button's text.
        key: Its key. If what it acts on may not change under a click, as for a deletion, the key
            names it.
        options: Other arguments of ``st.button``.
    """
    st.button(label, key=key, on_click=state.note_click, args=(key,), **options)
    return not options.get("disabled") and state.take_click(key)


def action_button(
    label: str, action: Callable[..., object], *values: object, key: str, **options: Any
) -> None:
    """Draw a button that acts on values chosen on the same page.

    A callback of ``st.button`` gets the values of the run before the click. Whoever chooses another
    file and presses the button before the page has answered would act on the file before. Here the
    run that the click starts reads the values, and the next one acts.

    Args:
        label: The button's text.
        action: Called with ``values`` before anything is drawn, so it may set values of widgets.
        values: What it acts on, as this page has it now.
        key: Key of the button, see ``was_clicked``.
        options: Other arguments of ``st.button``.
    """
    if was_clicked(label, key=key, **options):
        state.postpone(lambda: action(*values))
        st.rerun()


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


def python_button(code: Path, *, key: str) -> None:
    """Draw the button that downloads the Python file of a checkpoint, if there is one."""
    if not is_file(code):
        return
    st.download_button(
        "Python file",
        code.read_text(encoding="utf-8"),
        code.name,
        "text/x-python",
        key=f"{key}-code",
        on_click="ignore",
        help="The network's definition. With the checkpoint beside it, it runs where this program "
        "is not installed: it needs only torch and safetensors.",
    )
