"""Entry of the app: ``streamlit run app.py``.

Adds to Streamlit what a page cannot do: the download route, the check of the Host header, a worker
that is warm before it is needed, the restart of waiting jobs, and one place where errors become
messages. The screens are in ``pages/``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Route

from psvit_core.jobs import client
from psvit_core.jobs.engine import Subject
from psvit_core.store import Store
from ui.errors import show_error
from ui.files import ROUTE, send_file

WARM_ENV = "PSVIT_WARM"  # "0": no worker before the first job
HOSTS = ["localhost", "127.0.0.1"]  # config.toml names the same for websockets


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    """On start, have a worker get ready, and give jobs that wait since a crash theirs."""
    store = Store()
    if os.environ.get(WARM_ENV) != "0":
        client.ensure_worker(store, warm=Subject().to_dict())
    client.reconcile(store)
    yield {}


app = st.App(
    "ui/main.py",
    routes=[Route(ROUTE, send_file)],
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
    lifespan=lifespan,
    on_script_error=show_error,
)
