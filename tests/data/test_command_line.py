"""User data on the command line: unreadable images, workers, frames of event cameras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from psvit_core.cli import main
from psvit_core.data import digits_arrays, digits_split, fit, load_data
from psvit_core.records import DIGITS_TRANSFORM, Subject
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session

MODEL = "sdt_v1_digits"
N_IMAGES = 12


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of digits and one unreadable image."""
    images, labels = digits_arrays()
    for digit in range(10):
        (tmp_path / "digits" / str(digit)).mkdir(parents=True)
    for i in digits_split("val")[::63]:
        path = tmp_path / "digits" / str(labels[i]) / f"{i}.png"
        Image.fromarray(images[i, 0].numpy()).save(path)
    (tmp_path / "digits" / "3" / "bad.png").write_bytes(b"no image")
    return tmp_path / "digits"


def evaluate(*arguments: str, model: str = MODEL) -> int:
    return main(["evaluate", model, "--json", "--batch", "5", *arguments])


def test_unreadable_image_stops(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for workers in ("0", "1"):
        assert evaluate("--data", f"folder:{folder}", "--workers", workers) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith(f"psvit: {folder / '3' / 'bad.png'} is not a readable image")
        assert "1 of 13 images" in captured.err  # images come in a seeded, mixed order
        assert "--bad-images skip" in captured.err


def test_unreadable_images_are_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--data", f"folder:{folder}", "--bad-images", "skip")
    assert evaluate(*asked) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["conditions"]["n_images"] == N_IMAGES
    assert result["accuracy"]["value"] > 0.8
    assert captured.err == (
        f"psvit: Skipped 1 of {N_IMAGES + 1} images that cannot be read: "
        f"{folder / '3' / 'bad.png'}.\n"
    )
    for i in range(5):
        (folder / "4" / f"bad{i}.png").touch()
    assert evaluate(*asked, "--workers", "2", "--limit", "1000") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == result
    assert "6 of 18 images" in captured.err
    assert captured.err.endswith("bad1.png and 3 more.\n")
    assert captured.err.count("\n") == 1
    assert evaluate(*asked, "--bad-images", "drop") == 2
    assert "Unknown bad-image action 'drop'" in capsys.readouterr().err


def test_no_warning_without_unreadable_images(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "3" / "bad.png").unlink()
    assert evaluate("--data", f"folder:{folder}", "--bad-images", "skip") == 0
    assert capsys.readouterr().err == ""


def test_negative_number_of_workers_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--limit", "5", "--workers", "-1") == 2
    assert "got -1" in capsys.readouterr().err


def frames_of_digits(path: Path, time_steps: int) -> str:
    """Write event data with the same padded digit at every time step."""
    images, labels = digits_arrays()
    chosen = list(digits_split("val")[::63])
    padded = torch.nn.functional.pad(images[chosen], (DIGITS_TRANSFORM.pad,) * 4).numpy()
    frames = np.repeat(padded[:, None], time_steps, axis=1)
    np.savez(path, frames=frames, labels=np.array([labels[i] for i in chosen]))
    return f"npz:{path}"


def test_constant_frames_give_the_results_of_the_image(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*arguments: str) -> dict[str, Any]:
        assert evaluate(*arguments) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    images = measured("--data", f"folder:{folder}", "--bad-images", "skip", "--time-steps", "3")
    frames = measured("--data", frames_of_digits(tmp_path / "f.npz", 3), "--workers", "1")
    assert frames["conditions"]["T"] == 3  # from the frames, without an option
    assert frames["conditions"]["transform"].startswith("frames")
    assert frames["accuracy"] == images["accuracy"]
    assert frames["sops"] == pytest.approx(images["sops"])
    assert frames["firing"] == pytest.approx(images["firing"])


def test_unsupported_frames_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = frames_of_digits(tmp_path / "f.npz", 3)
    assert evaluate("--data", spec, model="e_spikeformer_digits") == 2
    assert "has no time axis. Use images instead." in capsys.readouterr().err
    assert evaluate("--data", spec, "--time-steps", "4") == 2
    assert "frames of 3 time steps, but --time-steps is 4" in capsys.readouterr().err
    assert evaluate("--data", spec, "--time-steps", "3") == 0


def test_session_without_command_line_logs_warnings(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = Subject(data=f"folder:{folder}", bad_images="skip", workers=2)
    session = Session(subject, Store(tmp_path / "store"))
    assert len(session.data) == N_IMAGES
    assert session.run.workers == 2
    [record] = caplog.records
    assert "bad.png" in record.getMessage()


def test_image_files_equal_the_built_in_digits(folder: Path) -> None:
    data = load_data(f"folder:{folder}", transform=DIGITS_TRANSFORM, on_bad="skip")
    built_in = load_data("digits").take(range(0, 750, 63))
    order = sorted(range(N_IMAGES), key=lambda i: (built_in.labels[i], built_in.ids[i]))
    assert data.labels == tuple(built_in.labels[i] for i in order)
    files = torch.cat(list(data.batches(5)))
    assert torch.equal(files, torch.stack([built_in.load(i) for i in order]))
    assert fit(files[0], DIGITS_TRANSFORM).shape == (1, 28, 28)
