"""The login of an app that others can reach: who gets in, by which way, and who does not."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.types import Receive, Scope, Send
from streamlit import net_util
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from psvit_core.jobs import client
from psvit_core.records.jobs import ExportResult
from tests.patience import PATIENCE
from tests.ui.conftest import Server, run_apart, start_server
from ui.shell import access, downloads
from ui.shell.access import Access, AccessError, choose_access, is_loopback
from ui.shell.gate import Gate

ROOT = Path(__file__).parents[2]
TOKEN = "a-token.of_this~test"
OPEN = Access(exposed=True, token=TOKEN)


# ---- the choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        (None, False),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.20", False),
        ("::ffff:192.168.1.20", False),
        ("fe80::1%eth0", False),
        ("localhost.attacker.example", False),
        ("machine", False),
        ("127.0.0.1.example", False),
    ],
)
def test_only_loopback_needs_no_login(address: str | None, local: bool) -> None:
    assert is_loopback(address) == local
    if local:
        assert choose_access(address, {}) == Access()
    else:
        with pytest.raises(AccessError, match="without a login"):
            choose_access(address, {})
    assert choose_access(address, {"PSVIT_TOKEN": TOKEN}) == Access(not local, TOKEN)


def test_tokens_that_are_made_differ_and_are_long() -> None:
    made = [choose_access("0.0.0.0", {"PSVIT_TOKEN": "auto"}) for _ in range(2)]
    assert made[0].token != made[1].token
    assert all(a.made and a.exposed and re.fullmatch(r"[\w-]{43}", a.token) for a in made)


@pytest.mark.parametrize("token", ["short", "a" * 15, "a" * 201, "has a space in it!", "ä" * 20])
def test_simple_tokens_are_refused_and_not_shown(token: str) -> None:
    for address in ("0.0.0.0", "127.0.0.1"):
        with pytest.raises(AccessError, match="16 to 200 letters") as error:
            choose_access(address, {"PSVIT_TOKEN": token})
        assert token not in str(error.value)


def test_a_cookie_belongs_to_its_token() -> None:
    other = Access(exposed=True, token=TOKEN + "2")
    assert OPEN.admits(OPEN.cookie) and not OPEN.admits(other.cookie) and not OPEN.admits(None)
    assert OPEN.cookie_name != other.cookie_name
    assert TOKEN not in OPEN.cookie and OPEN.knows(TOKEN) and not OPEN.knows(TOKEN + "2")
    assert not Access().knows("")


# ---- the middleware ------------------------------------------------------------------------------


def answer(
    gate_access: Access,
    path: str = "/",
    query: str = "",
    *,
    kind: str = "http",
    method: str = "GET",
    body: bytes = b"",
    server: Any = ("0.0.0.0", 8501),
    scheme: str = "http",
    **headers: str,
) -> tuple[int, dict[str, str], str]:
    """Return what a gate answers: status, headers and text; 299 for what it passes on."""
    sent: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        sent.append({"type": "http.response.start", "status": 299, "headers": []})

    async def receive() -> Any:
        return {"type": f"{kind}.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"host": "machine:8501", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()],
        "server": server,
        "client": ("10.0.0.7", 1234),
        "scheme": scheme,
    }
    run_apart(Gate(app, gate_access)(scope, receive, send))
    if sent[0]["type"] == "websocket.close":
        return 403, {}, ""
    found = {k.decode(): v.decode("latin-1") for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent).decode()


def cookie(of: Access = OPEN) -> str:
    return f"other=1; {of.cookie_name}={of.cookie}"


@pytest.mark.parametrize("path", ["/", "/jobs", "/_stcore/host-config", "/media/x.png", "/files/x"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_passes_without_the_cookie(path: str, method: str) -> None:
    status, headers, text = answer(OPEN, path, method=method)
    assert (status, headers["cache-control"]) == (401, "no-store")
    assert "set-cookie" not in headers and "Token" in text
    assert answer(OPEN, path, method=method, cookie=cookie())[0] == 299
    wrong = f"{OPEN.cookie_name}={TOKEN}"
    assert answer(OPEN, path, method=method, cookie=wrong)[0] == 401
    assert answer(OPEN, path, method=method, cookie=cookie(Access(True, "x" * 20)))[0] == 401


def test_no_websocket_without_the_cookie() -> None:
    assert answer(OPEN, "/_stcore/stream", kind="websocket")[0] == 403
    assert answer(OPEN, "/_stcore/stream", f"token={TOKEN}", kind="websocket")[0] == 403
    assert answer(OPEN, "/_stcore/stream", kind="websocket", cookie=cookie())[0] == 299


@pytest.mark.parametrize(
    ("path", "query", "location"),
    [
        ("/", f"token={TOKEN}", "/"),
        ("/jobs", f"a=1&token={TOKEN}&b=%2F", "/jobs?a=1&b=%2F"),
        ("/", f"token=2&%74oken={TOKEN}", "/"),
        ("//attacker.example/", f"token={TOKEN}", "/attacker.example/"),
        ("/\\attacker.example", f"token={TOKEN}", "/attacker.example"),
        ("/a\r\nSet-Cookie: x=1", f"token={TOKEN}", "/a%0D%0ASet-Cookie%3A%20x%3D1"),
    ],
)
def test_a_token_becomes_a_cookie(path: str, query: str, location: str) -> None:
    status, headers, text = answer(OPEN, path, query)
    assert (status, headers["location"], text) == (303, location, "")
    given, *flags = headers["set-cookie"].split("; ")
    assert given == f"{OPEN.cookie_name}={OPEN.cookie}"
    assert {flag.lower() for flag in flags} == {"httponly", "path=/", "samesite=strict"}
    assert "Secure" in answer(OPEN, path, query, scheme="https")[1]["set-cookie"]
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "%00", "é"])
def test_a_wrong_token(token: str) -> None:
    for found in (
        answer(OPEN, "/jobs", urlencode({"token": token})),
        answer(OPEN, "/jobs", method="POST", body=urlencode({"token": token}).encode(), **FORM),
    ):
        assert found[0] in ((401, 403) if token == "" else (403,))
        assert "set-cookie" not in found[1]


FORM = {"content_type": "application/x-www-form-urlencoded", "origin": "null"}


def test_the_form() -> None:
    form = f"token={TOKEN}".encode()
    status, headers, _ = answer(OPEN, "/jobs", "a=1", method="POST", body=form, **FORM)
    assert (status, headers["location"]) == (303, "/jobs?a=1")
    assert answer(OPEN, method="POST", body=form, content_type="text/plain")[0] == 401
    long = b"token=" + b"x" * 5000 + b"&" + form
    assert answer(OPEN, method="POST", body=long, **FORM)[0] == 403
    text = answer(OPEN, '/"><img src=x>', "a=<script>&token=")[2]
    assert "<img" not in text and "<script" not in text


def test_a_token_leaves_the_address_of_who_is_logged_in() -> None:
    status, headers, _ = answer(OPEN, "/jobs", "a=1&token=old", cookie=cookie())
    assert (status, headers["location"]) == (303, "/jobs?a=1")


def test_only_health_answers_without() -> None:
    assert answer(OPEN, "/_stcore/health")[0] == 299
    for path, method in [
        ("/_stcore/health/", "GET"),
        ("/_stcore/health", "POST"),
        ("/x/..", "GET"),
    ]:
        assert answer(OPEN, path, method=method)[0] == 401


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_other_pages_are_refused(kind: str) -> None:
    for origin in (
        "http://attacker.example",
        "http://machine:9999",
        "http://localhost",
        "null",
        "[",
    ):
        assert answer(OPEN, kind=kind, cookie=cookie(), origin=origin)[0] == 403
    assert answer(OPEN, kind=kind, cookie=cookie(), origin="http://machine:8501")[0] == 299
    here: dict[str, Any] = {"kind": kind, "server": ("127.0.0.1", 1), "host": "localhost:8501"}
    assert answer(Access(), origin="http://attacker.example", **here)[0] == 403
    assert answer(Access(), origin="http://127.0.0.1:8501", **here)[0] == 299
    assert answer(Access(), **here)[0] == 299


@pytest.mark.parametrize("asked", [Access(), Access(token=TOKEN)])
@pytest.mark.parametrize("server", [("192.168.1.20", 8501), ("::ffff:10.0.0.1", 8501), None])
def test_an_app_that_was_not_told_refuses_other_machines(asked: Access, server: Any) -> None:
    """As with ``uvicorn app:app --host 0.0.0.0``, which Streamlit's settings do not know."""
    for kind in ("http", "websocket"):
        assert answer(asked, kind=kind, server=server, host="localhost", cookie=cookie())[0] == 403
    if not asked.token:
        assert answer(asked, server=("127.0.0.1", 8501), host="localhost")[0] == 299
        assert answer(asked, server=("/run/app.sock", None), host="localhost")[0] == 299


# ---- a real server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start an app that listens everywhere, and makes its own token."""
    options = ("--server.address", "0.0.0.0")
    cache = tmp_path_factory.mktemp("store")
    server = start_server(cache, options=options, PSVIT_TOKEN="auto")
    yield server
    server.kill()
    server.end_workers()


def token_of(server: Server) -> str:
    """Return the token that the server has printed."""
    found = re.search(
        r"http://127\.0\.0\.1:\d+/\?token=(\S+)", (server.cache / "server.log").read_text()
    )
    assert found is not None
    return found[1]


def ask(
    server: Server, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    found = connection.getresponse()
    text = found.read()
    connection.close()
    return found.status, found.headers, text


def logged_in(server: Server) -> str:
    """Return the cookie that the server gives for its token."""
    status, headers, text = ask(server, f"/jobs?token={token_of(server)}&x=1")
    assert (status, headers["Location"], text) == (303, "/jobs?x=1", b"")
    given = headers["Set-Cookie"]
    assert "HttpOnly" in given and "samesite=strict" in given.lower() and "Path=/" in given
    return given.partition(";")[0]


def test_pages_of_an_exposed_app(exposed: Server) -> None:
    for path in ("/", "/jobs", "/static/", "/_stcore/host-config", "/_stcore/metrics", "/media/x"):
        status, headers, text = ask(exposed, path)
        assert status == 401
        assert b"Streamlit" not in text and b"streamlit" not in text and b"<script" not in text
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert ask(exposed, "/?token=wrong")[0] == 403
    assert ask(exposed, "/_stcore/health")[::2] == (200, b"ok")
    cookie = logged_in(exposed)
    for host in ("localhost", "machine.example:8501"):
        status, _, text = ask(exposed, "/jobs", Cookie=cookie, Host=host)
        assert status == 200 and b"<script" in text
    assert ask(exposed, "/jobs", Cookie=cookie + "0")[0] == 401
    assert ask(exposed, "/", Cookie=cookie, Origin="http://attacker.example")[0] == 403


def test_the_websocket_of_an_exposed_app(exposed: Server) -> None:
    address = f"ws://127.0.0.1:{exposed.port}/_stcore/stream"
    protocols: Any = ["streamlit"]
    for headers in ({}, {"Cookie": "psvit-00000000=x"}):
        for query in ("", f"?token={token_of(exposed)}"):
            with pytest.raises(InvalidStatus) as refused:
                connect(address + query, subprotocols=protocols, additional_headers=headers)
            assert refused.value.response.status_code == 403
    cookie = {"Cookie": logged_in(exposed)}
    foreign = {**cookie, "Origin": "http://attacker.example"}
    with pytest.raises(InvalidStatus):
        connect(address, subprotocols=protocols, additional_headers=foreign)
    with connect(address, subprotocols=protocols, additional_headers=cookie) as socket:
        message = BackMsg()
        message.rerun_script.query_string = ""
        socket.send(message.SerializeToString())
        first = socket.recv(timeout=PATIENCE)
        assert isinstance(first, bytes) and ForwardMsg.FromString(first).WhichOneof("type")


def test_uploads_and_downloads_of_an_exposed_app(exposed: Server) -> None:
    store = exposed.store
    path = store.place("exports", "job", "pruned.safetensors")
    path.write_bytes(b"weights")
    job = client.save(store, export_job(path))
    link = f"/{downloads.file_link(store, job)}"
    store.close()
    assert ask(exposed, link)[0] == 401
    upload = "/_stcore/upload_file/session/file"
    assert ask(exposed, upload, "PUT", b"x")[0] == 401
    assert ask(exposed, upload, "DELETE")[0] == 401
    assert ask(exposed, "/progress/job")[0] == 401
    cookie = logged_in(exposed)
    status, headers, text = ask(exposed, link, Cookie=cookie)
    assert (status, text) == (200, b"weights") and "attachment" in headers["Content-Disposition"]
    assert ask(exposed, upload, "PUT", b"x", Cookie=cookie)[0] in (400, 403)  # as Streamlit answers
    assert b"active" in ask(exposed, "/progress/job", Cookie=cookie)[2]


def export_job(path: Path) -> client.Job:
    """Return a finished export that has written a file."""
    written = ExportResult(path=str(path), bytes=path.stat().st_size)
    return client.Job(
        id="job", task="export", title="", params={}, state="done", result=written.to_dict()
    )


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        pytest.param(
            ["streamlit", "run", "app.py", "--server.address", "0.0.0.0"],
            {"PSVIT_TOKEN": ""},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["streamlit", "run", "app.py"],
            {"STREAMLIT_SERVER_ADDRESS": "::"},
            marks=pytest.mark.slow,
        ),
        (["psvit_core", "app", "--server.address", "0.0.0.0"], {}),
    ],
)
def test_no_start_without_a_login(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PSVIT_CACHE": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 2
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("error: The app would listen on ") and "PSVIT_TOKEN=auto" in line
    assert "SECURITY.md" in line and "http" not in run.stdout
    assert list(tmp_path.iterdir()) == []  # it has done nothing yet


def test_no_outside_service_is_asked_for_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a request to an outside service")

    monkeypatch.setattr(net_util, "_make_blocking_http_get", refuse)
    monkeypatch.setattr(net_util, "_external_ip", None)
    access.start_access()
    assert net_util.get_external_ip() == ""
    settings = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["logger"]["hideWelcomeMessage"] is True
