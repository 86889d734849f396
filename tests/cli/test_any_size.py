"""A file of a size that no card knows, from inspection to a pruned file that opens again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psvit_core.cli import main
from psvit_core.zoo.registry import FAMILIES
from psvit_core.zoo.sizing import command_option
from tests.sizes import hidden_arguments, square_model
from tests.tiny import QUICK_NAMES

N_IMAGES = 8


def options_of(given: dict[str, Any]) -> list[str]:
    """Return the command-line options for arguments."""
    options = []
    for argument, value in given.items():
        option = command_option(argument)
        if isinstance(value, bool):
            options.append(option if value else option.replace("--", "--no-"))
        else:
            options += [option, str(value)]
    return options


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK_NAMES)
def test_from_inspection_to_a_pruned_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    model = square_model(name)
    torch.save({"state_dict": model.state_dict()}, "own.pth")
    channels, height, width = model.input_shape
    pixels = np.random.default_rng(0).integers(0, 256, (N_IMAGES, height, width, channels))
    labels = np.arange(N_IMAGES) % model.num_classes
    np.savez("images.npz", images=pixels.astype(np.uint8), labels=labels)

    def run(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    report = run("inspect", "own.pth")
    assert model.family in {FAMILIES[s["family"]].family for s in report["sizings"]} or any(
        s["family"] == FAMILIES[model.family].alias_of for s in report["sizings"]
    )
    given = options_of(hidden_arguments(model))
    assert main(["evaluate", "own.pth", "--data", "npz:images.npz"]) == 2
    refused = capsys.readouterr().err
    assert "--image-size" in refused or "--family" in refused

    data = ["--data", "npz:images.npz", "--batch", str(N_IMAGES)]
    groups = run("groups", "own.pth", *given)["groups"]
    assert [g["group_id"] for g in groups] == [g.group_id for g in model.channel_groups()]
    full = run("evaluate", "own.pth", *given, *data)
    criterion = ["--criterion", "l2"]
    run("sweep", "own.pth", *given, *data, *criterion, "--ratios", "0.5", "--out", "sweep.json")
    target = ["--sweep", "sweep.json", "--policy", "uniform", "--memory-saving", "0.2"]
    run("plan", "own.pth", *given, *data, *target, "--out", "plan.json")
    run("prune", "own.pth", *given, *data, "--plan", "plan.json", "--out", "small.safetensors")
    Path("own.pth").unlink()  # the pruned file needs no other
    small = run("evaluate", "small.safetensors", *data)
    assert small["size"]["bytes"] < 0.85 * full["size"]["bytes"]
    assert run("inspect", "small.safetensors")["pruned_from"].endswith("own.pth")
