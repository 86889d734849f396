"""``psvit fits``: what it prints, its own numbers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psvit_core.cli import main
from psvit_core.errors import InvalidSizeError
from psvit_core.metrics.devices import DEVICES, parse_size
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.zoo.cards import shipped_summary

NAME = "e_spikeformer_digits"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))


def test_all_devices_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fits", NAME]) == 0
    text = capsys.readouterr().out
    for device in DEVICES:
        assert f"  {device} " in text
    assert "T x D = 1 x 4 = 4 binary steps" in text
    assert "does not mean that the chip has the operations" in text
    assert "arithmetic" not in text


def test_own_numbers_and_a_device_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--flash", "3MiB", "--ram", "90000"]
    assert main(["fits", NAME, *own, "--device", "pico", "--device", "pico", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    summary = shipped_summary(NAME)
    assert summary is not None
    weights = plan_size(summary, None).bytes
    assert result["weight_bytes"] == sum(result["layers"].values()) == weights
    mine, pico = result["fits"]
    assert [mine["device"]["name"], pico["device"]["name"]] == ["own", "pico"]
    spare = {limit["memory"]: limit["spare_bytes"] for limit in mine["limits"]}
    assert spare == {"flash": 3 * 1024**2 - weights, "RAM": 90_000 - result["ram_bytes"]}
    assert spare["flash"] > 0 > spare["RAM"]
    assert (mine["fits"], mine["binds"]) == (False, "RAM")
    assert (pico["fits"], pico["binds"]) == (False, "flash")


def test_a_plan_and_other_precisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = shipped_summary(NAME)
    assert summary is not None
    plan = plan_from_ratios(summary, {g.group_id: 0.5 for g in summary.groups}, criterion="l2")
    path = plan.save(tmp_path / "plan.json")
    found = {}
    for weights in ("fp32", "fp16", "int8"):
        options = ["--plan", str(path), "--weights", weights, "--device", "loihi2", "--json"]
        assert main(["fits", NAME, *options]) == 0
        result = json.loads(capsys.readouterr().out)
        found[weights] = result["weight_bytes"]
        assert result["arithmetic"] == (weights != "fp32")
        (loihi,) = result["fits"]
        (limit,) = loihi["limits"]  # one memory
        assert limit["need_bytes"] == result["weight_bytes"] + result["ram_bytes"]
    assert found["fp32"] == plan_size(summary, plan).bytes
    assert found["fp16"] == plan_size(summary, plan, "float16").bytes
    assert found["fp32"] / 2 < found["fp16"] < found["fp32"]  # only weights of layers are halved
    assert found["int8"] == plan_size(summary, plan, "int8").bytes
    assert main(["fits", NAME, "--weights", "int8", "--ram", "1GB"]) == 0
    text = capsys.readouterr().out
    assert "int8, by arithmetic: nothing is quantized or measured" in text
    assert "pico" not in text  # own numbers alone
    assert "operations" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--device", "stm32"],
            "Unknown device 'stm32'. Did you mean 'stm32h743'? Known: esp32-s3",
        ),
        (["--flash", "2MB"], "--flash 2000000 has no --ram beside it"),
        (["--ram", "much"], "need a size such as 524288, 512KiB or 2MB; got 'much'"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_read(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fits", "none.safetensors", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "none.safetensors" not in error


@pytest.mark.parametrize(
    ("text", "size"),
    [("524288", 524288), ("512KiB", 524288), ("512kb", 512_000), ("1.5 MiB", 1572864), ("2G", 2e9)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-5", "0.2", "5iB", "1e6", "nan", "9" * 400, "5TB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InvalidSizeError, match="need a size"):
        parse_size(text)
