"""Headers of every answer: what a page may load, and who may show it in a frame.

Whatever text reaches a page, the browser loads nothing from another machine, and no other page can
put this one into a frame.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_INDEX = Path(st.__file__).parent / "static" / "index.html"
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class SecurityHeaders:
    """Middleware that adds the headers to every answer.

    Args:
        app: The application that answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; those of websockets are passed on as they are."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(security_headers())
            await send(message)

        await self.app(scope, receive, send_with_headers)


@functools.cache
def security_headers() -> dict[str, str]:
    """Return the headers by name."""
    rules = {
        "default-src": "'self'",
        # Streamlit loads the code of components from blobs that it makes itself.
        "script-src": " ".join(("'self'", "blob:", *_inline_scripts(_INDEX.read_text("utf-8")))),
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "media-src": "'self' blob:",
        "worker-src": "'self' blob:",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in rules.items()),
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",  # addresses contain paths of files
    }


def _inline_scripts(page: str) -> list[str]:
    """Return the hashes of the scripts inside Streamlit's page, as sources of a policy."""
    digests = (hashlib.sha256(text.encode()).digest() for text in _SCRIPT.findall(page))
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
