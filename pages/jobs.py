"""What runs, waits and ended behind the pages; the files that were written."""

import ui
from ui import loaders
from ui.panels_job import live
from ui.panels_jobs import ended_panel, files_panel, log_panel, queue_panel

store = loaders.open_store()
ui.show_message()
active = loaders.active_jobs(store)


def queue() -> bool:
    """What waits and runs, as it is now."""
    now = loaders.active_jobs(store)
    queue_panel(store, now, key="queue")
    return [job.id for job in now] == [job.id for job in active] and bool(active)


live(queue, active=bool(active))
files_panel(store, key="files")
ended_panel(store, key="ended")
log_panel(store, key="log")
