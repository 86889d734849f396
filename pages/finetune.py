"""Regain accuracy: recover without training, then train the pruned network."""

from ui.panels.finetune.page import finetune_page

finetune_page()
