"""Entry point of the app: ``streamlit run app.py``.

Adds to Streamlit what a page cannot provide: routes for downloads and for the progress of jobs, the
login and headers for security, a worker that is ready before it is needed, the restart of waiting
jobs, and one handler for errors.
The screens are in ``pages/``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from starlette.routing import Route

from psvit_core.errors import PsvitError
from psvit_core.jobs import devices, servers, workers
from psvit_core.records import Subject
from ui.model import recovery
from ui.model.loaders import WARM_ENV, open_store
from ui.panels import live
from ui.shell.access import announce, current_access, start_access
from ui.shell.browsers import BrowserNames, separates_browsers
from ui.shell.downloads import ROUTE, send_file
from ui.shell.errors import show_error
from ui.shell.gate import Gate
from ui.shell.headers import SecurityHeaders
from ui.shell.memory import limit_arenas

log = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    """Start a worker when the server starts, and for jobs that wait without one, as after a crash.

    The worker ends soon after the server, but not before it has no more jobs. The server starts
    even with a store that cannot be written to.
    """
    with ExitStack() as running:
        try:
            store = open_store()
            running.callback(servers.unregister_server, store)
            running.enter_context(servers.jobs_have_workers(store, serves=True))
            if os.environ.get(WARM_ENV) != "0":
                warm = Subject(recovery=recovery.default(), device=devices.default_device())
                workers.ensure_worker(store, devices.first_device(), warm=warm)
        except PsvitError as error:  # a full disk or no memory, for example
            log.error("%s", error)
        announce(current_access())
        yield {}


def check_settings() -> None:
    """Check what the environment says, before anybody asks for a page.

    Raises:
        SystemExit: Status 2, with one line on stderr, if something is wrong.
    """
    try:
        devices.queue_devices()
        separates_browsers()
    except PsvitError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


limit_arenas()
app = st.App(
    "ui/shell/main.py",
    routes=[Route(ROUTE, send_file), Route(live.ROUTE, live.send_progress)],
    middleware=[Middleware(SecurityHeaders), Middleware(Gate), Middleware(BrowserNames)],
    lifespan=lifespan,
    on_script_error=show_error,
)
start_access()  # after st.App, which finds the settings that lie beside this file
check_settings()
