"""How much to remove from each channel group: handles on the measured sensitivity."""

from ui.panels.tune.page import tune_page

tune_page()
