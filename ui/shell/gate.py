"""The middleware that lets nobody in without the app's login, nor from other pages.

Nothing behind it answers a request that it refuses.
"""

from __future__ import annotations

import logging
from html import escape
from urllib.parse import parse_qs, quote, unquote_plus, urlsplit

import streamlit as st
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.shell.access import HOSTS, Access, current_access, is_loopback

log = logging.getLogger(__name__)
PARAMETER = "token"
_MAX_FORM = 4096  # bytes
_FORM_TYPE = "application/x-www-form-urlencoded"
_NOT_STORED = {"Cache-Control": "no-store"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Token · PSViT explorer</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto; padding: 0 1rem; }
:root { color-scheme: light dark; }
input, button { font: inherit; padding: 0.3rem 0.6rem; }
</style>
</head>
<body>
<main>
<h1>Token</h1>
<p role="alert">PROBLEM</p>
<p>The terminal in which the app was started shows its address with the token, or the token was set
as <code>PSVIT_TOKEN</code>.</p>
<form method="post" action="ADDRESS">
<label>Token <input type="password" name="token" required autocomplete="current-password"></label>
<button>Open</button>
</form>
<p><a href="ADDRESS">Open the page again</a>, if you gave the token before and came by a link.</p>
</main>
</body>
</html>
"""


class Gate:
    """Middleware that passes on what may reach the app, and answers everything else itself.

    Args:
        app: The application behind.
        access: How it may be used; by default as this process's app.
    """

    def __init__(self, app: ASGIApp, access: Access | None = None) -> None:
        self.access = current_access() if access is None else access
        # Beyond this machine the login, of which other sites have no cookie, takes its place.
        exposed = self.access.exposed
        self.app = app if exposed else TrustedHostMiddleware(app, allowed_hosts=HOSTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] in ("http", "websocket"):
            answer = await self._refusal(scope, receive)
            if answer is not None:
                await _refuse(answer, scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _refusal(self, scope: Scope, receive: Receive) -> Response | None:
        """Return the answer to a request that is not passed on."""
        if not self.access.exposed and not _came_by_loopback(scope):
            log.warning("refused a request from another machine: no login was asked for at start")
            return PlainTextResponse(
                "This app was not told that it listens beyond its machine, so it has no login. "
                "Start it with --server.address, as SECURITY.md says.",
                status_code=403,
            )
        connection = HTTPConnection(scope)
        if self.access.token and not _is_health(scope):
            answer = await self._login(connection, receive)
            if answer is not None:
                return answer
        if _is_foreign(connection, self.access):
            return PlainTextResponse("Another page asked for this.", status_code=403)
        return None

    async def _login(self, connection: HTTPConnection, receive: Receive) -> Response | None:
        """Exchange a token for the cookie, or ask for it; None if the cookie is there."""
        scope = connection.scope
        admitted = self.access.admits(connection.cookies.get(self.access.cookie_name))
        given = connection.query_params.get(PARAMETER)
        if admitted and (given is None or scope["type"] != "http"):
            return None
        if given is None and not admitted and _is_form(connection):
            given = await _token_of_form(receive)
        if given is None:
            return _page("This app asks for a token.", 401, scope)
        if not admitted and not self.access.knows(given):
            log.warning("wrong token from %s", (scope.get("client") or ["?"])[0])
            return _page("This is not the token of this app.", 403, scope)
        answer = RedirectResponse(_own_address(scope), status_code=303, headers=_NOT_STORED)
        answer.set_cookie(
            self.access.cookie_name,
            self.access.cookie,
            httponly=True,
            samesite="strict",
            secure=scope.get("scheme") in ("https", "wss"),
        )
        return answer


async def _refuse(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer; to a websocket, that it is not accepted, which its client sees as 403."""
    if scope["type"] == "websocket":
        await receive()  # the request to connect
        await send({"type": "websocket.close", "code": 1008})
    else:
        await answer(scope, receive, send)


def _page(problem: str, status: int, scope: Scope) -> Response:
    """Return the page that asks for the token; it contains nothing of the app."""
    address = escape(_own_address(scope))
    text = _PAGE.replace("PROBLEM", problem).replace("ADDRESS", address)
    return HTMLResponse(text, status_code=status, headers=_NOT_STORED)


def _own_address(scope: Scope) -> str:
    """Return the path and query of a request without its token, as an address of this app."""
    query = scope.get("query_string", b"").decode("latin-1")
    kept = [p for p in query.split("&") if p and unquote_plus(p.partition("=")[0]) != PARAMETER]
    path = quote("/" + scope["path"].lstrip("/\\"))  # two slashes would begin another host's name
    return f"{path}?{'&'.join(kept)}" if kept else path


def _came_by_loopback(scope: Scope) -> bool:
    """Return whether a request arrived at an address that only this machine reaches."""
    host, port = scope.get("server") or (None, 0)
    return port is None or is_loopback(host)  # without a port, it came by a file of the system


def _is_health(scope: Scope) -> bool:
    """Return whether a request asks for no more than whether the server runs."""
    folder = str(st.get_option("server.baseUrlPath") or "").strip("/")
    path = f"/{folder}/_stcore/health" if folder else "/_stcore/health"
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] == path


def _is_foreign(connection: HTTPConnection, access: Access) -> bool:
    """Return whether a page of another address sent a request."""
    origin = connection.headers.get("origin")
    if origin is None or origin in (st.get_option("server.corsAllowedOrigins") or ()):
        return False
    try:
        found = urlsplit(origin)
        name = found.hostname
    except ValueError:
        return True
    if found.netloc and found.netloc == connection.headers.get("host"):
        return False
    return access.exposed or name not in HOSTS


def _is_form(connection: HTTPConnection) -> bool:
    scope = connection.scope
    kind = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    return scope["type"] == "http" and scope["method"] == "POST" and kind == _FORM_TYPE


async def _token_of_form(receive: Receive) -> str:
    """Return the token of a form; empty without one, or if there is far more."""
    body, more = b"", True
    while more and len(body) <= _MAX_FORM:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    found = parse_qs(body.decode("latin-1")) if len(body) <= _MAX_FORM else {}
    return found.get(PARAMETER, [""])[0].strip()
