"""Choose a model and its images: built in, from a folder on this machine, or uploaded."""

import ui
from ui import head, loaders
from ui.panels_model import terms_panel
from ui.panels_open import data_panel, report_panel, source_panel

store, choice = loaders.open_store(), head.choice()
ui.show_message()
source_panel(store, choice, key="open")
page = ui.boot()
report_panel(page, key="report")
data_panel(page.workspace, page.summary, key="data-choice")
terms_panel()
