"""An exported network runs without this package and computes the same, for every family."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import psvit_core as psvit
from psvit_core.custom import plugin as plugins
from psvit_core.errors import CheckpointError, ModelError, OutputError
from psvit_core.export import export_torch, torch_neurons, write_definition
from psvit_core.export.origin import one_line, origin_comment
from psvit_core.export.text import literal, torch_source
from psvit_core.kernels import lif
from psvit_core.neurons import IntegerLIF
from psvit_core.records import (
    STORED_WEIGHTS,
    EpochRecord,
    FinetuneReport,
    FinetuneSettings,
    Interval,
    RecoveryReport,
)
from psvit_core.recover import recover
from psvit_core.runtime import Run
from psvit_core.surgery import apply_plan
from psvit_core.zoo import cards
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.quantized import quantize_weights
from tests import own_models
from tests.patience import JOB
from tests.tiny import NAMES, QUICK_NAMES, random_plan, tiny_data, tiny_input, tiny_model

#: Kinds of pruned models in double precision, compared within a tolerance.
KINDS = ("pruned", "twice", "recovered", "spikingjelly")
#: Batches influence each other, halves are rounded up, firing rates scale the attention.
SPECIAL_NAMES = ("qkformer_cifar", "sdt_v3_large_base", "spikingresformer_cifar")
TOLERANCE = 1e-9
#: Kinds in single precision.
SINGLE = ("single", *STORED_WEIGHTS)
#: Runs exports in a process in which this package cannot be imported.
RUNNER = """
import importlib, json, sys, torch
from safetensors.torch import load_file, save_file

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is hidden")

folder, names = sys.argv[1], json.loads(sys.argv[2])
hidden = {"psvit_core", "timm", "torchvision", "spikingjelly"}
sys.meta_path.insert(0, Hidden())
sys.path.insert(0, folder)
logits = {}
for name in names:
    if name.endswith("spikingjelly"):
        hidden = {"psvit_core"}
    network = importlib.import_module(name).load()
    with torch.inference_mode():
        logits[name] = network(load_file(f"{folder}/{name}.input")["x"])
save_file(logits, f"{folder}/logits")
assert "psvit_core" not in sys.modules
"""


def build(name: str, kind: str) -> SpikingModel:
    """Return a model of a kind: pruned, pruned twice, recovered, or pruned in single precision."""
    original = tiny_model(name, torch.float32 if kind in SINGLE else torch.float64)
    plan = random_plan(original, 0)
    small = apply_plan(original, plan)
    if kind in STORED_WEIGHTS:
        return quantize_weights(small, kind)
    if kind == "twice":
        return apply_plan(small, random_plan(small, 1))
    if kind == "recovered":
        calib = dataclasses.replace(tiny_data(name, 4), split="calib")
        run = Run(batch=4, precision="float64")
        return recover(small, original, plan, calib, method="lsq", run=run)[0]
    return small


def has_lif(name: str) -> bool:
    return not name.startswith("sdt_v3")


def cases(names: tuple[str, ...], kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(n, k) for n in names for k in kinds if k != "spikingjelly" or has_lif(n)]


@dataclass
class Outcome:
    """Logits of a model and of its export."""

    expected: Tensor
    got: Tensor


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package's neurons run the operations of exported ones: not the native loops."""

    def spikes(x: Tensor, v_threshold: float, *, atan: bool = False) -> Tensor:
        return torch_neurons.LIF(v_threshold, atan=atan)(x)

    def levels(x: Tensor, levels: int, norm: int, half_up: bool = False) -> Tensor:
        return torch_neurons.IntegerLIF(norm, levels, half_up)(x)

    monkeypatch.setattr(lif, "lif", spikes)
    monkeypatch.setattr(lif, "integer_lif", levels)


def run_exports(models: list[tuple[str, str]], folder: Path) -> dict[str, Outcome]:
    """Export models, run the exports in one process of their own, and return all logits."""
    expected = {}
    for name, kind in models:
        model, key = build(name, kind), f"{name}_{kind}"
        x = tiny_input(name, torch.float32 if kind in SINGLE else torch.float64)
        export_torch(model, folder / f"{key}.py", spikingjelly=kind == "spikingjelly")
        save_file({"x": x.contiguous()}, folder / f"{key}.input")
        with torch.inference_mode():
            expected[key] = model(x)
    program = [sys.executable, "-I", "-c", RUNNER, str(folder), json.dumps(list(expected))]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=JOB)
    assert done.returncode == 0, done.stderr
    got = load_file(folder / "logits")
    return {key: Outcome(logits, got[key]) for key, logits in expected.items()}


def assert_equal_logits(outcomes: dict[str, Outcome]) -> None:
    assert outcomes
    for key, outcome in outcomes.items():
        assert outcome.got.dtype == torch.float64
        worst = float((outcome.got - outcome.expected).abs().max())
        assert worst <= TOLERANCE, (key, worst)
        assert float(outcome.expected.std()) > 0, key


def assert_equal_bits(outcomes: dict[str, Outcome]) -> None:
    assert outcomes
    for key, outcome in outcomes.items():
        assert outcome.got.dtype == torch.float32
        assert torch.equal(outcome.got, outcome.expected), key


def test_every_family_runs_alone_with_the_same_logits(tmp_path: Path) -> None:
    models = cases(QUICK_NAMES, ("pruned",)) + cases(SPECIAL_NAMES, KINDS[1:])
    assert_equal_logits(run_exports(models, tmp_path))


@pytest.mark.usefixtures("torch_only")
def test_single_precision_has_the_same_bits(tmp_path: Path) -> None:
    assert_equal_bits(run_exports(cases(QUICK_NAMES, ("single",)), tmp_path))


@pytest.mark.usefixtures("torch_only")
def test_quantized_weights_have_the_same_bits(tmp_path: Path) -> None:
    """The weights' file has as many bytes as the numbers need, and ``load`` makes them float32."""
    models = [("sdt_v3", "int8"), *cases(("sdt_v1_cifar",), STORED_WEIGHTS)]
    assert_equal_bits(run_exports(models, tmp_path))
    for kind in STORED_WEIGHTS:
        tensors = load_file(tmp_path / f"sdt_v1_cifar_{kind}.safetensors")
        stored = tensors["block.0.mlp.fc1_conv.weight"]
        assert str(stored.dtype) == f"torch.{kind}"
        assert ("block.0.mlp.fc1_conv.weight.scale" in tensors) == (kind == "int8")


@pytest.mark.slow
def test_every_vector_runs_alone_with_the_same_logits(tmp_path: Path) -> None:
    models = cases(NAMES, ("pruned", "twice", "spikingjelly"))
    models += cases(QUICK_NAMES, ("recovered",))  # one of each family
    assert_equal_logits(run_exports(models, tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("torch_only")
def test_every_vector_has_the_same_bits_in_single_precision(tmp_path: Path) -> None:
    assert_equal_bits(run_exports(cases(NAMES, ("single",)), tmp_path))


@pytest.mark.parametrize("name", SPECIAL_NAMES)
def test_an_export_trains_like_the_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name, "pruned").train()
    export_torch(model, tmp_path / f"trained_{name}.py")
    monkeypatch.syspath_prepend(tmp_path)
    network = importlib.import_module(f"trained_{name}").load().train()
    monkeypatch.delitem(sys.modules, f"trained_{name}")
    x = tiny_input(name, torch.float64)
    for one in (model, network):
        one(x).square().sum().backward()
    expected = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    got = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
    assert expected
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


# ---- the text ------------------------------------------------------------------------------------


def imported(text: str) -> set[str]:
    """Return the top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_torch_and_safetensors_is_imported(name: str) -> None:
    model = tiny_model(name)
    text = torch_source(model, "network")
    assert imported(text) - sys.stdlib_module_names == {"torch", "safetensors"}
    assert not {"subprocess", "os", "socket", "pickle", "importlib"} & imported(text)
    assert "psvit_core" not in text
    for word in ("has_torch_function", "GroupSpec", "type: ignore", "noqa", "PsvitError"):
        assert word not in text
    assert max(map(len, text.splitlines())) <= 100
    assert_nothing_is_unused(text)
    if has_lif(name):
        other = torch_source(model, "network", spikingjelly=True)
        needed = {"torch", "safetensors", "spikingjelly"}
        assert imported(other) - sys.stdlib_module_names == needed


def assert_nothing_is_unused(text: str) -> None:
    """Check that every definition, import and method of a file is named somewhere else in it."""
    tree = ast.parse(text)
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    called_by_torch = {"__init__", "forward", "backward"}
    for user in ("load", "normalise", "INTERPOLATION", "RESIZE", "CROP", "annotations"):
        read.add(user)
    defined = [n.name for n in ast.walk(tree) if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
    aliases = [
        (alias.asname or alias.name)
        for n in tree.body
        if isinstance(n, (ast.Import, ast.ImportFrom))
        for alias in n.names
    ]
    assert set(defined) | set(aliases) <= read | called_by_torch


def test_the_file_says_where_the_network_comes_from() -> None:
    model = psvit.load_model("sdt_v1_digits")
    small = apply_plan(model, dataclasses.replace(random_plan(model, 0), policy="optimal"))
    small.arguments["T"] = 2
    text = torch_source(small, "digits")
    head = text.partition("from __future__")[0]
    assert "SPDX-License-Identifier: Apache-2.0" in head
    assert "sdt_v1_digits: Spike-driven Transformer v1" in head
    assert "arXiv 2307.01694" in head
    assert "MNIST (CC BY-SA 3.0)" in " ".join(head.replace("#", " ").split())
    assert "by policy optimal, criterion" in head
    assert small.provenance["origin_weights_hash"] in head
    values: dict[str, Any] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = ast.literal_eval(node.value)
    assert values["WIDTHS"] == small.widths
    assert values["ARGUMENTS"] == small.arguments
    assert values["ARGUMENTS"]["T"] == 2
    assert (values["RESIZE"], values["CROP"], values["PAD"]) == (28, 28, 2)
    assert (values["MEAN"], values["STD"]) == ((0.1307,), (0.3081,))
    assert values["INPUT_SHAPE"] == (1, 32, 32)


def test_the_file_says_how_it_was_recovered_and_trained() -> None:
    small = build("spikingresformer_cifar", "recovered")
    [record] = small.provenance["recoveries"]
    done = RecoveryReport.from_dict(record)
    accuracy = Interval(value=0.9, low=0.88, high=0.92)
    epoch = EpochRecord(
        step=9, epoch=1, lr=0.1, seconds=1.0, train_loss=1.0, val_loss=1.0, val_accuracy=accuracy
    )
    trained = FinetuneReport(
        model="x",
        settings=FinetuneSettings(),
        conditions=done.conditions,
        teacher=None,
        best_epoch=1,
        epochs=(epoch,),
    )
    head = " ".join(origin_comment(small).replace("#", " ").split())
    assert f"by {done.used} (lsq was asked for), from {done.n_fit} images of made" in head
    assert f"{done.kl_before:.4f} -> {done.kl_after:.4f} nats" in head
    assert "Accuracy not recorded" in head
    small.provenance["finetunes"] = [trained.to_dict()]
    head = " ".join(origin_comment(small).replace("#", " ").split())
    assert "validation accuracy 90.00% [95 %: 88.00%, 92.00%]" in head
    assert "Accuracy not recorded" not in head


HOSTILE = (
    '"""\nimport os  # -*- coding: utf-7 -*-\nos.abort()\n"""',
    "'''\r\nraise SystemExit(7)\r",
    "\x00\x0c\x85\u2028raise SystemExit\u2029\ud800",
    "{name} %s \\\n\\",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_names_in_a_file_inject_nothing(text: str) -> None:
    model = tiny_model("sdt_v1")
    small = apply_plan(model, random_plan(model, 0))
    plain = ast.dump(ast.parse(torch_source(small, "network")))
    plan = {**small.provenance["plans"][0]}
    small.name = text
    small.provenance["origin"] = text
    small.provenance["origin_weights_hash"] = text
    small.provenance["plans"] = [{**plan, "policy": text, "note": text, "criterion": text}]
    source = torch_source(small, "network")
    assert ast.dump(ast.parse(source)) == plain
    assert source.isascii() or "\ud800" not in source
    assert ast.dump(ast.parse(source.encode("utf-8"))) == plain  # as Python reads the file


@pytest.mark.parametrize("text", [*HOSTILE, '"', "\\", "x" * 5000])
def test_text_from_a_file_stays_on_one_line(text: str) -> None:
    line = one_line(text)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= 300
    assert ast.literal_eval(literal(text)) == text
    assert "\n" not in literal(text)


@pytest.mark.parametrize("value", [object(), float("nan"), float("inf"), {1: object()}, [print]])
def test_only_literals_become_constants(value: object) -> None:
    with pytest.raises(ModelError, match="cannot be written as a constant"):
        literal(value)


def test_long_lists_are_wrapped() -> None:
    value = {"layers": [["DSSA", "GWFFN"] * 9, ["DSSA"]], "empty": [], "one": (1,)}
    text = literal(value)
    assert ast.literal_eval(text) == value
    assert max(map(len, text.splitlines())) <= 100


# ---- neurons -------------------------------------------------------------------------------------


def around_thresholds(dtype: torch.dtype) -> Tensor:
    return torch.linspace(-3, 6, 4 * 257, dtype=dtype).reshape(257, 4).T.contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("atan", [False, True])
def test_lif_has_the_bits_and_gradients_of_the_package(
    dtype: torch.dtype, threshold: float, atan: bool
) -> None:
    from psvit_core.export import spikingjelly_neurons
    from psvit_core.neurons import LIF

    x = around_thresholds(dtype)
    for other in (torch_neurons.LIF, spikingjelly_neurons.LIF):
        assert torch.equal(other(threshold, atan=atan)(x), LIF(threshold, atan=atan)(x))
        ours, theirs = (x.clone().requires_grad_() for _ in range(2))
        weight = torch.linspace(0.5, 1.5, x.numel(), dtype=dtype).view_as(x)
        (other(threshold, atan=atan)(ours) * weight).sum().backward()
        (LIF(threshold, atan=atan)(theirs) * weight).sum().backward()
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad)
        assert float(ours.grad.abs().max()) > 0


@pytest.mark.parametrize("half_up", [False, True])
@pytest.mark.parametrize(("norm", "levels"), [(1, 4), (4, 4), (8, 8)])
def test_integer_neuron_has_the_bits_and_gradients_of_the_package(
    norm: int, levels: int, half_up: bool
) -> None:
    halves = torch.arange(-4, 20) / 2
    x = torch.cat([around_thresholds(torch.float32).flatten(), halves])
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    got = torch_neurons.IntegerLIF(norm, levels, half_up)
    expected = IntegerLIF(norm, levels, half_up)
    assert torch.equal(got(x), expected(x))
    got(ours).sum().backward()
    expected(theirs).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["network", "network.txt", "a-b.py", "1st.py", "class.py", "torch.py", "json.py", "é.py"],
)
def test_names_that_cannot_be_imported_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        export_torch(tiny_model("sdt_v1"), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_no_other_weights_are_replaced(tmp_path: Path) -> None:
    model = tiny_model("sdt_v1")
    small = apply_plan(model, random_plan(model, 0))
    before = psvit.save_pruned(small, tmp_path / "small.safetensors").read_bytes()
    with pytest.raises(OutputError, match="which no export wrote"):
        export_torch(small, tmp_path / "small.py")
    assert (tmp_path / "small.safetensors").read_bytes() == before
    assert not (tmp_path / "small.py").exists()
    export_torch(small, tmp_path / "again.py")
    export_torch(small, tmp_path / "again.py")  # as every command replaces its own files


def test_the_pruned_file_runs_beside_its_definition(tmp_path: Path) -> None:
    model = tiny_model("sdt_v1")
    file = tmp_path / "odd-name 1.safetensors"
    before = psvit.save_pruned(apply_plan(model, random_plan(model, 0)), file).read_bytes()
    code = write_definition(file)
    assert code == tmp_path / "odd_name_1.py"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd-name 1.safetensors", code.name]
    assert file.read_bytes() == before
    assert 'WEIGHTS = "odd-name 1.safetensors"' in code.read_text(encoding="utf-8")

    same = psvit.save_pruned(psvit.load_model(file), tmp_path / "same.safetensors")
    before, read = same.read_bytes(), psvit.load_model(same)
    assert export_torch(read, tmp_path / "same.py").weights == same
    assert same.read_bytes() == before
    read.get_parameter("head.weight").data.mul_(2)
    with pytest.raises(OutputError, match="contains other weights"):
        export_torch(read, tmp_path / "same.py")


def test_models_without_usable_weights_are_refused(tmp_path: Path) -> None:
    model = tiny_model("sdt_v1")
    model.get_parameter("head.weight").data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="NaN"):
        export_torch(model, tmp_path / "network.py")
    with pytest.raises(ModelError, match="integer neurons"):
        export_torch(tiny_model("sdt_v3"), tmp_path / "network.py", spikingjelly=True)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own_model() -> Iterator[SpikingModel]:
    cards._custom_cards.clear()
    own_models.register()
    yield psvit.load_model("own_tokens")
    cards._custom_cards.clear()
    plugins._state.loaded.clear()
    plugins._state.store = None


def test_networks_of_your_own_are_refused(own_model: SpikingModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="your own code"):
        export_torch(own_model, tmp_path / "network.py")
    assert not list(tmp_path.iterdir())
