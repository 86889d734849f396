"""Downloads of written files: ``/files/TOKEN`` streams a file that a job in the store has written.

The token is a keyed hash of the job's id, so it cannot be guessed. The path comes from the job's
record, never from the URL.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records.jobs import FinetuneResult
from psvit_core.storage.store import Store

ROUTE = "/files/{token}"
_SECRET_KEY = "ui/secret"
_UNSTORED_SECRET = secrets.token_hex(32)  # of this process, while it cannot be stored


def file_token(store: Store, job: Job) -> str:
    """Return the download token of a finished job."""
    if store.get(_SECRET_KEY) is None:
        with store.optional():
            store.put_new(_SECRET_KEY, _UNSTORED_SECRET)
    secret = bytes.fromhex(store.get(_SECRET_KEY) or _UNSTORED_SECRET)
    return hmac.new(secret, job.id.encode(), hashlib.sha256).hexdigest()[:40]


def file_link(store: Store, job: Job) -> str:
    """Return the download link of a finished job, relative to the page."""
    return f"files/{file_token(store, job)}"


def find_file(store: Store, token: str) -> Path | None:
    """Return the file that a token names; None if the token is wrong or the file is gone."""
    for job in client.list_jobs(store):
        if job.written is None:
            continue
        if hmac.compare_digest(file_token(store, job).encode(), token.encode()):
            path = Path(job.written.path)
            return path if _is_in_store(store, path) and path.is_file() else None
    return None


def _is_in_store(store: Store, path: Path) -> bool:
    """Return whether a path lies in the store, after resolving links."""
    return path.resolve().is_relative_to(store.folder.resolve())


def remove_file(store: Store, job: Job) -> None:
    """Delete the files that a finished job wrote; files outside the store are left alone."""
    last = job.outcome.last_path if isinstance(job.outcome, FinetuneResult) else ""
    written = (job.written.path, job.written.code) if job.written else ()
    for path in (*written, last):
        if path and _is_in_store(store, Path(path)):
            Path(path).unlink(missing_ok=True)


def send_file(request: Request) -> Response:
    """Answer a download request."""
    store = Store()
    path = find_file(store, request.path_params["token"])
    store.close()
    if path is None:
        text = "File not found. It may have been removed; the Jobs page lists all files."
        return PlainTextResponse(text, status_code=404)
    return FileResponse(path, filename=path.name, media_type="application/octet-stream")
