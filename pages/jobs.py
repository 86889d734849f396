"""Background jobs: the queue, finished jobs, and the files that they wrote."""

from ui.panels.jobs import jobs_page

jobs_page()
