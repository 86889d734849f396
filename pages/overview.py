"""Accuracy against cost: all known plans, and the chosen one in detail."""

from ui.panels.overview.page import overview_page

overview_page()
