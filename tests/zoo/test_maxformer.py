"""Max-Former and MS-QKFormer: sizes, released files with older names, cards, refused arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from psvit_core.errors import CheckpointError, ModelError
from psvit_core.neurons import NEURONS
from psvit_core.tasks.inspect import inspect_file
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import list_models, model_card
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.fitting import compare_layout, load_tensors
from psvit_core.zoo.opening import find_sizings, load_sized
from psvit_core.zoo.registry import FAMILIES, build_model
from psvit_core.zoo.renaming import layout_of
from tests.tiny import tiny_input, tiny_model, vector

IMAGENET = ("max_former_imagenet", "ms_qkformer_imagenet")
CIFAR = ("max_former_cifar", "ms_qkformer_cifar")
FOUR = (*IMAGENET, *CIFAR)
FILES = (pytest.param(IMAGENET[0], marks=pytest.mark.slow), *FOUR[1:])  # seconds each, of any size
State = dict[str, Tensor]


def randomized(model: SpikingModel, seed: int = 0) -> SpikingModel:
    """Fill a model with values at which its neurons fire."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=random)
        elif tensor.is_floating_point():
            scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.3
            tensor.normal_(3.0 if name.endswith("bn.weight") else 0.0, scale, generator=random)
    return model


# ---- sizes -----------------------------------------------------------------------------------

SIZES: dict[str, dict[str, Any]] = {
    "one head": {"embed_dims": 64},
    "a width that is no multiple of 64": {"embed_dims": 96, "num_classes": 7},
    "three heads": {"embed_dims": 192, "mlp_ratios": 2, "T": 1},
    "a fractional ratio": {"embed_dims": 128, "mlp_ratios": 2.67},
    "a ratio below 1": {"embed_dims": 64, "mlp_ratios": 0.5},
    "event channels": {"embed_dims": 64, "in_channels": 2, "num_classes": 11},
    "more channels than the first width": {"embed_dims": 64, "in_channels": 24},
}


@pytest.mark.parametrize("family", FOUR)
@pytest.mark.parametrize("size", SIZES)
def test_size_is_read_from_shapes(family: str, size: str) -> None:
    model = build_model(family, **SIZES[size])
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    read = FAMILIES[family].read_size(shapes)
    assert read is not None
    again = build_model(family, **read).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in again.items()} == shapes
    expected = {"in_channels": 3, "num_classes": 1000, "mlp_ratios": 4, **SIZES[size]}
    expected.pop("T", None)
    assert {**read, "mlp_ratios": 0} == {**expected, "mlp_ratios": 0}
    assert read["mlp_ratios"] == pytest.approx(expected["mlp_ratios"], abs=1 / 128)


@pytest.mark.parametrize("family", FOUR)
def test_published_defaults(family: str) -> None:
    model = build_model(family)
    side, width = (224, 512) if family in IMAGENET else (32, 384)
    assert model.input_shape == (3, side, side)
    assert model.arguments["embed_dims"] == width


@pytest.mark.parametrize("family", FOUR)
def test_arguments_without_effect(family: str) -> None:
    plain = build_model(family, embed_dims=64)
    for depths in (10, [6, 8, 6]):
        model = build_model(family, embed_dims=64, depths=depths, drop_rate=0.1)
        assert model.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ModelError, match="takes no argument 'num_heads'"):
        build_model(family, embed_dims=64, num_heads=12)


@pytest.mark.parametrize("family", FOUR)
def test_what_cannot_be_built_is_refused(family: str) -> None:
    stride = 16 if family in IMAGENET else 4
    width = 32 if family in IMAGENET else 20
    with pytest.raises(ModelError, match=f"multiples of the number of heads.*got {width}"):
        build_model(family, embed_dims=width)
    for ratio in (1, 1.01):
        with pytest.raises(ModelError, match=f"mlp_ratios={ratio}.*not supported"):
            build_model(family, embed_dims=64, mlp_ratios=ratio)
    with pytest.raises(ModelError, match=rf"multiples of {stride}; got {stride} x {stride + 2}\."):
        build_model(family, img_size_h=stride, img_size_w=stride + 2)


def test_heads_must_divide_the_widths_with_attention() -> None:
    assert build_model("max_former_cifar", embed_dims=40)  # heads only in stage 3
    with pytest.raises(ModelError, match=r"\[10, 20, 40\], are multiples .* 8; got 40"):
        build_model("ms_qkformer_cifar", embed_dims=40)


@pytest.mark.parametrize("family", FOUR)
@pytest.mark.parametrize("T", [1, 3])
def test_frames_of_one_image_are_the_image(family: str, T: int) -> None:
    model = randomized(build_model(family, embed_dims=64, num_classes=5, T=T)).double()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        logits = model(images)
        frames = model(images.unsqueeze(1).expand(-1, T, -1, -1, -1))
    assert logits.shape == (2, 5)
    assert torch.allclose(logits, frames, atol=1e-12)
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("name", FOUR)
def test_neurons_that_are_never_called_do_not_exist(name: str) -> None:
    neurons = {n for n, m in tiny_model(name).named_modules() if isinstance(m, NEURONS)}
    meta = vector(name).meta
    assert neurons == set(meta["neuron_calls_in_order"])
    assert not neurons & set(meta["neurons_defined_but_never_called"])


@pytest.mark.parametrize("name", FOUR)
def test_layers_that_read_real_values(name: str) -> None:
    """The CIFAR classes average the spikes over time before the head."""
    model, fed = tiny_model(name), dict[str, Tensor]()
    layers = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear)
    for path, module in model.named_modules():
        if isinstance(module, layers):
            module.register_forward_pre_hook(lambda _, x, path=path: fed.update({path: x[0]}))
    with torch.no_grad():
        model(tiny_input(name))
    real = {path for path, x in fed.items() if bool(((x != 0) & (x != 1)).any())}
    assert real == set(model.real_fed())


# ---- released files with older names -----------------------------------------------------------

_LATER = {
    "max_embed1.embed_": "proj3_",
    "embed1.embed_": "proj4_",
    "max_embed2.embed_": "proj_res_",
}


def old_name(name: str) -> str:
    """Return a made older name: as published for stages 2 and 3, invented for stage 1."""
    embedding, _, rest = name.partition(".")
    if embedding == "patch_embed1":
        return f"{embedding}.old_{rest}"
    if embedding.startswith("patch_embed"):
        for new, old in _LATER.items():
            if rest.startswith(new):
                return f"{embedding}.{rest.replace(new, old, 1)}"
    return name


def old_state(model: SpikingModel) -> State:
    return {old_name(name): tensor for name, tensor in model.state_dict().items()}


def saved(state: State, path: Path, prefix: str = "module.") -> Path:
    """Write a state dict as timm's trainer does."""
    content = {
        "epoch": 3,
        "arch": "maxformer",
        "state_dict": {prefix + name: tensor for name, tensor in state.items()},
        "args": argparse.Namespace(T=4),
    }
    torch.save(content, path)
    return path


def options_of(name: str, model: SpikingModel) -> dict[str, Any]:
    """Return what no tensor reveals."""
    return {"T": model.T, "image_size": 224 if name in IMAGENET else 32}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_old_names_are_matched_by_position(name: str, prefix: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    state = old_state(model)
    assert state.keys() != model.state_dict().keys()
    path = saved(state, tmp_path / "old.pth.tar", prefix)
    loaded = load_model(path, **options_of(name, model))
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    with torch.no_grad():
        assert torch.equal(loaded(tiny_input(name)), model(tiny_input(name)))
    renamed = sum(old != new for old, new in zip(state, model.state_dict(), strict=True))
    note = (
        f"{renamed} tensors of the patch embeddings have older names and were matched by position"
    )
    assert any(note in text for text in loaded.notes)
    (sizing,) = inspect_file(str(path)).sizings
    assert sizing.family == name
    assert any(note in text for text in sizing.cautions)


@pytest.mark.parametrize("name", FILES)
def test_new_names_are_matched_by_name(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    state = dict(reversed(model.state_dict().items()))  # in any order
    loaded = load_model(saved(state, tmp_path / "new.pth.tar"), **options_of(name, model))
    assert all(torch.equal(loaded.state_dict()[key], state[key]) for key in state)
    assert not any("by position" in text for text in loaded.notes)
    assert not inspect_file(str(tmp_path / "new.pth.tar")).sizings[0].cautions
    save_file(state, tmp_path / "new.safetensors")
    assert load_model(tmp_path / "new.safetensors", **options_of(name, model)).family == name


@pytest.mark.parametrize("name", FILES)
def test_missing_counters_keep_the_positions(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    state = {n: t for n, t in old_state(model).items() if not n.endswith("num_batches_tracked")}
    loaded = load_model(saved(state, tmp_path / "old.pth.tar"), **options_of(name, model))
    with torch.no_grad():
        assert torch.equal(loaded(tiny_input(name)), model(tiny_input(name)))


def renamed(old: str, new: str) -> Callable[[State], State]:
    """Return a function that puts ``new`` in place of the last ``old`` in the names."""

    def change(state: State) -> State:
        *_, last = (name for name in state if old in name)
        return {name.replace(old, new) if name == last else name: t for name, t in state.items()}

    return change


def swapped(state: State) -> State:
    """Exchange two neighbours of one patch embedding that have equal shapes."""
    names = list(state)
    i = next(
        i for i, name in enumerate(names) if name.startswith("patch_embed2.") and "bias" in name
    )
    names[i], names[i + 1] = names[i + 1], names[i]
    return {name: state[name] for name in names}


def in_another_embedding(state: State) -> State:
    last = [n for n in state if n.startswith("patch_embed3.") and n.endswith("conv.weight")][-1]
    other = last.replace("patch_embed3.", "patch_embed2.x")
    return {other if name == last else name: tensor for name, tensor in state.items()}


def reshaped(state: State) -> State:
    first = next(name for name in state if name.startswith("patch_embed3."))
    return {**state, first: state[first][..., :1, :1].clone()}


def longer(state: State) -> State:
    return {**state, "stage3.0.extra.weight": torch.zeros(3)}


def shorter(state: State) -> State:
    return {name: state[name] for name in list(state)[1:]}


def moved(state: State) -> State:
    """Put the head first, as sorting by name would."""
    return dict(sorted(state.items()))


BROKEN: dict[str, tuple[Callable[[State], State], str]] = {
    "another last part in an embedding": (swapped, r"by position: entry \d+ is patch_embed2\.\S+"),
    "another name outside": (
        renamed("mlp.fc2_conv.bias", "mlp.fc2.bias"),
        r"entry \d+ is stage3\.\d\.mlp\.fc2\.bias \(\d+,\) in place of stage3\.\d\.mlp\.fc2_",
    ),
    "another embedding": (
        in_another_embedding,
        r"by position: entry \d+ is patch_embed2\.x\S+ \(.*\) in place of patch_embed3\.",
    ),
    "another shape": (reshaped, r"by position: entry \d+ is patch_embed3\.\S+ \(.*, 1, 1\)"),
    "one tensor more": (longer, r"by position: \d+ tensors instead of \d+"),
    "one tensor less": (shorter, r"by position: \d+ tensors instead of \d+"),
    "another order": (moved, "by position: the tensors are not in the model"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_fit_by_position_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    change, message = BROKEN[kind]
    model = tiny_model(name)
    state = change(made_old(model))
    path = saved(state, tmp_path / "broken.pth.tar")
    with pytest.raises(CheckpointError, match=message):
        load_model(path, **options_of(name, model))
    empty = build_model(name, **{**model.arguments})
    before = {key: tensor.clone() for key, tensor in empty.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_tensors(empty, state, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in empty.state_dict().items())
    report = inspect_file(str(path))
    assert not report.fits
    assert not report.sizings


def made_old(model: SpikingModel) -> State:
    """Return older names for every embedding, whatever the family calls its layers."""
    return {
        name.replace(".", ".old_", 1) if name.startswith("patch_embed") else name: tensor
        for name, tensor in model.state_dict().items()
    }


def test_the_first_differences_are_listed(tmp_path: Path) -> None:
    model = tiny_model("max_former_imagenet")
    state = {name.replace("stage2.", "stage4."): t for name, t in old_state(model).items()}
    path = saved(state, tmp_path / "other.pth.tar")
    with pytest.raises(CheckpointError) as caught:
        load_model(path, T=4)
    text = str(caught.value)
    assert text.count("in place of stage2.0.mixer.conv") == 3
    n_changed = sum(name.startswith("stage4.") for name in state)
    assert f"; {n_changed - 3} more" in text


def test_other_families_are_not_matched_by_position(tmp_path: Path) -> None:
    model = tiny_model("qkformer_imagenet")
    path = saved(made_old(model), tmp_path / "old.pth.tar")
    with pytest.raises(CheckpointError, match="fits no known family"):
        load_model(path, T=4, num_heads=2, image_size=32)


# ---- cards ---------------------------------------------------------------------------------------


def cards_of(*families: str) -> list[Any]:
    return [card for card in map(model_card, list_models()) if card.family in families]


def test_cards_list_every_released_file() -> None:
    released = {
        "10-384-T4.pth.tar": (384, 4),
        "10-512-T1.pth.tar": (512, 1),
        "10-512-T4.pth.tar": (512, 4),
        "10-768-T1.pth.tar": (768, 1),
        "10-768-T4.pth.tar": (768, 4),
        "ms_qk_10-384_T4.pth.tar": (384, 4),
        "ms_qk_10-768_T1.pth.tar": (768, 1),
    }
    found = {}
    for card in cards_of(*IMAGENET):
        if card.file_name:
            found[card.file_name] = (card.arguments["embed_dims"], card.arguments["T"])
            assert card.family == IMAGENET[card.file_name.startswith("ms_qk")]
            url = (
                f"https://github.com/bic-L/MaxFormer/releases/download/checkpoints/{card.file_name}"
            )
            assert url in card.available
        assert "2026-11" in card.available
    assert found == released


def test_published_accuracies() -> None:
    rows = {
        (card.name, row.top1, row.T)
        for card in cards_of(*FOUR)
        for row in card.published
        if row.verified
    }
    assert {(name, T) for name, _, T in rows} == {
        ("max_former_10_384", 4),
        ("max_former_10_512_t1", 1),
        ("max_former_10_768", 4),
        ("max_former_10_768_t1", 1),
        ("max_former_cifar10_4_384", 4),
        ("max_former_cifar100_4_384", 4),
    }
    assert {top1 for _, top1, _ in rows} == {
        *(77.78, 77.49, 75.43, 75.21, 82.39, 82.27, 78.60),
        *(97.04, 82.65),
    }


@pytest.mark.parametrize("px", [224, 160, 288, 384])
def test_evaluation_transforms(px: int) -> None:
    for card in cards_of(*IMAGENET):
        transform = card.at(px).transform
        expected = {224: 256, 160: int(160 * 256 / 224)}.get(px, px)
        assert (transform.resize, transform.crop) == (expected, px)
        assert transform.interpolation == "bicubic"


def test_weights_that_do_not_show_their_time_steps(tmp_path: Path) -> None:
    """Files for 1 and 4 steps have equal shapes: T is asked for, and decides the card."""
    with torch.device("meta"):
        model = build_model("max_former_imagenet", embed_dims=512)
    state = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in model.state_dict().items()
    }
    (sizing,) = find_sizings(state)
    assert set(sizing.cards) == {"max_former_10_512", "max_former_10_512_t1"}
    path = tmp_path / "10-512.pth.tar"
    with pytest.raises(CheckpointError, match=r"T \(--time-steps\): 4 or 1 \[published"):
        load_sized(path, state, {})
    names = {T: load_sized(path, state, {"T": T}).name for T in (1, 4)}
    assert names == {1: "max_former_10_512_t1", 4: "max_former_10_512"}
    other = load_sized(path, state, {"T": 2})
    assert (other.name, other.T, other.input_shape) == (str(path), 2, (3, 224, 224))


def test_old_files_fit_registered_models() -> None:
    with torch.device("meta"):
        model = build_model("max_former_imagenet", embed_dims=384)
    fit = compare_layout("max_former_10_384", layout_of(model), old_state(model))
    assert fit.n_faults == 0
    assert fit.n_matching == len(model.state_dict())
