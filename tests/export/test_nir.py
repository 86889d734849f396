"""NIR files: networks of the user's own come back with their logits and spikes; refusals.

The files are read with the nir library and run by a simulation of this file, in NumPy and float64,
and by SpikingJelly's own importer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.nir_exchange import import_from_nir
from torch import Tensor, nn

import psvit_core as psvit
from psvit_core.custom import plugin as plugins
from psvit_core.errors import ExportError, MissingPackageError, ModelError, OutputError
from psvit_core.export import export_nir, nir_file
from psvit_core.zoo import cards
from tests.own_models import CLASSES, SHAPE, Silent, bn, conv, lif, warmed
from tests.tiny import QUICK_NAMES, random_plan, tiny_model

STEPS = 4


class Residual(nn.Module):
    """Residual sums, every neuron that NIR has, pooling and a head after the mean over time."""

    T = STEPS

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn, self.stem_lif = conv(1, 6), bn(6), lif()
        self.a, self.a_bn = conv(6, 6), bn(6)
        self.a_lif = neuron.LIFNode(tau=3.0, decay_input=False, v_threshold=0.8, step_mode="m")
        self.b, self.b_bn = conv(6, 6, bias=True), bn(6)
        self.b_lif = neuron.IFNode(step_mode="m")
        self.pool = layer.AvgPool2d(2, step_mode="m")
        self.last, self.last_bn = conv(6, 8), bn(8)
        self.last_lif = neuron.ParametricLIFNode(init_tau=1.5, step_mode="m")
        self.drop = layer.Dropout(0.5, step_mode="m")
        self.head = nn.Linear(8 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.stem_lif(self.stem_bn(self.stem(x)))
        y = self.a_lif(self.a_bn(self.a(x)))
        x = x + self.b_bn(self.b(y))
        x = self.pool(self.b_lif(x))
        x = self.drop(self.last_lif(self.last_bn(self.last(x))))
        out: Tensor = self.head(x.flatten(2).mean(0))
        return out


class Chain(nn.Sequential):
    """A chain that takes sequences, with hidden linear layers."""

    def __init__(self) -> None:
        super().__init__(
            conv(1, 6),
            bn(6),
            lif(),
            layer.AdaptiveAvgPool2d((1, 1), step_mode="m"),
            layer.Flatten(step_mode="m"),
            layer.Linear(6, 12, bias=False, step_mode="m"),
            layer.BatchNorm1d(12, step_mode="m"),
            lif(),
            layer.Linear(12, CLASSES, bias=False, step_mode="m"),
        )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
    "nir_residual": (lambda: warmed(Residual()), None),
    "nir_chain": (lambda: warmed(Chain(), T=STEPS), STEPS),
}


def register(name: str, build: Callable[[], nn.Module], T: int | None = None) -> None:
    psvit.register_model(name, build, input_shape=SHAPE, num_classes=CLASSES, T=T)


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    cards._custom_cards.clear()
    for name, (build, T) in NETWORKS.items():
        register(name, build, T)
    yield
    cards._custom_cards.clear()
    plugins._state.loaded.clear()
    plugins._state.store = None


def images(n: int = 16) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(5))


# ---- a simulation of its own ---------------------------------------------------------------------


def windows(x: Any, size: tuple[int, int], stride: Any, padding: Any) -> Any:
    """(B, C, H', W', kh, kw): what a kernel sees at every place."""
    (p, q), (s, r) = np.broadcast_to(padding, 2), np.broadcast_to(stride, 2)
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (q, q)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))
    return seen[:, :, ::s, ::r]


def stateless(node: Any, x: Any) -> Any:
    match node:
        case nir.Conv2d():
            assert node.groups == 1
            seen = windows(x, node.weight.shape[2:], node.stride, node.padding)
            out = np.einsum("bchwij,ocij->bohw", seen, node.weight.astype(float))
            return out + node.bias.reshape(1, -1, 1, 1)
        case nir.AvgPool2d():
            size = tuple(np.broadcast_to(node.kernel_size, 2).tolist())
            return windows(x, size, node.stride, node.padding).mean((4, 5))
        case nir.Affine():
            return x @ node.weight.T.astype(float) + node.bias
        case nir.Linear():
            return x @ node.weight.T.astype(float)
        case nir.Flatten():
            assert (node.start_dim, node.end_dim) == (0, -1)
            return x.reshape(len(x), -1)
        case nir.Output():
            return x
    raise AssertionError(type(node).__name__)


def simulate(path: Path, x: Tensor) -> tuple[Any, dict[str, Any]]:
    """Return logits, and the spikes of all neurons by node, (T, B, ...), of a NIR file."""
    graph = nir.read(path)
    dt, steps = float(graph.metadata["dt"]), int(graph.metadata["time_steps"])
    order, left = ["input"], set(graph.nodes) - {"input"}
    while left:  # every node after its sources
        ready = {n for n in left if all(a in order for a, b in graph.edges if b == n)}
        order += sorted(ready)
        left -= ready
    v: dict[str, Any] = {}
    spikes: dict[str, list[Any]] = {}
    outputs = []
    for _ in range(steps):
        values: dict[str, Any] = {"input": x.double().numpy()}
        for name in order[1:]:
            node = graph.nodes[name]
            into = sum(values[a] for a, b in graph.edges if b == name)
            if isinstance(node, (nir.LIF, nir.IF)):
                before = v.get(name, np.zeros_like(into))
                if isinstance(node, nir.LIF):
                    slope = ((node.v_leak - before) + node.r * into) / node.tau
                else:
                    slope = node.r * into
                after = before + dt * slope
                fired = after > node.v_threshold
                v[name] = np.where(fired, node.v_reset, after)
                spikes.setdefault(name, []).append(fired.astype(float))
                values[name] = spikes[name][-1]
            else:
                values[name] = stateless(node, into)
        outputs.append(values["output"])
    return np.mean(outputs, 0), {name: np.stack(part) for name, part in spikes.items()}


def in_torch(model: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits, and the spikes of all neurons by path, as this program runs a network."""
    spikes: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: spikes.update({name: out}))
        for name, module in model.net.named_modules()
        if isinstance(module, neuron.BaseNode)
    ]
    with torch.no_grad():
        logits = model(x)
    for hook in hooks:
        hook.remove()
    return logits, spikes


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_with_its_logits_and_spikes(name: str, tmp_path: Path) -> None:
    full = psvit.load_model(name)
    small = psvit.apply_plan(full, random_plan(full, 1))
    path = psvit.save_pruned(small, tmp_path / "small.safetensors")
    model, file = psvit.load_model(path), tmp_path / "network.nir"
    nir_file.check_expressible(model)
    done = export_nir(model, file)
    assert done.agreement.layers is not None
    assert done.agreement.layers.n_flips <= 0.001 * done.agreement.layers.n_outputs
    x = images()
    expected, fired = in_torch(model, x)
    logits, spikes = simulate(file, x)
    assert {n.replace(".", "_") for n in fired} == set(spikes)
    n_flips = n_outputs = 0
    for layer_name, part in fired.items():
        got = spikes[layer_name.replace(".", "_")]
        assert 0.02 < part.mean() < 0.98
        n_flips += int((got != part.numpy()).sum())
        n_outputs += part.numel()
    assert n_flips <= 0.001 * n_outputs  # float64 against float32
    distance = np.abs(logits - expected.numpy()).max(1) / expected.abs().amax(1).numpy()
    assert int((distance <= 1e-3).sum()) >= 14  # of 16: a spike may flip
    assert float(expected.std()) > 1e-2
    weights = [n.weight.size for n in nir.read(file).nodes.values() if hasattr(n, "weight")]
    assert sum(weights) < sum(p.numel() for p in full.parameters() if p.dim() > 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_spikingjelly_reads_the_file(name: str, tmp_path: Path) -> None:
    model, file = psvit.load_model(name), tmp_path / "network.nir"
    export_nir(model, file)
    network = import_from_nir(file, dt=nir_file.DT)
    x, state, outputs = images(), None, []
    with torch.no_grad():
        for _ in range(STEPS):
            out, state = network(x, state)
            outputs.append(out)
        got, expected = torch.stack(outputs).mean(0), model(x)
    distance = (got - expected).abs().amax(1) / expected.abs().amax(1)
    assert int((distance <= 1e-3).sum()) >= 14
    functional.reset_net(network)


def test_a_file_says_where_it_comes_from(tmp_path: Path) -> None:
    model, file = psvit.load_model("nir_residual"), tmp_path / "network.nir"
    done = export_nir(model, file, images(), what="made")
    assert (done.path, done.bytes, done.needs) == (file, file.stat().st_size, ("nir",))
    assert (done.agreement.images, done.agreement.n_images) == ("made", 16)
    assert done.torch_ms is None
    graph = nir.read(file)
    assert graph.metadata["model"].startswith("nir_residual")
    assert json.loads(graph.metadata["widths"]) == model.widths
    assert (graph.metadata["dt"], graph.metadata["time_steps"]) == ("0.0001", "4")
    into_b = [before for before, after in graph.edges if after == "b_lif"]
    assert sorted(into_b) == ["b", "stem_lif"]  # the residual sum
    before = file.read_bytes()
    export_nir(model, file)  # its own file may be replaced
    assert file.read_bytes()[:8] == before[:8]
    other = tmp_path / "mine.nir"
    other.write_bytes(b"somebody's work")
    with pytest.raises(OutputError, match="written by no export"):
        export_nir(model, other)
    with pytest.raises(OutputError, match=r"the suffix \.nir"):
        export_nir(model, tmp_path / "network.onnx")


def test_parameters_are_those_of_the_neurons(tmp_path: Path) -> None:
    model, file = psvit.load_model("nir_residual"), tmp_path / "network.nir"
    export_nir(model, file)
    nodes = nir.read(file).nodes
    below = float(np.nextafter(np.float32(0.8), np.float32(0)))
    a = nodes["a_lif"]
    assert a.tau.shape == (6, 8, 8)
    assert set(a.tau.ravel()) == {3.0 * nir_file.DT}
    assert set(a.r.ravel()) == {3.0}  # the input does not decay
    assert set(a.v_threshold.ravel()) == {below}
    assert set(nodes["stem_lif"].r.ravel()) == {1.0}
    assert set(nodes["b_lif"].r.ravel()) == {1 / nir_file.DT}
    tau = nodes["last_lif"].tau.ravel()
    assert np.allclose(tau, 1.5 * nir_file.DT, rtol=1e-5)
    stem: Any = model.get_submodule("net.stem")
    norm: Any = model.get_submodule("net.stem_bn")
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = (stem.weight * scale.view(-1, 1, 1, 1)).detach().numpy()
    assert np.allclose(nodes["stem"].weight, folded, rtol=1e-5)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_families_are_refused_by_the_nodes_that_nir_lacks(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    with pytest.raises(ModelError, match="products of two signals, which attention needs") as e:
        export_nir(model, tmp_path / "network.nir")
    named = str(e.value).partition("(")[2].partition(")")[0].partition(" and ")[0].split(", ")
    paths = dict(model.named_modules())
    assert named
    assert set(named) <= set(paths)
    assert ("integer neurons" in str(e.value)) == name.startswith("sdt_v3")
    assert not list(tmp_path.iterdir())


class Changed(nn.Module):
    """A small network with one thing that NIR lacks."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.lif: nn.Module = neuron.LIFNode(v_threshold=0.5)
        self.pool: nn.Module = nn.Identity()
        self.head = nn.Linear(4 * 36, CLASSES)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.pool(self.lif(self.bn(self.conv(x)))).flatten(1))
        return out


class Product(Changed):
    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(self.bn(self.conv(x)))
        out: Tensor = self.head((x * self.pool(x)).flatten(1))
        return out


class Alone(Changed):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        out: Tensor = self.head(self.lif(x + self.bn(x)).flatten(1))
        return out


class Loop(Changed):
    T = 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(Loop, self).forward(x) for _ in range(self.T)])


class InPlace(Changed):
    """Changes a signal in place that it reads again under another name."""

    def forward(self, x: Tensor) -> Tensor:
        x = same = self.lif(self.bn(self.conv(x)))
        same += self.pool(x)
        out: Tensor = self.head(x.flatten(1))
        return out


class Unread(Changed):
    """Runs layers that nothing depends on."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(self.bn(self.conv(x)))
        self.pool(x)
        out: Tensor = self.head(x.flatten(1))
        return out


class Shifted(Changed):
    """Adds a parameter, and splits a signal: each is named once, and nothing that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 4, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(self.bn(self.conv(x)) + self.shift)
        one, other = x.chunk(2, 1)
        out: Tensor = self.head(self.pool(torch.cat([one, other], 1)).flatten(1))
        return out


class Between(Changed):
    """Identity and Dropout between a layer and its BatchNorms; a name with a slash."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.bn_2 = nn.Dropout(0.5), nn.BatchNorm2d(4)
        self.add_module("a/b", nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(self.bn_2(self.bn(self.pool(self.drop(self.conv(x))))))
        out: Tensor = self.head(torch.flatten(self._modules["a/b"](x), start_dim=1))  # type: ignore[misc]
        return out


class Read(Changed):
    """Something else reads a layer's output before its BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x))
        out: Tensor = self.head((self.lif(x) + self.bn(x)).flatten(1))
        return out


class Own(neuron.LIFNode):  # type: ignore[misc]
    """A neuron that may compute anything."""


class Shaped(Changed):
    def forward(self, x: Tensor) -> Tensor:
        rows, *_ = x.shape
        return super().forward(x.reshape(rows, *SHAPE))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "soft": (lambda: Changed(lif=neuron.LIFNode(v_reset=None)), r"lif \(LIFNode with soft reset"),
    "restless": (lambda: Silent(v_reset=-1.0), r"lif \(LIFNode with reset to -1.0"),
    "own": (lambda: Changed(lif=Own()), r"lif \(Own\)"),
    "max": (lambda: Changed(pool=nn.MaxPool2d(3, 1, 1)), r"pool \(MaxPool2d\)"),
    "groups": (lambda: Changed(pool=nn.Conv2d(4, 4, 1, groups=4)), r"pool \(Conv2d with groups"),
    "product": (lambda: Product(pool=nn.AvgPool2d(3, 1, 1)), "mul of 2 signals"),
    "alone": (Alone, r"bn \(BatchNorm2d that follows"),
    "shaped": (Shaped, "cannot be traced"),
    "mode": (lambda: Changed(lif=neuron.IFNode(step_mode="m")), "needs? 's'"),
    "in_place": (lambda: warmed(InPlace(pool=nn.AvgPool2d(3, 1, 1))), "reads again under"),
    "unread": (lambda: Unread(pool=nn.AvgPool2d(3)), r"for: pool \(a layer whose output nothing"),
    "shifted": (Shifted, r"for: shift \(a tensor that is no layer's\)\. It"),
    "read": (Read, r"bn \(BatchNorm2d that follows"),
    "loop": (Loop, r"lif \(LIFNode, called again: register the network with T="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nir_lacks_is_named(name: str, tmp_path: Path) -> None:
    build, reason = REFUSED[name]
    register(f"nir_{name}", build)
    model = psvit.load_model(f"nir_{name}")
    with pytest.raises(ModelError, match=reason):
        export_nir(model, tmp_path / "network.nir")
    with pytest.raises(ModelError, match=reason):
        nir_file.check_expressible(model)
    assert not list(tmp_path.iterdir())


def test_batch_norms_are_folded_through_what_changes_nothing(tmp_path: Path) -> None:
    register("nir_between", lambda: warmed(Between()))
    done = export_nir(psvit.load_model("nir_between"), tmp_path / "between.nir", images())
    assert done.agreement.n_equal_logits >= 15  # of 16
    nodes = nir.read(done.path).nodes
    assert set(nodes) == {"input", "conv", "lif", "a_b", "flatten", "head", "output"}


def test_without_the_package_an_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nir_file, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install nir"):
        export_nir(psvit.load_model("nir_chain"), tmp_path / "network.nir")


def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = nir_file._folded

    def wrong(*arguments: Any) -> Any:
        weight, bias = folded(*arguments)
        return weight * math.pi, bias

    monkeypatch.setattr(nir_file, "_folded", wrong)
    with pytest.raises(ExportError, match="computes something else"):
        export_nir(psvit.load_model("nir_chain"), tmp_path / "network.nir")
    assert not list(tmp_path.iterdir())


def test_single_steps_and_frames(tmp_path: Path) -> None:
    register("nir_single", lambda: warmed(Changed()))
    model, file = psvit.load_model("nir_single"), tmp_path / "single.nir"
    assert export_nir(model, file).agreement.n_equal_logits >= 7  # of 8
    assert nir.read(file).metadata["time_steps"] == "1"
    frames = torch.stack([images(6), images(12)[6:]], 1)  # (6, 2, C, H, W)
    done = export_nir(psvit.load_model("nir_chain"), tmp_path / "frames.nir", frames)
    assert done.agreement.n_equal_logits >= 5  # of 6
