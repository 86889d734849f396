"""Exported graphs, ONNX and torch.export: equal logits, any batch, and refusals.

In float32, other programs may flip single spikes, on other processors others. So graphs are
compared in float64 by ONNX's reference implementation, which has no float32 in it. Files in float32
are compared layer by layer, or by most of their images.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import psvit_core as psvit
from psvit_core.custom import plugin as plugins
from psvit_core.errors import (
    CheckpointError,
    ExportError,
    MissingPackageError,
    ModelError,
    OutputError,
)
from psvit_core.export import (
    agreement,
    checked,
    export_onnx,
    export_pt2,
    onnx_file,
    onnx_graph,
    pt2_file,
    torch_neurons,
)
from psvit_core.export.traced import SYMBOL, SYMBOL_DOMAIN, WithSpikes, plain_network
from psvit_core.neurons import LIF
from psvit_core.zoo import cards
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import BNAndPad
from tests import own_models
from tests.export.test_export import build
from tests.export.test_round_trips import AS_PT2
from tests.tiny import tiny_input, tiny_model, vector

#: Networks that no other test writes as ONNX; ``sdt_v1`` has tests of its own.
OTHER_NAMES = tuple(name for name in AS_PT2 if name != "sdt_v1")
EXPORTS = ((export_onnx, ".onnx"), (export_pt2, ".pt2"))


@pytest.fixture(autouse=True)
def untimed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the measurement of latencies, which takes seconds; `test_export_command` has it."""
    monkeypatch.setattr(checked, "latencies_in_turns", lambda networks, x: [1.0, 2.0])


def run_onnx(path: Path, x: Tensor) -> Tensor:
    """Run an ONNX file with onnxruntime's defaults."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"images": x.numpy()})
    return torch.from_numpy(logits)


def logits_of(model: SpikingModel, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


# ---- the graphs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_onnx_graph_computes_the_same_in_float64() -> None:
    model = build("sdt_v1", "pruned")
    model.set_time_steps(3)
    x = tiny_input("sdt_v1", torch.float64)
    network = plain_network(model)
    proto = onnx_file.traced_proto(model, network, x)
    assert {node.domain for node in proto.graph.node} == {""}
    with_spikes = ReferenceEvaluator(proto)
    names = [output.name for output in proto.graph.output]
    got = dict(zip(names, with_spikes.run(None, {"images": x.numpy()}), strict=True))
    rates = [float((got[name] != 0).mean()) for name in names if name.startswith("spikes_")]
    assert len(rates) == sum(isinstance(module, LIF) for module in model.modules())
    assert min(rates) > 0
    onnx_file.finish(proto, model)
    onnx.checker.check_model(proto, full_check=True)
    assert [output.name for output in proto.graph.output] == ["logits"]
    alone = ReferenceEvaluator(proto)
    for images in (x, x[:1]):
        [logits] = alone.run(None, {"images": images.numpy()})
        expected = logits_of(model, images).numpy()
        assert float(np.abs(logits - expected).max()) <= 1e-9
        assert float(expected.std()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("steps", "threshold"), [(1, 1.0), (4, 0.5), (4, 1.0)])
def test_written_out_neurons_have_the_bits_of_torch(
    dtype: torch.dtype, steps: int, threshold: float
) -> None:
    kind = TensorProto.FLOAT if dtype == torch.float32 else TensorProto.DOUBLE
    symbol = helper.make_node(
        SYMBOL, ["x"], ["s"], domain=SYMBOL_DOMAIN, v_threshold=threshold, steps=steps
    )
    shape: list[str | int | None] = [steps, "batch"]
    graph = helper.make_graph(
        [symbol],
        "one",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("s", kind, shape)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(SYMBOL_DOMAIN, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx_graph.write_out_neurons(proto)
    onnx.checker.check_model(proto, full_check=True)
    x = torch.linspace(-3, 6, steps * 257, dtype=dtype).reshape(257, steps).T.contiguous()
    [got] = onnx_file.OnnxNetwork(proto.SerializeToString()).run({"x": x})
    assert torch.equal(got, torch_neurons.LIF(threshold)(x))
    assert 0 < float(got.mean()) < 1


def test_the_border_of_a_batch_norm_has_the_same_bits() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pad = BNAndPad(5)

    net = Net().eval()
    net.pad.bn.weight.data.uniform_(0.5, 2)
    net.pad.bn.bias.data.normal_()
    net.pad.bn.running_mean.normal_()  # type: ignore[union-attr]
    net.pad.bn.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    from psvit_core.export import traced

    x = torch.randn(3, 5, 4, 6)
    with torch.no_grad():
        plain = traced._plain_layer(net.pad)
        assert plain is not None
        assert torch.equal(plain(x), net.pad(x))


# ---- files ---------------------------------------------------------------------------------------


def assert_agrees(model: SpikingModel, path: Path, name: str) -> None:
    """Export a model, and compare the file with the logits of the published code."""
    x, expected = tiny_input(name), vector(name).tensors["logits"]
    done = export_onnx(model, path, x)
    layers = done.agreement.layers
    assert layers is not None
    assert layers.n_images == 3
    assert layers.spikes_torch > 0
    assert (done.weights, done.n_stored) == ("float32", 0)
    assert abs(layers.spikes_torch - layers.spikes_export) <= layers.n_flips * 8
    for images, wanted in ((x, expected), (x[1:2], expected[1:2])):
        distance = (run_onnx(path, images) - wanted).abs().amax(1) / wanted.abs().amax(1)
        assert float((distance <= 1e-3).double().mean()) >= 0.6 or len(images) == 1


def test_an_onnx_file_agrees_with_torch_and_says_where_it_comes_from(tmp_path: Path) -> None:
    small = build("sdt_v1", "single")
    path, x = tmp_path / "network.onnx", tiny_input("sdt_v1")
    done = export_onnx(small, path, x, what="the vector's")
    assert (done.path, done.bytes) == (path, path.stat().st_size)
    assert (done.agreement.images, done.agreement.n_images) == ("the vector's", 3)
    many = torch.cat([x, x + 0.25, x - 0.25])
    close = torch.isclose(run_onnx(path, many), logits_of(small, many), rtol=1e-3, atol=1e-3)
    assert int(close.all(1).sum()) >= 7  # of 9: a spike may flip
    proto = onnx.load(path)
    assert [o.version for o in proto.opset_import] == [20]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts["model"] == "sdt_v1: sdt_v1, family sdt_v1"
    assert facts["weights"].startswith("licence: ")
    assert facts["source_hash"] == small.provenance["origin_weights_hash"]
    assert "by policy" in facts["pruned"]
    assert json.loads(facts["widths"]) == small.widths
    assert json.loads(facts["time_steps"]) == small.T
    assert json.loads(facts["plans"]) == small.provenance["plans"]
    content = path.read_bytes()
    for folder in (Path(psvit.__file__).parent, tmp_path):
        assert str(folder).encode() not in content
    assert [p.name for p in tmp_path.iterdir()] == ["network.onnx"]


@pytest.mark.slow
def test_a_pt2_file_runs_in_torch_alone_on_any_batch(tmp_path: Path) -> None:
    model, path = tiny_model("sdt_v3_large_base", torch.float64), tmp_path / "network.pt2"
    done = export_pt2(model, path)
    assert done.agreement.images == "random, seeded"
    assert done.agreement.n_equal_logits == done.agreement.n_images == 8
    x = tiny_input("sdt_v3_large_base", torch.float64)
    loaded = torch.export.load(path).module()
    for images in (x, x[:1], torch.cat([x, x])):
        difference = (loaded(images) - logits_of(model, images)).abs().max()
        assert float(difference) <= 1e-9
    with zipfile.ZipFile(path) as archive:
        texts = {name: archive.read(name) for name in archive.namelist()}
    [facts] = [json.loads(t) for name, t in texts.items() if name.endswith(pt2_file.METADATA_FILE)]
    assert facts["weights"].startswith("licence: ")
    for text in texts.values():
        assert str(Path(psvit.__file__).parent).encode() not in text
        assert b"psvit_core" not in text or b"stack_trace" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdt_v1", "qkformer_cifar"])
def test_a_pt2_file_for_a_fixed_number_of_images(name: str, tmp_path: Path) -> None:
    """Without an open number, networks whose images influence each other are exported, too."""
    model, path = tiny_model(name, torch.float64), tmp_path / "network.pt2"
    model.set_time_steps(2)  # each is written out
    x = tiny_input(name, torch.float64)
    x = torch.cat([x, x.flip(0)])[:4]
    done = export_pt2(model, path, x, batch=2)
    assert (done.batch, done.agreement.n_images) == (2, 4)
    loaded = torch.export.load(path).module()
    for images in x.split(2):
        assert float((loaded(images) - logits_of(model, images)).abs().max()) <= 1e-9
    with pytest.raises(Exception, match="2"):
        loaded(x[:1])


def test_a_batch_must_have_an_image(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="at least 1 image at a time; got batch 0"):
        export_pt2(tiny_model("sdt_v1"), tmp_path / "network.pt2", batch=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_families_become_onnx_files_too(name: str, tmp_path: Path) -> None:
    assert_agrees(tiny_model(name), tmp_path / "network.onnx", name)


@pytest.mark.slow
def test_independent_qkformer_is_exported(tmp_path: Path) -> None:
    from psvit_core.zoo.registry import build_model

    arguments = {**tiny_model("qkformer_cifar").arguments, "batch_coupled": False, "T": 2}
    model = build_model("qkformer_cifar", None, **arguments)
    model.load_state_dict(tiny_model("qkformer_cifar").state_dict())
    model.name = "independent"
    done = export_pt2(model.eval(), tmp_path / "network.pt2", tiny_input("qkformer_cifar"))
    assert done.agreement.n_equal_logits >= 2


# ---- networks of the user's own ------------------------------------------------------------------


class ByValue(own_models.Silent):
    """Its forward depends on values, which shapes do not show."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta and float(x.sum()) > 1e9:
            x = x * 2
        return super().forward(x)


class ByImage(own_models.Silent):
    """Its forward loops over the images."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(ByImage, self).forward(one) for one in x.split(1)])


@pytest.fixture
def own() -> Iterator[None]:
    cards._custom_cards.clear()
    own_models.register()
    for name, kind in (("own_by_value", ByValue), ("own_by_image", ByImage)):
        psvit.register_model(name, kind, input_shape=own_models.SHAPE, num_classes=10)
    yield
    cards._custom_cards.clear()
    plugins._state.loaded.clear()
    plugins._state.store = None


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_your_own_network_is_exported(tmp_path: Path) -> None:
    model, path = psvit.load_model("own_tokens"), tmp_path / "own.onnx"
    done = export_onnx(model, path)
    assert done.agreement.layers is not None
    assert done.agreement.layers.n_layers == 15  # five neurons, three time steps
    x = torch.randn(5, *own_models.SHAPE, generator=torch.Generator().manual_seed(3))
    close = torch.isclose(run_onnx(path, x), logits_of(model, x), rtol=1e-3, atol=1e-3)
    assert int(close.all(1).sum()) >= 4


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("export", "suffix"), EXPORTS)
@pytest.mark.parametrize(
    ("name", "reason"),
    [("own_by_value", "data-dependent"), ("own_by_image", "specialized it to be a constant")],
)
def test_what_cannot_be_traced_is_refused_with_the_reason(
    name: str, reason: str, export: Any, suffix: str, tmp_path: Path, capfd: Any
) -> None:
    with pytest.raises(ModelError, match=reason):
        export(psvit.load_model(name), tmp_path / f"own{suffix}")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


# ---- the check -----------------------------------------------------------------------------------


class Shifted(nn.Module):
    """A network whose logits are wrong."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).roll(1, 1)


@pytest.mark.usefixtures("own")
def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.pt2"
    path.write_bytes(b"psvit_export: an earlier file")
    load = torch.export.load

    class Wrong:
        def __init__(self, file: Any) -> None:
            self.program = load(file)

        def module(self) -> nn.Module:
            return Shifted(self.program.module())

    monkeypatch.setattr(torch.export, "load", Wrong)
    with pytest.raises(ExportError, match="computes something else"):
        export_pt2(psvit.load_model("own_silent"), path)
    assert [p.name for p in tmp_path.iterdir()] == ["own.pt2"]
    assert path.read_bytes() == b"psvit_export: an earlier file"


def plain_run(network: WithSpikes, change: Any) -> agreement.Layers:
    """Return a stand-in for an exported graph: torch, with a change to what it returns."""

    def run(image: Tensor, spikes: Any) -> list[Tensor | None]:
        with torch.no_grad():
            return change(list(network(image)))

    return run


def test_layers_are_compared_one_by_one() -> None:
    model = tiny_model("sdt_v1")
    x, network = tiny_input("sdt_v1"), WithSpikes(plain_network(model))
    same = agreement.compare_layers(network, plain_run(network, lambda out: out), x)
    with torch.no_grad():
        fired = network(x)[2::2]
    assert (same.n_flips, same.max_current_difference) == (0, 0.0)
    assert same.n_layers == len(fired)
    assert same.n_outputs == sum(f.numel() for f in fired)
    assert same.spikes_torch == same.spikes_export == sum(int(f.sum()) for f in fired)

    def one_flip(out: list[Tensor]) -> list[Tensor]:
        flat = out[4].clone()
        flat.view(-1)[7] = 1 - flat.view(-1)[7]
        return [*out[:4], flat, *out[5:]]

    flipped = agreement.compare_layers(network, plain_run(network, one_flip), x)
    assert flipped.n_flips == len(x)  # one in each image
    assert abs(flipped.spikes_torch - flipped.spikes_export) <= len(x)

    def scaled(out: list[Tensor]) -> list[Tensor]:
        return [*out[:5], out[5] * 1.1, *out[6:]]

    with pytest.raises(ExportError, match="the input of neuron layer 3 of"):
        agreement.compare_layers(network, plain_run(network, scaled), x)

    def silent(out: list[Tensor]) -> list[Tensor]:
        return [t * 0 if i and i % 2 == 0 else t for i, t in enumerate(out)]

    with pytest.raises(ExportError, match="neurons compute something else"):
        agreement.compare_layers(network, plain_run(network, silent), x)

    def broken(out: list[Tensor]) -> list[Tensor]:
        return [out[0] * math.nan, *out[1:]]

    with pytest.raises(ExportError, match="the head"):
        agreement.compare_layers(network, plain_run(network, broken), x)


def test_predictions_and_logits_are_compared_by_image() -> None:
    expected = torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 0.0], [0.0, 5.0, 1.0]])
    got = torch.tensor([[1.0, 2.0, 4.001], [3.0, 3.5, 0.0], [0.0, 5.5, 1.0]])
    images = torch.arange(3.0).view(3, 1, 1, 1)

    def rows(table: Tensor) -> Any:
        return lambda x: table[x.flatten().long()]

    found = agreement.compare(rows(expected), rows(got), images, "three")
    assert (found.n_images, found.n_other_predictions, found.n_equal_logits) == (3, 1, 1)
    assert found.max_logit_difference == 2.5
    assert found.largest_logit == 5.0
    with pytest.raises(ExportError, match="NaN"):
        agreement.compare(rows(expected), rows(got * math.nan), images, "three")


def test_float64_says_what_rounding_explains() -> None:
    class Chaotic(nn.Linear):
        """Multiplies rounding errors by 1e8, as a spiking network may."""

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x.flatten(1))
            return ((y * 1e8) % 1.0) + 1

    torch.manual_seed(0)
    network = Chaotic(16, 4)
    images = torch.randn(9, 1, 4, 4)

    def other(x: Tensor) -> Tensor:
        return (((x.flatten(1) @ network.weight.T + network.bias) * 1.0000001e8) % 1.0) + 1

    agreement.check_logits(network, other, network, images, allowed=1e-3)
    stable = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(ExportError, match="computes something else"):
        agreement.check_logits(stable, lambda x: stable(x) * 1.5, stable, images, allowed=1e-3)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("export", "suffix"), EXPORTS)
def test_coupled_batches_are_refused_with_the_reason(
    export: Any, suffix: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="the images of a batch influence each other"):
        export(tiny_model("qkformer_cifar"), tmp_path / f"network{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("export", "suffix"), EXPORTS)
def test_paths_are_checked_first(export: Any, suffix: str, tmp_path: Path) -> None:
    model = tiny_model("sdt_v1")
    with pytest.raises(OutputError, match=f"the suffix {suffix}"):
        export(model, tmp_path / "network.bin")
    with pytest.raises(OutputError, match="does not exist"):
        export(model, tmp_path / "missing" / f"network{suffix}")
    mine = tmp_path / f"mine{suffix}"
    mine.write_bytes(b"somebody's work")
    with pytest.raises(OutputError, match="written by no export"):
        export(model, mine)
    assert mine.read_bytes() == b"somebody's work"
    mine.write_bytes(b"a model with psvit_export in it")
    model.name = str(mine)
    with pytest.raises(OutputError, match="It stays"):
        export(model, mine)


@pytest.mark.parametrize(("export", "suffix"), EXPORTS)
def test_weights_without_values_are_refused(export: Any, suffix: str, tmp_path: Path) -> None:
    model = tiny_model("sdt_v1")
    model.get_parameter("head.weight").data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="NaN"):
        export(model, tmp_path / f"network{suffix}")
    assert not list(tmp_path.iterdir())


def test_onnx_files_are_in_float32(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float64"):
        export_onnx(tiny_model("sdt_v1", torch.float64), tmp_path / "network.onnx")


def test_without_the_packages_an_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if "script" in name else name)
    with pytest.raises(MissingPackageError, match="pip install onnx onnxscript onnxruntime") as e:
        export_onnx(tiny_model("sdt_v1"), tmp_path / "network.onnx")
    assert "not installed: onnxscript." in str(e.value)


def test_what_onnx_refuses_is_an_error_of_ours() -> None:
    with pytest.raises(ExportError, match="--format pt2 needs no ONNX"):
        onnx_file.OnnxNetwork(b"no graph")
