"""``--data cifar10`` downloads CIFAR-10: asked or agreed to, checked, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from psvit_core.cli import main
from psvit_core.data import download, load_data
from psvit_core.errors import DataError
from psvit_core.files import DATA_ENV
from tests.data.test_cifar10 import CIFAR, TEST_LABELS, write_python

COMMAND = ("check-data", "sdt_v1_cifar10", "--data", "cifar10")


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_ENV, str(tmp_path / "data"))
    return tmp_path / "data" / "cifar-10-batches-py"


@pytest.fixture
def server(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a small archive in place of the published one; the value is the archive."""
    archive = tmp_path / "served" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(write_python(tmp_path / "made"), "cifar-10-batches-py")
    handler = partial(Handler, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            download, "URL", f"http://127.0.0.1:{running.server_port}/{archive.name}"
        )
        monkeypatch.setattr(download, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
        yield archive
        running.shutdown()


class Terminal(io.StringIO):
    """A terminal at which somebody has typed."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def test_the_pictures_are_downloaded_once(server: Path, place: Path) -> None:
    assert download.download_cifar10() == place
    assert [path.name for path in place.parent.iterdir()] == [place.name]  # no other file is left
    server.unlink()  # not needed again
    data = load_data("cifar10", split="test", transform=CIFAR)
    assert data.labels == tuple(TEST_LABELS)
    assert data.ids == load_data(f"cifar10:{place}", split="test", transform=CIFAR).ids


@pytest.mark.parametrize(
    ("answer", "more", "downloads"),
    [
        ("y\n", (), True),
        ("Yes\n", (), True),
        ("\n", (), False),
        ("", (), False),
        ("n\n", (), False),
        (None, (), False),
        (None, ("--download",), True),
        ("y\n", ("--json",), False),
        (None, ("--json", "--download"), True),
    ],
)
@pytest.mark.usefixtures("server")
def test_only_after_a_question(
    place: Path,
    answer: str | None,
    more: tuple[str, ...],
    downloads: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = Terminal() if answer is not None else io.StringIO()
    monkeypatch.setattr(sys, "stdin", Terminal(answer) if answer is not None else io.StringIO())
    monkeypatch.setattr(sys, "stderr", said)
    status = main([*COMMAND, *more])
    assert place.is_dir() == downloads
    assert (status == 0) == downloads, said.getvalue()
    asked = answer is not None and not more
    assert ("[y/N]" in said.getvalue()) == asked
    if not downloads:
        assert status == 2
        assert "Download it with --download" in said.getvalue()
        assert "cifar10:DIR" in said.getvalue()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("model", "downloads"),
    [("spikformer_cifar10_4_256", True), ("sdt_v1_digits", False), ("own.safetensors", False)],
)
def test_without_data_the_model_says_what_is_needed(
    place: Path, model: str, downloads: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", model, "--checkpoint", "none.pth", "--download", "--json"])
    capsys.readouterr()
    assert place.is_dir() == downloads


def test_a_damaged_download_is_refused(
    server: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = download.MD5
    monkeypatch.setattr(download, "MD5", "0" * 32)
    with pytest.raises(DataError, match="could not be downloaded"):
        download.download_cifar10()
    assert not place.exists()
    monkeypatch.setattr(download, "MD5", good)  # the next attempt replaces what is left
    assert download.download_cifar10() == place


def test_an_unreachable_host_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9"):
        download.download_cifar10()
    assert not place.exists()


def test_without_a_download_the_way_is_named(place: Path) -> None:
    with pytest.raises(DataError, match="--download"):
        load_data("cifar10", transform=CIFAR)
    assert not place.exists()
