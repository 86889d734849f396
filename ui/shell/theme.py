"""The browser's theme, also right after the user has switched it in the menu.

Figures contain their colours, but Streamlit does not rerun the script when the theme changes. So an
empty component, which the browser calls on every change of theme, triggers a rerun.
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
    """Return whether this browser shows the dark theme; call this once per run."""
    _watcher(key="theme-watcher", on_switched_change=lambda: None)
    return bool(st.context.theme.type == "dark")
