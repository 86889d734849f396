"""Downloads of exported checkpoints: ``/files/TOKEN`` streams a file that the store knows.

The token is a keyed hash of the export job's id, so it cannot be guessed; the file's place comes
from the job's record, never from the URL.
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
from psvit_core.store import Store

ROUTE = "/files/{token}"
_SECRET_KEY = "ui/secret"


def file_token(store: Store, job: Job) -> str:
    """The download token of a finished export."""
    store.put_new(_SECRET_KEY, secrets.token_hex(32))
    secret = bytes.fromhex(store.get(_SECRET_KEY))
    return hmac.new(secret, job.id.encode(), hashlib.sha256).hexdigest()[:40]


def file_link(store: Store, job: Job) -> str:
    """The download link of a finished export, relative to the page."""
    return f"files/{file_token(store, job)}"


def find_file(store: Store, token: str) -> Path | None:
    """The file that a token stands for; None for a wrong token or a file that is gone."""
    for job in client.list_jobs(store):
        if job.task not in ("export", "finetune") or job.state != "done":
            continue
        if hmac.compare_digest(file_token(store, job).encode(), token.encode()):
            path = Path(job.result["path"])
            return path if _is_ours(store, path) and path.is_file() else None
    return None


def _is_ours(store: Store, path: Path) -> bool:
    """Whether a path lies in the store, wherever links lead."""
    return path.resolve().is_relative_to(store.folder.resolve())


def remove_file(store: Store, job: Job) -> None:
    """Remove what a finished job wrote, from the disk and from the lists; never anything else."""
    for name in ("path", "last_path"):
        path = Path(job.result[name]) if name in job.result else None
        if path is not None and _is_ours(store, path):
            path.unlink(missing_ok=True)


def send_file(request: Request) -> Response:
    """Answer a download."""
    store = Store()
    path = find_file(store, request.path_params["token"])
    store.close()
    if path is None:
        text = "There is no such file (any more). The Jobs page lists those that are there."
        return PlainTextResponse(text, status_code=404)
    return FileResponse(path, filename=path.name, media_type="application/octet-stream")
