"""The cost of pruning each channel group alone."""

from ui.panels.sensitivity.page import sensitivity_page

sensitivity_page()
