"""Write the pruned network to a file and download it."""

from ui.panels.export import export_page

export_page()
