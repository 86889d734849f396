"""Reading and writing weights: strict, safe, atomic."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from psvit_core.data import load_data
from psvit_core.errors import (
    CheckpointError,
    InvalidPlanError,
    ModelError,
    OutputError,
    UnknownNameError,
)
from psvit_core.evaluate import measure
from psvit_core.groups import find_groups, plan_from_kept
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import WEIGHTS, list_models, model_card, shipped_summary
from psvit_core.zoo.checkpoint import load_model, weights_hash
from psvit_core.zoo.header import METADATA_KEY
from psvit_core.zoo.pruned import save_pruned
from psvit_core.zoo.registry import build_model
from tests.tiny import tiny_input, tiny_model, vector

NAME = "sdt_v1_digits"


def half(model: SpikingModel) -> SpikingModel:
    kept = {}
    for g in find_groups(model):
        width = g.n_units // (g.heads or 1)
        kept[g.group_id] = [i for i in range(g.n_units) if i % width < max(1, width // 2)]
    return apply_plan(model, plan_from_kept(model, kept))


@pytest.mark.parametrize("name", list_models(shipped=True))
def test_shipped_weights(name: str) -> None:
    card = model_card(name)
    assert card.weights is not None
    assert card.weights.stat().st_size <= 8e6
    model = load_model(name)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == card.training["parameters"]
    wanted = 0.97 if card.data == "digits" else 0.80
    assert card.training["val_correct"] / card.training["val_images"] >= wanted
    assert card.training["test_correct"] / card.training["test_images"] >= wanted


def test_heads_are_part_of_the_hash(tmp_path: Path) -> None:
    """Other heads make another function of the same weights; the card's heads change no hash."""
    name = "e_spikeformer_digits"
    card, other = load_model(name), load_model(name, num_heads=1)
    summary = shipped_summary(name)
    assert summary is not None
    assert weights_hash(card) == weights_hash(load_model(name, num_heads=8)) == summary.weights_hash
    assert weights_hash(other) != weights_hash(card)
    data = load_data("digits", transform=model_card(name).transform).limit(8)
    store = Store(tmp_path / "store")
    assert measure(card, data, store=store).sops != measure(other, data, store=store).sops
    with pytest.raises(InvalidPlanError, match="not for weights"):
        apply_plan(other, plan_from_kept(card, {}))

    small = half(other)
    kept = load_model(save_pruned(small, tmp_path / "small.safetensors"))
    assert weights_hash(kept) == weights_hash(small) != weights_hash(half(card))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("spikformer_cifar", {"num_heads": 1}),
        ("sdt_v1", {"pooling_stat": "1110"}),
        ("sdt_v2", {"num_heads": 1}),
        ("sdt_v3", {"num_heads": 1}),
        ("qkformer_imagenet", {"num_heads": 1}),
        ("qkformer_cifar", {"batch_coupled": False}),
    ],
)
def test_arguments_that_change_the_function_change_the_hash(
    name: str, changed: dict[str, Any]
) -> None:
    model, meta = tiny_model(name), vector(name).meta
    arguments = {**meta["constructor"], "T": meta["T"], **changed}
    other = build_model(meta["family"], **arguments)
    other.load_state_dict(model.state_dict())  # all shapes are the same
    other.name = model.name
    with torch.no_grad():
        x = tiny_input(name)
        assert not torch.equal(model(x), other(x))
    assert weights_hash(model) != weights_hash(other)


def test_round_trip_in_a_fresh_process(tmp_path: Path) -> None:
    small = half(load_model(NAME))
    path = save_pruned(small, tmp_path / "small.safetensors")
    code = (
        "import sys, torch, psvit_core as p\n"
        "torch.set_num_threads(1)\n"
        "x = next(p.load_data('digits').limit(20).batches(20))\n"
        "with torch.no_grad(): torch.save(p.load_model(sys.argv[1])(x), sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "logits.pt")],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with torch.no_grad():
        expected = small(next(load_data("digits").limit(20).batches(20)))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_pruned_files_name_their_origin(tmp_path: Path) -> None:
    model = load_model(NAME)
    small = half(model)
    again = load_model(save_pruned(small, tmp_path / "a.safetensors"))
    assert again.provenance["origin"] == NAME
    assert again.provenance["origin_weights_hash"] == weights_hash(model)
    twice = half(again)
    third = load_model(save_pruned(twice, tmp_path / "b.safetensors"))
    assert third.provenance["origin_weights_hash"] == weights_hash(model)
    for group, kept in third.provenance["kept"].items():
        first = small.provenance["kept"][group]
        assert set(kept) <= set(first)
    assert [p["weights_hash"] for p in third.provenance["plans"]] == [
        weights_hash(model),
        weights_hash(again),
    ]
    assert b"pickle" not in (tmp_path / "a.safetensors").read_bytes()[:2000]


def test_unpruned_models_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="apply a plan first"):
        save_pruned(load_model(NAME), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["missing/x.safetensors", ".", "x.pt", "x", ".safetensors"])
def test_unwritable_places(tmp_path: Path, place: str) -> None:
    with pytest.raises(OutputError):
        save_pruned(half(load_model(NAME)), tmp_path / place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    ],
    ids=["plain", "timm", "mae", "module"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar"])
def test_official_wrappers(tmp_path: Path, wrap: Any, suffix: str) -> None:
    state = load_file(WEIGHTS / f"{NAME}.safetensors")
    torch.save(wrap(state), tmp_path / f"w{suffix}")
    model = load_model(NAME, tmp_path / f"w{suffix}")
    assert weights_hash(model) == weights_hash(load_model(NAME))


class Harm:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def corpus() -> dict[str, Any]:
    """Return bad files: name -> (suffix, content, expected message)."""
    good = (WEIGHTS / f"{NAME}.safetensors").read_bytes()
    state = load_file(WEIGHTS / f"{NAME}.safetensors")
    key = "head.weight"
    return {
        "truncated": (".safetensors", good[: len(good) // 2], "not a complete .safetensors"),
        "empty": (".safetensors", b"", "not a complete .safetensors"),
        "huge header": (".safetensors", b"\xff" * 64, "not a complete .safetensors"),
        "text": (".pth", b"hello", "not a complete PyTorch checkpoint|would run code"),
        "code": (".pth", {"state_dict": Harm()}, "would run code"),
        "module": (".pth", tiny_model("sdt_v1"), "would run code"),
        "no tensors": (".pt", {"state_dict": {"a": 1}}, "no state dict"),
        "wrong keys": (".pth", {"x": torch.zeros(2)}, "missing.*unexpected"),
        "other model": (".pth", tiny_model("sdt_v1").state_dict(), "wrongly shaped"),
        "NaN": (".pth", {**state, key: torch.full_like(state[key], float("nan"))}, "NaN"),
        "integers": (".pth", {**state, key: state[key].int()}, "expected a float"),
    }


@pytest.mark.parametrize("name", list(corpus()))
def test_bad_files_are_rejected(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suffix, content, message = corpus()[name]
    path = tmp_path / f"bad{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_model(NAME, path)
    assert not (tmp_path / "harmed").exists()


def header_of(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"][METADATA_KEY])
    return header


def widen(header: dict[str, Any], width: int) -> None:
    """Set the width of the residual stream everywhere in the header."""
    header["widths"]["stream"] = width
    header["provenance"]["kept"]["stream"] = list(range(width))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=99), "format"),
        (lambda h: h.update(family="nothing"), "Unknown family"),
        (lambda h: h["arguments"].update(depths=10**9), "format"),
        (lambda h: h["arguments"].update(embed_dims=10**9), "format"),
        (lambda h: h["arguments"].update(pooling_stat="xx"), "No model fits"),
        (lambda h: widen(h, 0), "No model fits"),
        (lambda h: widen(h, 3), "does not fit|wrongly shaped"),
        (lambda h: h["widths"].update(stream=3), "inconsistent"),
        (lambda h: h.pop("provenance"), "damaged"),
        (lambda h: h.update(arguments=[1]), "damaged"),
        (lambda h: h["arguments"].update(img_size_h=100_000), "format"),
        (lambda h: h["arguments"].update(img_size_w=[32]), "format"),
        (lambda h: h["arguments"].update(in_channels=0), "format"),
        (lambda h: h["arguments"].update(num_classes="10"), "format"),
        (lambda h: h["widths"].update(stream=True), "format"),
        (lambda h: h["provenance"].update(origin_bytes="x"), "format"),
        (lambda h: h["provenance"].update(origin_bytes=0), "format"),
        (lambda h: h.update(provenance={"origin": NAME}), "damaged"),
        (lambda h: h["provenance"].update(origin=["x"]), "format"),
        (lambda h: h["provenance"].update(plans=[]), "format"),
        (lambda h: h["provenance"].update(plans=[{"kept": 1}]), "damaged"),
        (lambda h: h["provenance"].update(recoveries="x"), "damaged"),
        (lambda h: h["provenance"].update(finetunes=[1]), "damaged"),
        (lambda h: h["provenance"].update(kept=[0]), "damaged"),
        (lambda h: h["provenance"]["kept"].update(stream=[0]), "format"),
        (lambda h: h["provenance"]["kept"].update(other=[0]), "damaged"),
        (lambda h: h["provenance"]["kept"]["stream"].reverse(), "format"),
        (lambda h: h["provenance"]["kept"]["stream"].__setitem__(0, -1), "format"),
    ],
)
def test_hostile_metadata(tmp_path: Path, change: Any, message: str) -> None:
    path = save_pruned(half(load_model(NAME)), tmp_path / "a.safetensors")
    header = header_of(path)
    change(header)
    save_file(load_file(path), tmp_path / "b.safetensors", {METADATA_KEY: json.dumps(header)})
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "b.safetensors")


def test_deeply_nested_metadata(tmp_path: Path) -> None:
    deep = {METADATA_KEY: "[" * 200_000 + "]" * 200_000}
    save_file({"x": torch.zeros(1)}, tmp_path / "deep.safetensors", deep)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path / "deep.safetensors")


def test_names_and_files() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'sdt_v1_digits'"):
        load_model("sdt_v1_digit")
    with pytest.raises(CheckpointError, match="no model or file"):
        load_model("missing.safetensors")
    with pytest.raises(CheckpointError, match=r"family \(--family\): sdt_v1 \[.*; statten \["):
        load_model(WEIGHTS / f"{NAME}.safetensors")
    by_path = load_model(WEIGHTS / f"{NAME}.safetensors", family="sdt_v1")  # the card's shapes
    assert by_path.name == NAME
    assert weights_hash(by_path) == weights_hash(load_model(NAME))
    with pytest.raises(CheckpointError, match="no model or file"):
        load_model(NAME, "missing.pth")


def test_a_pruned_file_is_not_a_checkpoint_for_a_name(tmp_path: Path) -> None:
    path = save_pruned(half(load_model(NAME)), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="in place of the model name"):
        load_model(NAME, path)


def test_hash_changes_with_any_bit() -> None:
    model = tiny_model("sdt_v3")
    before = weights_hash(model)
    with torch.no_grad():
        model(tiny_input("sdt_v3"))
    assert weights_hash(model) == before
    model.get_buffer("downsample2.encode_bn.running_var")[0] += 1e-6
    assert weights_hash(model) != before


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file like an official trainer: random weights, another number of classes."""
    torch.manual_seed(0)
    model = build_model("sdt_v3", **{**model_card("e_spikeformer_5m").arguments, "num_classes": 7})
    state = model.state_dict()
    average = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    path = tmp_path_factory.mktemp("official") / "V3_5.1M_1x4.pth"
    content = {"model": state, "model_ema": average, "args": argparse.Namespace(), "epoch": 1}
    torch.save(content, path)
    return path


def test_another_class_count(official: Path) -> None:
    model = load_model("e_spikeformer_5m", official)
    assert model.num_classes == 7
    assert model.arguments["num_heads"] == 8  # from the card: shapes do not determine it
    assert load_model("e_spikeformer_5m", official, num_heads=4).arguments["num_heads"] == 4
    with pytest.raises(ModelError, match="multiples of num_heads=7"):
        load_model("e_spikeformer_5m", official, num_heads=7)


def test_moving_average_only_when_chosen(official: Path, tmp_path: Path) -> None:
    plain, average = (load_model("e_spikeformer_5m", official, ema=ema) for ema in (False, True))
    assert torch.equal(plain.head.weight + 1, average.head.weight)  # type: ignore[union-attr,operator,arg-type]
    torch.save({"state_dict_ema": plain.state_dict()}, tmp_path / "only.pth")
    with pytest.raises(CheckpointError, match="Load it with --ema"):
        load_model("e_spikeformer_5m", tmp_path / "only.pth")
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="Omit --ema"):
        load_model("e_spikeformer_5m", tmp_path / "none.pth", ema=True)


def test_error_names_models_that_would_fit(official: Path) -> None:
    with pytest.raises(CheckpointError, match="It fits e_spikeformer_5m") as caught:
        load_model("e_spikeformer_10m", official)
    assert "wrongly shaped" in str(caught.value)
    with pytest.raises(CheckpointError, match="It fits e_spikeformer_5m"):
        load_model("meta_spikeformer_15m", official)


def test_another_image_size(official: Path) -> None:
    model = load_model("e_spikeformer_5m", official, image_size=64)
    assert model.input_shape == (3, 64, 64)
    card = model_card("e_spikeformer_5m").at(64)
    assert (card.transform.resize, card.transform.crop) == (66, 64)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_pruned_files_define_their_architecture(tmp_path: Path) -> None:
    path = save_pruned(half(load_model(NAME)), tmp_path / "a.safetensors")
    assert load_model(path, T=2).T == 2
    with pytest.raises(CheckpointError, match=r"Omit --ema, --image-size, --pooling-stat\."):
        load_model(path, image_size=64, ema=True, pooling_stat="1111")
    with pytest.raises(CheckpointError, match="Omit --checkpoint"):
        load_model(path, WEIGHTS / f"{NAME}.safetensors")


def test_official_transforms_of_other_sizes() -> None:
    at = {
        (n, px): model_card(n).at(px).transform
        for n, px in (
            ("qkformer_10_768", 384),
            ("qkformer_10_768", 224),
            ("sdt_v1_8_768", 288),
            ("sdt_v1_8_768", 224),
        )
    }
    assert {k: (t.resize, t.crop, t.interpolation) for k, t in at.items()} == {
        ("qkformer_10_768", 384): (384, 384, "bicubic"),
        ("qkformer_10_768", 224): (256, 224, "bicubic"),
        ("sdt_v1_8_768", 288): (320, 288, "bilinear"),
        ("sdt_v1_8_768", 224): (235, 224, "bicubic"),
    }


def test_small_file_with_a_huge_tensor(tmp_path: Path) -> None:
    state = load_file(WEIGHTS / f"{NAME}.safetensors")
    state["head.bias"] = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))  # 4 TB in 4 bytes
    torch.save(state, tmp_path / "huge.pth")
    with pytest.raises(CheckpointError, match=r"its tensors declare 4,000,\d{3},\d{3},\d{3} bytes"):
        load_model(NAME, tmp_path / "huge.pth")


def test_double_precision_is_preserved(tmp_path: Path) -> None:
    small = half(tiny_model("sdt_v3", torch.float64))
    small.provenance["origin"] = NAME
    again = load_model(save_pruned(small, tmp_path / "a.safetensors"))
    assert weights_hash(again) == weights_hash(small)
    x = tiny_input("sdt_v3", torch.float64)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
    single = {k: t.float() if t.is_floating_point() else t for k, t in small.state_dict().items()}
    save_file(
        {**single, "head.bias": small.state_dict()["head.bias"]},
        tmp_path / "mixed.safetensors",
        {METADATA_KEY: json.dumps(header_of(tmp_path / "a.safetensors"))},
    )
    mixed = load_model(tmp_path / "mixed.safetensors")
    assert {p.dtype for p in mixed.parameters()} == {torch.float32}


def test_weights_of_every_family_reload_pruned(tmp_path: Path) -> None:
    for name in ("spikformer_imagenet", "spikformer_cifar", "sdt_v2_kd", "qkformer_cifar"):
        model = tiny_model(name)
        model.name = NAME  # a registered origin, so that the file has a card
        kept = {
            g.group_id: range((g.heads or 1), g.n_units)
            for g in find_groups(model)
            if g.heads is None
        }
        small = apply_plan(model, plan_from_kept(model, kept))
        again = load_model(save_pruned(small, tmp_path / f"{name}.safetensors"))
        with torch.no_grad():
            assert torch.equal(again(tiny_input(name)), small(tiny_input(name)))
