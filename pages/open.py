"""Choose a model and its images: built in, from a folder on this machine, or uploaded."""

from ui.panels.open.page import open_page

open_page()
