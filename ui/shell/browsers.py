"""Several people at one app: each browser then has the plan that it edits to itself.

The plan being edited is stored, so that it survives a reload. On one's own machine there is one of
each model, for all browsers. Where others can reach the app, or with ``PSVIT_PLANS=own``, a browser
gets a cookie with a random name, and its plans are stored under that. Saved plans, measurements
and jobs are everyone's.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.shell.access import AccessError, current_access

PLANS_ENV = "PSVIT_PLANS"
COOKIE = "psvit-browser"
_NAME = re.compile(r"[0-9a-f]{32}")
_CHOICES = {"own": True, "shared": False}
_SECONDS = 365 * 24 * 3600


def has_own_plans(environment: Mapping[str, str], *, exposed: bool) -> bool:
    """Return whether each browser has plans of its own.

    Args:
        environment: The environment, of which ``PSVIT_PLANS`` counts.
        exposed: Whether the app listens beyond this machine.

    Raises:
        AccessError: If ``PSVIT_PLANS`` is neither ``own`` nor ``shared``.
    """
    chosen = environment.get(PLANS_ENV, "")
    if chosen and chosen not in _CHOICES:
        raise AccessError(
            f"{PLANS_ENV} must be own (each browser edits plans of its own) or shared (all "
            f"browsers edit the same plan of a model); got {chosen!r}."
        )
    return _CHOICES.get(chosen, exposed)


def separates_browsers() -> bool:
    """Return whether each browser of this process's app has plans of its own.

    Raises:
        AccessError: As ``has_own_plans``.
    """
    return has_own_plans(os.environ, exposed=current_access().exposed)


def browser_name(tab: str) -> str:
    """Return the name under which this browser's plans are stored; empty where they are shared.

    Args:
        tab: Name of the browser's tab, which stands in for a browser that keeps no cookies.
    """
    if not separates_browsers():
        return ""
    found = st.context.cookies.get(COOKIE) or ""
    return found if _NAME.fullmatch(found) else tab


class BrowserNames:
    """Middleware that gives each browser its cookie with the first page.

    Args:
        app: The application that answers.
        separate: Whether browsers have plans of their own; by default as this process's app.
    """

    def __init__(self, app: ASGIApp, separate: bool | None = None) -> None:
        self.app = app
        self.separate = separates_browsers() if separate is None else separate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        known = HTTPConnection(scope).cookies if scope["type"] == "http" else {}
        named = _NAME.fullmatch(known.get(COOKIE, ""))
        if not self.separate or scope["type"] != "http" or named:
            await self.app(scope, receive, send)
            return

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("Set-Cookie", _new_cookie(scope))
            await send(message)

        await self.app(scope, receive, send_with_cookie)


def _new_cookie(scope: Scope) -> str:
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    # Lax: whoever comes by a link from another site is still the same browser.
    rules = f"Max-Age={_SECONDS}; Path=/; HttpOnly; SameSite=Lax{secure}"
    return f"{COOKIE}={secrets.token_hex(16)}; {rules}"
