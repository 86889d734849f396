"""Checkpoint files on the command line: notes, entries, plugins, options without effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import psvit_core
from psvit_core.cli import main
from psvit_core.custom import plugin as plugins
from psvit_core.errors import CheckpointError
from psvit_core.zoo import cards
from psvit_core.zoo.checkpoint import load_model, weights_hash
from psvit_core.zoo.opening import has_heads
from psvit_core.zoo.registry import build_model
from tests.own_models import CLASSES, SHAPE, Tokens, warmed
from tests.tiny import tiny_model

NAME = "sdt_v1_digits"
PLUGIN = Path(__file__).parents[1] / "own_models.py"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    yield
    cards._custom_cards.clear()
    plugins._state.loaded.clear()
    plugins._state.store = None


@pytest.fixture
def renamed(tmp_path: Path) -> Path:
    """Write a half-precision file with a prefix and an average, as a trainer would."""
    state = load_model(NAME).state_dict()
    plain = {
        f"module.{k}": t.half() if t.is_floating_point() else t
        for k, t in state.items()
        if "num_batches" not in k
    }
    average = {k: t * 2 if t.is_floating_point() else t for k, t in state.items()}
    torch.save({"net": plain, "ema": average}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


NOTES = (
    "entry net was loaded; the file also contains ema (272 tensors)",
    "prefix module. removed",
    "num_batches_tracked missing in the file, set to 0: inference does not use them",
    "converted from float16 to float32; the values keep their lower precision",
)


@pytest.mark.parametrize(
    "command",
    [
        ("groups", NAME, "--checkpoint", "FILE"),
        ("groups", "FILE", "--family", "sdt_v1"),
        ("evaluate", NAME, "--checkpoint", "FILE", "--limit", "3"),
        ("inspect", "FILE"),
    ],
    ids=["name", "file", "evaluate", "inspect"],
)
def test_notes_are_shown(
    renamed: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    words = [str(renamed) if word == "FILE" else word for word in command]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    notes = json.loads(captured.out)["notes"]
    assert len(notes) == len(NOTES)
    for note, part in zip(notes, NOTES, strict=True):
        assert part in note
        assert f"psvit: weights.pth: {note}\n" in captured.err
    assert main(words) == 0
    assert NOTES[1] in capsys.readouterr().err


def test_files_without_changes_have_no_notes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["groups", NAME, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "notes" not in json.loads(captured.out)


def test_inspect_reads_the_chosen_entry(
    renamed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for choice in (("--ema",), ("--entry", "ema")):
        assert main(["inspect", str(renamed), *choice, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert NAME in report["fits"]
        assert "entry ema was" in report["notes"][0]
    assert "Omit one" in fails(capsys, "inspect", renamed, "--ema", "--entry", "net")
    assert "no entries 'model'" in fails(capsys, "groups", renamed, "--entry", "model")
    state = load_model(NAME).state_dict()
    torch.save({"model_ema": state}, tmp_path / "only.pth")
    assert "Load it with --ema" in fails(capsys, "inspect", tmp_path / "only.pth")
    assert main(["inspect", str(tmp_path / "only.pth"), "--ema"]) == 0


def test_the_moving_average_is_what_is_loaded(renamed: Path) -> None:
    head = load_model(NAME).state_dict()["head.weight"]
    for choice, factor in (({"ema": True}, 2), ({"entry": "ema"}, 2), ({"entry": "net"}, 1)):
        loaded = load_model(NAME, renamed, **choice)
        assert torch.allclose(loaded.state_dict()["head.weight"], head * factor, atol=1e-3)


# ---- networks of the user's own --------------------------------------------------------------


class Wrapped(nn.Module):
    """A network whose parts are named like prefixes and extra tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.backbone = Tokens(), nn.BatchNorm2d(1)
        self.register_buffer("total_ops", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(self.backbone(x))
        return out


def register_wrapped() -> nn.Module:
    psvit_core.register_model(
        "own_wrapped", lambda: warmed(Wrapped()), input_shape=SHAPE, num_classes=CLASSES
    )
    return warmed(Wrapped())


@pytest.mark.parametrize(
    ("prefix", "notes"),
    [
        ("", ()),
        ("module.", ("prefix module. removed",)),
        ("_orig_mod.model.", ("prefix _orig_mod., model. removed",)),
        ("net.", ("prefix net. removed",)),
    ],
)
def test_names_of_own_networks_are_kept(
    prefix: str, notes: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = register_wrapped()
    state = {f"{prefix}{key}": tensor for key, tensor in net.state_dict().items()}
    torch.save({"state_dict": {**state, "head.v": torch.ones(2)}}, tmp_path / "own.pth")
    loaded = load_model("own_wrapped", tmp_path / "own.pth")
    assert loaded.notes == (*notes, "1 tensor dropped: states of SpikingJelly's neurons")
    assert weights_hash(loaded) == weights_hash(load_model("own_wrapped"))
    assert main(["inspect", str(tmp_path / "own.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] == ["own_wrapped"]


def test_inspect_knows_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards._custom_cards.clear()
    torch.save(warmed(Tokens()).state_dict(), tmp_path / "own.pth")
    assert main(["inspect", str(tmp_path / "own.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] == []
    assert main(["inspect", str(tmp_path / "own.pth"), "--plugin", str(PLUGIN), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] == ["own_tokens"]
    assert "no plugin 'nope'" in fails(capsys, "inspect", tmp_path / "own.pth", "--plugin", "nope")


# ---- heads that would be ignored -------------------------------------------------------------


def test_ignored_heads_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "groups", "own_tokens", "--plugin", PLUGIN, "--num-heads", "2")
    assert "number of heads of own_tokens is fixed" in message
    assert "Omit --num-heads" in message
    arguments = cards.model_card("qkformer_cifar10_4_384").arguments
    torch.save(build_model("qkformer_cifar", **arguments).state_dict(), tmp_path / "q.pth")
    for model in (("qkformer_cifar10_4_384", "--checkpoint", tmp_path / "q.pth"),):
        message = fails(capsys, "groups", *model, "--num-heads", "4")
        assert "num_heads would be ignored. Omit --num-heads" in message
    torch.save(tiny_model("qkformer_cifar").state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(CheckpointError, match=r"would be ignored\. Omit num_heads"):
        load_model(tmp_path / "tiny.pth", num_heads=4, T=4, image_size=32, batch_coupled=True)


def test_heads_that_matter_are_taken() -> None:
    state = tiny_model("sdt_v3").state_dict()
    assert has_heads("sdt_v3", state)
    assert has_heads("sdt_v1", tiny_model("sdt_v1").state_dict())  # shapes of unused tensors
    assert not has_heads("qkformer_cifar", tiny_model("qkformer_cifar").state_dict())
    assert load_model("e_spikeformer_digits", num_heads=4).arguments["num_heads"] == 4
