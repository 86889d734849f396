"""Which theme the browser shows, also right after the user has switched it in the menu.

Streamlit runs no script when the theme is switched, and figures carry their colours: so an empty
component, which the browser calls at every change of theme, asks for a run.
"""

from __future__ import annotations

import streamlit as st

_JS = """
const seen = new WeakMap();
export default function ({ parentElement, setTriggerValue }) {
  requestAnimationFrame(() => {
    const scheme = getComputedStyle(parentElement).colorScheme;
    const before = seen.get(parentElement);
    seen.set(parentElement, scheme);
    if (before !== undefined && before !== scheme) setTriggerValue("switched", scheme);
  });
}
"""

_watcher = st.components.v2.component("psvit_theme", js=_JS, isolate_styles=False)


def is_dark() -> bool:
    """Whether this browser shows the dark theme; to be called once a run."""
    _watcher(key="theme-watcher", on_switched_change=lambda: None)
    return bool(st.context.theme.type == "dark")
