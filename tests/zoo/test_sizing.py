"""Checkpoints of any size: what the tensors reveal, what must be given, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from psvit_core.errors import CheckpointError, ModelError, PsvitError
from psvit_core.groups import find_groups, plan_from_kept
from psvit_core.surgery import apply_plan
from psvit_core.tasks.inspect import inspect_file
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import list_models, model_card
from psvit_core.zoo.checkpoint import card_of, find_card, load_model, load_origin, weights_hash
from psvit_core.zoo.fitting import class_count
from psvit_core.zoo.opening import constructor_arguments, find_sizings
from psvit_core.zoo.pruned import save_pruned
from psvit_core.zoo.registry import FAMILIES, build_model
from psvit_core.zoo.sizing import format_arguments, parse_arguments
from tests.tiny import NAMES, tiny_input, tiny_model, vector

Shape = tuple[int, ...]


def shapes_of(model: SpikingModel) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def read_as(family: str) -> str:
    """Return the family that files of a family are read as."""
    return FAMILIES[family].alias_of or family


def rebuild(family: str, shapes: dict[str, Shape]) -> SpikingModel:
    """Build a family from what the shapes reveal and the first option for everything else."""
    size = FAMILIES[family].read_size(shapes)
    assert size is not None
    first = {c.argument: c.options[0].value for c in FAMILIES[family].choices(size)}
    with torch.device("meta"):
        return build_model(family, **constructor_arguments(family, {**size, **first}))


@pytest.mark.parametrize("name", NAMES)
def test_size_of_reference_models(name: str) -> None:
    model = tiny_model(name)
    assert shapes_of(rebuild(model.family, shapes_of(model))) == shapes_of(model)


@pytest.mark.parametrize("name", list_models())
def test_size_of_registered_models(name: str) -> None:
    card = model_card(name)
    with torch.device("meta"):
        model = build_model(card.family, **card.arguments)
    assert shapes_of(rebuild(card.family, shapes_of(model))) == shapes_of(model)
    sizing = next(s for s in find_sizings(model.state_dict()) if s.family == read_as(card.family))
    assert name in sizing.cards
    assert sizing.parameters == card.parameters
    assert sizing.title


def given_for(model: SpikingModel) -> dict[str, Any]:
    """Return every argument of a model that its tensors do not reveal."""
    size = FAMILIES[model.family].read_size(shapes_of(model))
    assert size is not None
    side = model.input_shape[1]
    given = {
        choice.argument: side if choice.argument == "image_size" else model.arguments[name]
        for choice in FAMILIES[model.family].choices(size)
        for name in [choice.argument]
        if name == "image_size" or name in model.arguments
    }
    return {**given, "family": model.family}


def own_file(name: str, tmp_path: Path) -> tuple[Path, SpikingModel]:
    """Write a reference model, of a size that no card has, as a trainer would."""
    model = tiny_model(name)
    path = tmp_path / f"{name}.pth"
    torch.save({"state_dict": model.state_dict(), "epoch": 1}, path)
    return path, model


SQUARE = [n for n in NAMES if tiny_input(n).shape[2] == tiny_input(n).shape[3]]


@pytest.mark.parametrize("name", SQUARE)
def test_files_of_any_size_compute_the_same(name: str, tmp_path: Path) -> None:
    path, model = own_file(name, tmp_path)
    loaded = load_model(path, **given_for(model))
    with torch.no_grad():
        assert torch.equal(loaded(tiny_input(name)), model(tiny_input(name)))
    assert loaded.name == str(path)
    card = card_of(loaded)
    assert card.family == (model.alias_of or model.family)
    assert card.transform.crop + 2 * card.transform.pad == model.input_shape[1]


@pytest.mark.parametrize("name", SQUARE)
def test_nothing_is_guessed(name: str, tmp_path: Path) -> None:
    path, model = own_file(name, tmp_path)
    given = given_for(model)
    for missing in [n for n in given if n != "family"]:
        rest = {n: v for n, v in given.items() if n != missing}
        option = "--time-steps" if missing == "T" else f"--{missing.replace('_', '-')}"
        with pytest.raises(CheckpointError, match=rf"{missing} \({option}\)"):
            load_model(path, **rest)


def half(model: SpikingModel) -> SpikingModel:
    kept = {}
    for g in find_groups(model):
        width = g.n_units // (g.heads or 1)
        kept[g.group_id] = [i for i in range(g.n_units) if i % width < max(1, width // 2)]
    return apply_plan(model, plan_from_kept(model, kept))


@pytest.mark.parametrize("name", SQUARE)
def test_pruned_files_carry_everything(name: str, tmp_path: Path) -> None:
    path, model = own_file(name, tmp_path)
    loaded = load_model(path, **given_for(model))
    small = half(loaded)
    saved = save_pruned(small, tmp_path / "small.safetensors")
    path.unlink()  # the pruned file needs no other
    again = load_model(saved)
    with torch.no_grad():
        assert torch.equal(again(tiny_input(name)), small(tiny_input(name)))
    assert weights_hash(again) == weights_hash(small)
    assert find_card(saved).transform == card_of(loaded).transform


def test_inspection_reports_the_size(tmp_path: Path) -> None:
    path, model = own_file("spikformer_cifar", tmp_path)
    report = inspect_file(str(path))
    assert report == type(report).from_dict(report.to_dict())
    assert not report.fits
    assert report.nearest is None
    (sizing,) = report.sizings
    assert sizing.family == "spikformer_cifar"
    assert sizing.size == {
        "in_channels": 3,
        "num_classes": 10,
        "embed_dims": 32,
        "mlp_ratios": 4,
        "depths": 2,
    }
    assert sizing.parameters == vector("spikformer_cifar").meta["total_params"]
    assert sizing.n_groups == len(model.channel_groups())
    heads = next(choice for choice in sizing.choices if choice.argument == "num_heads")
    assert [option.value for option in heads.options] == [1, 2, 4, 8, 16, 32]


def test_contradictions_are_refused(tmp_path: Path) -> None:
    path, model = own_file("sdt_v1", tmp_path)
    given = given_for(model)
    with pytest.raises(CheckpointError, match=r"have num_heads=4; got 8\. Omit num_heads"):
        load_model(path, **{**given, "num_heads": 8})
    with pytest.raises(CheckpointError, match="has no argument 'chunk_size'"):
        load_model(path, **{**given, "family": "sdt_v1", "chunk_size": 2})
    with pytest.raises(CheckpointError, match=r"cannot have pooling_stat='11'\. Possible"):
        load_model(path, **{**given, "pooling_stat": "11"})
    with pytest.raises(CheckpointError, match=r"cannot have T=0\. Possible"):
        load_model(path, **{**given, "T": 0})
    with pytest.raises(CheckpointError, match=r"does not fit the family 'sdt_v2'\. Possible"):
        load_model(path, **{**given, "family": "sdt_v2"})


def test_registered_names_take_no_further_arguments() -> None:
    with pytest.raises(CheckpointError, match=r"defines pooling_stat\. Omit --pooling-stat"):
        load_model("sdt_v1_digits", pooling_stat="1111")


def break_tensors(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if kind == "one tensor is missing":
        state.pop("block.1.mlp.fc1_conv.weight")
    elif kind == "one tensor has another shape":
        state["block.1.mlp.fc1_conv.weight"] = torch.zeros(3, 3, 1, 1)
    elif kind == "one tensor has another rank":
        state["head.weight"] = torch.zeros(3)
    elif kind == "an unknown tensor":
        state["block.0.extra"] = torch.zeros(3)
    elif kind == "widths differ between blocks":
        state["block.0.mlp.fc1_conv.weight"] = torch.zeros(64, 32, 1, 1)
    else:
        state["head.weight"] = torch.zeros(0, 0)
    return state


@pytest.mark.parametrize(
    "kind",
    [
        "one tensor is missing",
        "one tensor has another shape",
        "one tensor has another rank",
        "an unknown tensor",
        "widths differ between blocks",
        "an empty tensor",
    ],
)
def test_files_that_fit_nothing_name_the_nearest(kind: str, tmp_path: Path) -> None:
    state = break_tensors(kind, dict(tiny_model("sdt_v1").state_dict()))
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"fits no known family at any size\. The nearest"):
        load_model(tmp_path / "bad.pth", T=4)
    assert inspect_file(str(tmp_path / "bad.pth")).nearest is not None


@pytest.mark.slow
def test_event_weights_of_sdt_v1_carry_a_caution(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("sdt_v1", in_channels=2, num_classes=11, embed_dims=32, depths=1)
    torch.save(model.state_dict(), tmp_path / "dvs.pth")
    sizings = inspect_file(str(tmp_path / "dvs.pth")).sizings
    assert "dvs_mode" in sizings[0].cautions[0]
    assert not inspect_file(str(own_file("sdt_v1", tmp_path)[0])).sizings[0].cautions


@pytest.fixture(scope="module")
def registered_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the shapes of one registered model."""
    card = model_card("spikformer_cifar10_2_384")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("registered") / "own.pth"
    torch.save(build_model(card.family, **card.arguments).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"T": 0}, r"cannot have T=0\. Possible"),
        ({"T": -1}, r"cannot have T=-1\. Possible"),
        ({"num_heads": 7}, r"cannot have num_heads=7\. Possible"),
        ({"image_size": 0}, r"cannot have image_size=0\. Possible"),
        ({"chunk_size": 2}, "has no argument 'chunk_size'"),
    ],
)
def test_arguments_of_registered_sizes_are_checked(
    registered_file: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(registered_file, **given)
    assert load_model(registered_file, T=2).T == 2


def test_fixed_time_steps_are_not_given(tmp_path: Path) -> None:
    card = model_card("e_spikeformer_5m")
    torch.save(build_model(card.family, **card.arguments).state_dict(), tmp_path / "own.pth")
    with pytest.raises(CheckpointError, match=r"no argument 'T', so it would be ignored"):
        load_model(tmp_path / "own.pth", T=4)


@pytest.mark.parametrize(
    ("family", "arguments", "mean"),
    [
        ("spikingformer_cifar", {"num_classes": 100}, 0.5071),
        ("spikingformer_cifar", {"num_classes": 10}, 0.4914),
        ("spikformer_cifar", {"num_classes": 100}, 0.5071),  # without a registered model
        ("sdt_v1", {"num_classes": 10, "pooling_stat": "0011"}, 0.4914),
        ("sdt_v1", {"num_classes": 100, "pooling_stat": "0011"}, 0.5071),
        ("statten", {"num_classes": 100, "pooling_stat": "0011"}, 0.5071),
        ("statten", {"num_classes": 100, "pooling_stat": "1111"}, 0.485),
        ("spikingresformer_cifar", {"num_classes": 100}, 0.507058),
    ],
)
def test_pixels_are_normalised_as_for_the_classes(
    family: str, arguments: dict[str, Any], mean: float
) -> None:
    model = build_model(family, **arguments)
    model.name = "/somewhere/own.pth"
    assert card_of(model).transform.mean[0] == pytest.approx(mean, abs=1e-6)


def test_classes_of_every_head_are_read() -> None:
    assert class_count({"head.weight": torch.zeros(7, 3)}) == {"num_classes": 7}
    assert class_count({"classifier.weight": torch.zeros(5, 3)}) == {"num_classes": 5}
    assert class_count({"head.weight": torch.zeros(7)}) == {}
    assert class_count({}) == {}


@pytest.mark.parametrize("name", ["x" * 300 + ".pth", "y" * 300, "a\0b.pth", "/etc/passwd/x.pth"])
def test_paths_that_cannot_be_looked_up(name: str) -> None:
    with pytest.raises(PsvitError, match=r"Cannot read|no model or file|[Uu]nknown model"):
        load_model(name)
    with pytest.raises(CheckpointError, match=r"Cannot read|no model or file"):
        inspect_file(name)


def test_origin_at_the_image_size_of_the_pruned_model(registered_file: Path) -> None:
    model = load_model("spikformer_cifar10_2_384", registered_file, image_size=64)
    assert load_origin(half(model), registered_file).input_shape == (3, 64, 64)


def test_origin_from_the_moving_average(tmp_path: Path) -> None:
    _, model = own_file("sdt_v1", tmp_path)
    average = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    path = tmp_path / "both.pth"
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": average}, path)
    loaded = load_model(path, ema=True, **given_for(model))
    origin = load_origin(half(loaded), ema=True)
    assert weights_hash(origin) == weights_hash(loaded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_heads", "Write arguments as name=value"),
        ("num_heads=", "Write arguments as name=value"),
        ("=8", "Write arguments as name=value"),
        ("a b=8", "Write arguments as name=value"),
        ("ema=True", "Unknown argument 'ema'"),
        ("checkpoint=/etc/passwd", "Unknown argument 'checkpoint'"),
        ("T=0", "T must be a whole number of at least 1; got 0"),
        ("T=-1", "T must be a whole number of at least 1"),
        ("T=four", "T must be a whole number of at least 1"),
        ("image_size=32.5", "image_size must be a whole number"),
        ("num_heads=True", "num_heads must be a whole number"),
        ("T=99999999999999999999", "T must be a whole number"),
        ("batch_coupled=yes", "batch_coupled must be True or False"),
    ],
)
def test_arguments_in_a_link_are_checked(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_arguments(text)


def test_arguments_as_text_and_back() -> None:
    given = {"family": "qkformer_imagenet", "pooling_stat": "0011", "batch_coupled": False, "T": 4}
    assert parse_arguments(format_arguments(given)) == given
    assert parse_arguments(" T = 4 ,, ") == {"T": 4}
    assert parse_arguments("") == {}
