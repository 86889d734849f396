"""Saved plans side by side: what they remove, save and cost, and where two of them differ."""

from ui.panels.compare.page import compare_page

compare_page()
