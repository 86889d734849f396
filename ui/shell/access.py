"""Who may use the app: beyond this machine, only whoever has its token.

An app that listens on another address than loopback starts only with a login: ``$PSVIT_TOKEN``
holds a token, or ``auto`` for one that is made at each start and printed. The browser gives it
once, in an address or a form, and gets a cookie for it. ``Gate`` asks for this cookie before
anything else answers: pages, websocket, uploads, downloads, media.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import streamlit as st
from streamlit import config, net_util

from psvit_core.errors import PsvitError
from ui.model import roots

TOKEN_ENV = "PSVIT_TOKEN"
HOSTS = ["localhost", "127.0.0.1"]  # the same as in config.toml, for websockets
_AUTO = "auto"
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,200}")  # stands in an address as it is


class AccessError(PsvitError):
    """An app that would be open to others, or a token that is none."""


@dataclass(frozen=True)
class Access:
    """How the app may be used.

    Attributes:
        exposed: Whether it listens beyond this machine.
        token: What its users have to know; empty where nothing is asked for.
        made: Whether the token was made at this start, so that nobody knows it yet.
    """

    exposed: bool = False
    token: str = ""
    made: bool = False

    def knows(self, token: str) -> bool:
        """Return whether a token is the right one, in a time that does not depend on it."""
        return bool(self.token) and hmac.compare_digest(_digest(token), _digest(self.token))

    @property
    def cookie_name(self) -> str:
        """The cookie's name; apps on other ports of this machine have others."""
        return f"psvit-{self._derived('name')[:8]}"

    def admits(self, cookie: str | None) -> bool:
        """Return whether a cookie is the one that a right token was exchanged for."""
        return cookie is not None and hmac.compare_digest(_digest(cookie), _digest(self.cookie))

    @property
    def cookie(self) -> str:
        """The cookie's value; it ends to be valid with the token."""
        return self._derived("value")

    def _derived(self, what: str) -> str:
        text = f"psvit cookie {what}".encode()
        return hmac.new(self.token.encode(), text, hashlib.sha256).hexdigest()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def is_loopback(address: str | None) -> bool:
    """Return whether an address is reached from this machine only; False where it is unknown."""
    if address is None:
        return False
    if address == "localhost":
        return True
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def choose_access(address: str | None, environment: Mapping[str, str]) -> Access:
    """Return how an app may be used that listens on an address.

    Args:
        address: What Streamlit was told to listen on; None: it was told nothing, and listens
            everywhere.
        environment: The environment, of which ``PSVIT_TOKEN`` counts.

    Raises:
        AccessError: If the app would be open to others, or the token is too simple.
    """
    exposed, token = not is_loopback(address), environment.get(TOKEN_ENV, "").strip()
    if token == _AUTO:
        return Access(exposed, secrets.token_urlsafe(32), made=True)
    if token and not _TOKEN.fullmatch(token):
        raise AccessError(
            f"{TOKEN_ENV} must be {_AUTO}, or 16 to 200 letters, digits and any of . _ ~ -; it has "
            f"{len(token)} characters. Set {TOKEN_ENV}={_AUTO} for a token made at each start."
        )
    if exposed and not token:
        raise AccessError(
            f"The app would listen on {address or 'every address of this machine'}, where others "
            f"reach it, without a login. Set {TOKEN_ENV}={_AUTO} for a token that is made at each "
            f"start and printed here, or set {TOKEN_ENV} to a secret of your own. Or stay with "
            "--server.address 127.0.0.1 and use an SSH tunnel or a proxy with a login: SECURITY.md "
            "says how."
        )
    return Access(exposed, token)


@functools.cache
def current_access() -> Access:
    """Return how this process's app may be used.

    Raises:
        AccessError: As ``choose_access``.
    """
    return choose_access(st.get_option("server.address"), os.environ)


def start_access() -> None:
    """Decide how the app may be used, before it answers anybody.

    Raises:
        SystemExit: Status 2, with one line on stderr, if it would be open to others.
    """
    try:
        access = current_access()
    except AccessError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    # Streamlit compares unknown origins with it, and would ask an outside service.
    net_util._external_ip = ""
    if access.exposed:
        roots.enforce()
        # Of no use beside a login, and nobody knows by which names others reach this machine.
        config.set_option("server.allowedHosts", ["*"])


def announce(access: Access) -> None:
    """Print where the app is, with the token if nobody knows it yet."""
    hosts = ["127.0.0.1"]
    if access.exposed:
        address = str(st.get_option("server.address") or "")
        everywhere = address in ("", "0.0.0.0", "::")
        hosts = [socket.gethostname(), *hosts] if everywhere else [address]
    query = f"/?token={access.token if access.made else '...'}" if access.token else ""
    lines = [f"  {_address(host)}{query}" for host in hosts]
    if access.token and not access.made:
        lines.append(f"  with the token of {TOKEN_ENV}, which the page asks for")
    if access.exposed and not st.get_option("server.sslCertFile"):
        lines.append("  Not encrypted: whoever sees the network's traffic can read the token.")
    print("\n".join(["", "  The PSViT explorer is at", "", *lines, ""]), flush=True)


def _address(host: str) -> str:
    scheme = "https" if st.get_option("server.sslCertFile") else "http"
    folder = str(st.get_option("server.baseUrlPath") or "").strip("/")
    host = f"[{host}]" if ":" in host else host
    # A server such as uvicorn has its own port, which Streamlit does not know.
    own = (config._server_mode or "").startswith("starlette-app")
    port = st.get_option("server.port") if own else "PORT"
    return f"{scheme}://{host}:{port}{f'/{folder}' if folder else ''}"
