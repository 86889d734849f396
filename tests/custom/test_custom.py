"""Custom models: finding, verifying and rejecting groups; sweep, plan, prune, load."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

import psvit_core as psvit
from psvit_core.cli import main
from psvit_core.custom import CustomModel, load_plugin
from psvit_core.custom import plugin as plugins
from psvit_core.errors import CheckpointError, InvalidPlanError, ModelError
from psvit_core.evaluate import measure
from psvit_core.groups import plan_from_kept, summarize
from psvit_core.jobs import client
from psvit_core.metrics.spikes import count_spikes
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import ChannelGroup, ModelSummary, Subject
from psvit_core.runtime import Run
from psvit_core.sensitivity.sweep import sweep
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo import cards
from psvit_core.zoo.base import SpikingModel
from tests import own_models
from tests.own_models import CLASSES, SHAPE, Mixed, Silent, Tokens, spikformer, warmed
from tests.patience import JOB
from tests.tiny import tiny_data

cards._custom_cards.clear()  # other tests run over all registered models
PLUGIN = Path(own_models.__file__)
TOLERANCE = 1e-9
ATTENTION = ("blocks.0.attn.qkv_conv_bn", "blocks.1.attn.qkv_conv_bn")
SPIKFORMER_GROUPS = {
    "patch_embed.stages.0.conv_bn.block": ("conv", 4, None),
    "patch_embed.stages.1.conv_bn.block": ("conv", 8, None),
    "patch_embed.stages.2.conv_bn.block": ("conv", 16, None),
    "patch_embed.stages.3.conv_bn.block": ("residual", 32, None),
    ATTENTION[0]: ("attention", 32, 4),
    "blocks.0.mlp.fc1": ("conv", 64, None),
    ATTENTION[1]: ("attention", 32, 4),
    "blocks.1.mlp.fc1": ("conv", 64, None),
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register the custom models for this module's tests only."""
    own_models.register()
    yield
    cards._custom_cards.clear()
    plugins._state.loaded.clear()
    plugins._state.store = None


Own = Callable[[str], CustomModel]


@pytest.fixture(scope="module")
def own() -> Own:
    """Return a loader that caches models; tests must not change them."""
    own_models.register()
    loaded: dict[str, CustomModel] = {}

    def load(name: str) -> CustomModel:
        if name not in loaded:
            model = psvit.load_model(name)
            assert isinstance(model, CustomModel)
            loaded[name] = model
        return loaded[name]

    return load


def images(model: SpikingModel, n: int = 3, seed: int = 7) -> Tensor:
    """Return random images, different from those of the check."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, *model.input_shape, generator=random)


def some(group: ChannelGroup, seed: int = 1) -> tuple[int, ...]:
    """Return about two thirds of the units at random, equally many per head."""
    random = torch.Generator().manual_seed(seed)
    heads = group.heads or 1
    width = group.n_units // heads
    kept: list[int] = []
    for head in range(heads):
        chosen = torch.randperm(width, generator=random)[: width - max(1, width // 3)]
        kept += (chosen + head * width).tolist()
    return tuple(sorted(kept))


def run_counting(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return the logits, and the spike count of every neuron layer."""
    sums: dict[str, float] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_m: nn.Module, _i: Any, out: Tensor) -> None:
            sums[name] = sums.get(name, 0.0) + float(out.sum())

        return module.register_forward_hook(hook)

    handles = [
        watch(name.removeprefix("model."), module)
        for name, module in model.named_modules()
        if isinstance(module, neuron.BaseNode)
    ]
    with torch.no_grad():
        logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, sums


def assert_exact(
    model: SpikingModel, kept: Mapping[str, Sequence[int]], least_change: float = 1e-4
) -> None:
    x = images(model).double()
    unpruned, spikes = run_counting(model, x)
    assert all(count > 0 for count in spikes.values()), (
        spikes
    )  # a silent network passes any comparison
    plan = plan_from_kept(model, kept)
    expected, expected_spikes = run_counting(psvit.silenced(model, plan), x)
    got, got_spikes = run_counting(psvit.apply_plan(model, plan), x)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
    assert got_spikes == expected_spikes
    assert float((got - unpruned).abs().max()) > least_change


# ---- SpikingJelly's Spikformer ---------------------------------------------------------------


def test_groups_of_spikingjellys_spikformer(own: Own) -> None:
    model = own("own_spikformer")
    found = {g.group_id: (g.kind, g.n_units, g.heads) for g in psvit.find_groups(model)}
    assert found == SPIKFORMER_GROUPS
    assert model.refused == {"head": "Its units are the model's outputs."}
    attention = next(g for g in psvit.find_groups(model) if g.group_id == ATTENTION[0])
    assert attention.label == "blocks.0 · attn.qkv_conv_bn"
    q, k, v = (f"net.blocks.0.attn.qkv_conv_bn.0.parts.{i}.weight" for i in range(3))
    assert {(q, 0), (k, 0), (v, 0)} < set(attention.writers)
    assert attention.readers == (("net.blocks.0.attn.proj_conv_bn.0.weight", 1),)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert all(name in shapes for g in psvit.find_groups(model) for name, _ in g.writers)


def test_spikformer_groups_alone_and_together(own: Own) -> None:
    model = own("own_spikformer")
    exact = _double(model)
    groups = psvit.find_groups(model)
    for group in groups:
        assert_exact(exact, {group.group_id: some(group)})
    assert_exact(exact, {g.group_id: some(g) for g in groups})
    report = psvit.check_groups(model)
    assert report.accepted == tuple(SPIKFORMER_GROUPS)
    assert (report.refused, report.silent, report.uncounted) == (model.refused, (), ())


def _double(model: SpikingModel) -> SpikingModel:
    import copy

    doubled: SpikingModel = copy.deepcopy(model).double()
    return doubled


def test_same_output_as_the_users_network_and_no_state(own: Own) -> None:
    model, x = own("own_spikformer"), images(own("own_spikformer"))
    theirs = spikformer()
    with torch.no_grad():
        expected = theirs(x).mean(0)
        first, second = model(x), model(x)
    functional.reset_net(theirs)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert all(isinstance(m.v, float) for m in model.modules() if isinstance(m, neuron.BaseNode))


def test_sizes_and_spikes_of_the_pruned_spikformer(own: Own) -> None:
    model = own("own_spikformer")
    kept = {g.group_id: some(g) for g in psvit.find_groups(model)}
    plan, summary = plan_from_kept(model, kept), summarize(model, {})
    small = psvit.apply_plan(model, plan)
    assert plan_size(summary, plan).params == sum(p.numel() for p in small.parameters())
    assert plan_size(summary, plan) == plan_size(summarize(small, {}), None)
    assert plan_size(summary, None).params == sum(p.numel() for p in spikformer().parameters())
    widths = {name: len(units) for name, units in kept.items()}
    exact, x = _double(model), images(model).double()
    with torch.no_grad(), count_spikes(exact, widths) as silent:
        psvit.silenced(exact, plan_from_kept(exact, kept))(x)
    exact_small = psvit.apply_plan(exact, plan_from_kept(exact, kept))
    with torch.no_grad(), count_spikes(exact_small) as pruned:
        exact_small(x)
    assert torch.equal(torch.cat(silent.sops), torch.cat(pruned.sops))
    assert float(torch.cat(pruned.sops).min()) > 0
    stem = "net.patch_embed.stages.0.conv_bn.block.0"
    assert model.real_fed() == {stem: 4, "net.head": 4}  # the head reads a mean over tokens


# ---- other networks: accepted and rejected groups --------------------------------------------


def test_invalid_groups_are_rejected_with_reason(own: Own) -> None:
    model = own("own_mixed")
    assert [g.group_id for g in psvit.find_groups(model)] == ["good", "last"]
    assert set(model.refused) == {"fixed", "bare", "cat_a", "head", "unused"}
    assert model.refused["fixed"].startswith("It cannot run with fewer units: RuntimeError: shape")
    assert model.refused["bare"].startswith("bare has no BatchNorm between it and cat_")
    assert (
        model.refused["cat_a"] == "last reads these units together with others (a concatenation)."
    )
    assert model.refused["unused"] == "It is never called."
    report = psvit.check_groups(model)
    assert report.accepted == ("good", "last")
    assert report.refused == model.refused
    assert psvit.check_groups(psvit.load_model("sdt_v1_digits")).refused == {}  # of the zoo, too


def test_a_unit_of_a_flattened_map_has_one_index_per_pixel(own: Own) -> None:
    model = own("own_mixed")
    assert model.get_parameter("net.head.weight").shape == (CLASSES, 6, 4)
    exact = _double(model)
    assert_exact(exact, {"last": (0, 2, 5)})
    assert_exact(exact, {"good": (1, 2, 4), "last": (1, 3)})
    small = psvit.apply_plan(model, plan_from_kept(model, {"last": (0, 2, 5)}))
    assert small.get_parameter("net.head.weight").shape == (CLASSES, 3, 4)
    x = images(model)
    with torch.no_grad():
        assert torch.equal(model(x), warmed(Mixed(), T=4)(x.repeat(4, 1, 1, 1, 1)).mean(0))


def test_heads_are_respected(own: Own) -> None:
    model = own("own_tokens")
    assert {g.group_id: (g.kind, g.n_units, g.heads) for g in psvit.find_groups(model)} == {
        "embed": ("residual", 12, None),
        "q": ("attention", 9, 3),
    }
    exact = _double(model)
    assert_exact(exact, {"q": (0, 2, 3, 4, 7, 8)})
    assert_exact(exact, {"q": (1, 5, 6), "embed": (0, 3, 4, 5, 9)})
    with pytest.raises(InvalidPlanError, match="every head must keep the same number"):
        plan_from_kept(model, {"q": (0, 1, 2, 3, 4, 5)})


def test_macs_and_sops_of_a_network_that_loops_over_time(own: Own) -> None:
    model = own("own_tokens")
    assert (model.T, model.real_fed()) == (3, {"net.embed": 3, "net.head": 3})
    tokens, places = 4, 12 * 4 * 4
    expected_macs = places * tokens + 3 * 12 * 9 * tokens + 9 * 12 * tokens + 12 * CLASSES
    assert plan_size(summarize(model, {}), None).macs == expected_macs
    x = images(model)
    _, spikes = run_counting(model, x)
    with torch.no_grad(), count_spikes(model) as count:
        model(x)
    expected = spikes["net.lifs.3"] * 3 * 9 + spikes["net.attn_lif"] * 12
    assert float(torch.cat(count.sops).sum()) == expected
    with torch.no_grad(), count_spikes(model) as alone:
        model(x[:1])
    assert float(alone.sops[0][0]) == float(count.sops[0][0])  # images are counted separately


@pytest.mark.parametrize(
    ("name", "reason"), [("own_silent", "No neuron fires"), ("own_restless", "v_reset=-1.0")]
)
def test_no_groups_if_nothing_can_be_verified(own: Own, name: str, reason: str) -> None:
    model = own(name)
    assert psvit.find_groups(model) == ()
    assert reason in model.refused["conv"]


class NonDeterministic(Tokens):
    """Adds noise in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand(()))


class Detached(Tokens):
    """No gradient reaches the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class PositionEmbedding(Tokens):
    """Adds a parameter to the stream, which silencing at a BatchNorm does not remove."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.full((1, 4, 12), 0.3))

    def step(self, x: Tensor) -> Tensor:
        x = self.lifs[3](self.embed_bn(self.embed(x))).flatten(2).transpose(1, 2)
        x = x + self.position
        out: Tensor = self.head(self.proj_bn(self.proj(self.q(x)).transpose(1, 2)).mean(2))
        return out


def test_unverifiable_networks_are_rejected() -> None:
    def load(net: Callable[[], nn.Module], **changes: Any) -> SpikingModel:
        shape = {"input_shape": SHAPE, "num_classes": CLASSES, **changes}
        psvit.register_model("trial", lambda: warmed(net()), **shape)
        return psvit.load_model("trial")

    noisy = load(NonDeterministic)
    assert isinstance(noisy, CustomModel)
    assert "must be deterministic" in noisy.refused["embed"]
    embedded = load(PositionEmbedding)
    assert isinstance(embedded, CustomModel)
    assert [g.group_id for g in embedded.channel_groups()] == ["proj"]
    assert "Removing is not silencing" in embedded.refused["embed"]
    assert "no BatchNorm" in embedded.refused["q"]
    with pytest.raises(ModelError, match="No gradient reaches the logits"):
        load(Detached)
    with pytest.raises(ModelError, match=r"returns \(2, 10\) for 2 images; it must return logits"):
        load(Tokens, num_classes=7)
    with pytest.raises(ModelError, match="cannot run on 2 images"):
        load(Tokens, input_shape=(3, 8, 8))
    with pytest.raises(ModelError, match="cannot be built: ZeroDivisionError"):
        load(lambda: nn.Linear(1, 1 // 0))


def test_time_steps_can_be_set_only_if_the_model_repeats_images(own: Own) -> None:
    looped = own("own_tokens")
    with pytest.raises(ModelError, match="runs its 3 time steps itself"):
        looped.set_time_steps(2)
    sequence = psvit.load_model("own_mixed")
    x = images(sequence)
    with torch.no_grad():
        frames = sequence(x.unsqueeze(1).repeat(1, 2, 1, 1, 1))  # (B, T, C, H, W)
        sequence.set_time_steps(2)
        assert torch.equal(sequence(x), frames)
    assert sequence.T == 2
    assert sequence.real_fed() == {"net.good": 2, "net.head": 2}


class MatrixHead(nn.Module):
    """Multiplies its spikes with a bare matrix, which is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_bn = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.second, self.second_bn = nn.Conv2d(4, 2, 3, bias=False), nn.BatchNorm2d(2)
        self.lif = neuron.LIFNode()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 32 * CLASSES).view(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second_bn(self.second(torch.relu(self.first_bn(self.first(x)))))
        return self.lif(x).flatten(1) @ self.weight


def test_a_network_without_layers_that_read_spikes() -> None:
    psvit.register_model(
        "own_unread", lambda: warmed(MatrixHead()), input_shape=SHAPE, num_classes=CLASSES
    )
    model = psvit.load_model("own_unread")
    x = images(model, 6)
    data = dataclasses.replace(
        tiny_data("sdt_v1", 6), labels=(0, 1, 2, 3, 4, 5), load=lambda i: x[i]
    )
    run = Run(batch=4)
    measured = measure(model, data, run=run)
    assert measured.sops == 0
    assert measured.energy_pj > 0  # from layers that read real values
    table = sweep(model, data, ratios=(0.5,), run=run, memory_budget=1)
    [row] = table.rows
    assert (row.group_id, row.sops, table.baseline_sops) == ("first", 0, 0)
    plan = plan_from_ratios(table.summary, {"first": 0.5}, criterion=table.criterion)
    assert row.accuracy == measure(model, data, plan, run=run).accuracy
    assert row.kl == pytest.approx(measure(model, data, plan, run=run).kl, rel=1e-4)


# ---- registering, plugins, files ---------------------------------------------------------------


def test_registering() -> None:
    assert "own_spikformer" in psvit.list_models()
    assert psvit.model_card("own_spikformer").title == "SpikingJelly's Spikformer"
    for name, shape in (("sdt_v1_digits", SHAPE), ("a.b", SHAPE), ("oblong", (1, 8, 9))):
        with pytest.raises(ModelError):
            psvit.register_model(name, Tokens, input_shape=shape, num_classes=2)
    assert "a.b" not in psvit.list_models()


def test_weights_from_a_file(tmp_path: Path) -> None:
    net = warmed(Tokens())
    net.get_submodule("head").bias.data.fill_(3.0)  # type: ignore[operator]
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = psvit.load_model("own_tokens", tmp_path / "w.pth")
    assert torch.equal(model.get_parameter("net.head.bias"), torch.full((CLASSES,), 3.0))
    torch.save({"head.bias": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit own_tokens"):
        psvit.load_model("own_tokens", tmp_path / "other.pth")


def test_pruned_files_load_and_can_be_pruned_again(own: Own, tmp_path: Path) -> None:
    model = own("own_spikformer")
    kept = {g.group_id: some(g) for g in psvit.find_groups(model)}
    small = psvit.apply_plan(model, plan_from_kept(model, kept))
    path = psvit.save_pruned(small, tmp_path / "small.safetensors")
    again = psvit.load_model(path)
    x = images(model)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
    assert again.real_fed() == model.real_fed()
    assert psvit.find_groups(again) == psvit.find_groups(small)
    assert psvit.check_groups(again).accepted == tuple(SPIKFORMER_GROUPS)
    twice = psvit.apply_plan(again, plan_from_kept(again, {ATTENTION[0]: (0, 7, 13, 20)}))
    third = kept[ATTENTION[0]]
    assert twice.provenance["kept"][ATTENTION[0]] == [third[i] for i in (0, 7, 13, 20)]
    last = psvit.load_model(psvit.save_pruned(twice, tmp_path / "twice.safetensors"))
    with torch.no_grad():
        assert torch.equal(last(x), twice(x))

    psvit.register_model(
        "own_spikformer", Tokens, input_shape=(1, 16, 16), num_classes=CLASSES
    )  # another network under the same name
    with pytest.raises(CheckpointError, match="Its groups are not those of own_spikformer"):
        psvit.load_model(path)
    cards._custom_cards.clear()
    with pytest.raises(CheckpointError, match="--plugin"):
        psvit.load_model(path)


def test_changed_code_is_another_model(tmp_path: Path) -> None:
    source = PLUGIN.read_text(encoding="utf-8") + "\nregister()\n"
    hashes: list[str] = []
    for text in (source, source.replace("x.mean(1)", "x.amax(1)")):
        path = tmp_path / f"changed_{len(hashes)}.py"
        path.write_text(text, encoding="utf-8")
        load_plugin(str(path))
        hashes.append(summarize(psvit.load_model("own_tokens"), {}).weights_hash)
    assert hashes[0] != hashes[1]


def test_other_parameters_are_another_model() -> None:
    """Parameters may come from a file without modules, so code alone does not identify them."""

    class Net(Tokens):
        def __init__(self, tau: float = 2.0, scale: float = 1.0) -> None:
            super().__init__()
            self.attn_lif.tau = tau
            self.scale = scale  # not in the module's repr

        def extra_repr(self) -> str:
            return f"created by {object()!r}"  # a different address each time

    def code(**parameters: float) -> str:
        return plugins._code_digest(Net(**parameters), Net)

    assert code() == code()
    assert len({code(), code(tau=4.0), code(scale=0.5)}) == 3

    def build(tau: float) -> nn.Module:
        torch.manual_seed(0)
        net = Silent()
        net.lif.tau = tau
        return net

    hashes = []
    for tau in (2.0, 2.0, 4.0):
        psvit.register_model(
            "own_tau", functools.partial(build, tau), input_shape=SHAPE, num_classes=CLASSES
        )
        hashes.append(summarize(psvit.load_model("own_tau"), {}).weights_hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.usefixtures("own_store")
def test_all_commands_on_a_custom_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards._custom_cards.clear()
    own = ("--plugin", PLUGIN)
    sweep, plan, out = (tmp_path / name for name in ("s.json", "p.json", "small.safetensors"))
    assert "own_spikformer" in [m["name"] for m in run(capsys, "models", *own)["models"]]
    groups = run(capsys, "groups", "own_spikformer", *own)
    assert [g["group_id"] for g in groups["groups"]] == list(SPIKFORMER_GROUPS)
    assert groups["refused"] == {"head": "Its units are the model's outputs."}
    table = run(
        capsys,
        "sweep",
        "own_spikformer",
        *own,
        *("--limit", "12", "--ratios", "0.5", "--recover", "none", "--out", sweep),
    )
    assert len(table["rows"]) == 8
    planned = run(
        capsys,
        "plan",
        "own_spikformer",
        *own,
        "--sweep",
        sweep,
        "--memory-saving",
        "0.3",
        "--measure",
        "12",
        "--out",
        plan,
    )
    assert planned["measured"]["memory_saving"] >= 0.3
    once = ("--recover", "none")  # as measured while planning
    pruned = run(capsys, "prune", "own_spikformer", *own, "--plan", plan, *once, "--out", out)
    assert pruned["memory_saving"] == planned["memory_saving"]
    result = run(capsys, "evaluate", out, *own, "--limit", "12")
    assert result["accuracy"] == planned["measured"]["accuracy"]
    assert result["sops"] == pytest.approx(planned["measured"]["sops"])
    assert result["memory_saving"] == pytest.approx(pruned["memory_saving"])
    cards._custom_cards.clear()
    for command in (("evaluate", out), ("groups", out), ("sweep", out, "--out", sweep)):
        assert "registers it with --plugin" in fails(capsys, *command)


def test_results_of_the_check_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugin(str(PLUGIN), Store(tmp_path / "cache"))
    first = psvit.load_model("own_mixed")
    monkeypatch.setattr(plugins, "accept_groups", lambda *_: pytest.fail("checked again"))
    again = psvit.load_model("own_mixed")
    assert isinstance(first, CustomModel)
    assert isinstance(again, CustomModel)
    assert (again.structure, again.refused) == (first.structure, first.refused)
    assert summarize(again, {}) == summarize(first, {})
    monkeypatch.undo()
    torch.save(warmed(Tokens()).state_dict(), tmp_path / "w.pth")
    psvit.load_model("own_tokens", tmp_path / "w.pth")  # other weights: checked


@pytest.mark.usefixtures("own_store")
def test_bad_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "broken.py": ("def f(:", "SyntaxError"),
        "raises.py": ("1 / 0", "ZeroDivisionError"),
        "lacks.py": ("import no_such_module_anywhere", "no_such_module_anywhere"),
        "empty.py": ("import math", "registers no model"),
        "taken.py": (
            "from psvit_core import register_model as r\n"  # noqa: ISC004
            "r('sdt_v1_digits', print, input_shape=(1, 8, 8), num_classes=2)",
            "is a built-in model",
        ),
    }
    cards._custom_cards.clear()
    for name, (text, message) in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert message in fails(capsys, "groups", "own_mixed", "--plugin", tmp_path / name)
    assert "There is no plugin 'nope'" in fails(capsys, "evaluate", "x", "--plugin", "nope")
    assert "no plugin 'nope.a'" in fails(capsys, "evaluate", "x", "--plugin", "nope.a")
    assert "There is no plugin file" in fails(capsys, "evaluate", "x", "--plugin", "nope.py")
    own_models.register()
    load_plugin("tests.own_models")  # already imported, so its models are registered
    silent = ("sweep", "own_silent", "--plugin", PLUGIN, "--data", "digits", "--limit", "2")
    assert main([*map(str, silent), "--out", str(tmp_path / "s.json")]) == 2
    assert "no channel group that can be removed exactly" in capsys.readouterr().err


def test_the_worker_loads_the_plugin(tmp_path: Path) -> None:
    subject = Subject(model="own_mixed", plugin=str(PLUGIN))
    assert Subject.from_dict(subject.to_dict()) == subject
    store = Store(tmp_path / "cache")
    workspace = Workspace(subject, store)
    job = workspace.request_summary()
    deadline = time.monotonic() + JOB
    while (job := client.find_job(store, job.id)).active and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    assert job.state == "done", job.error
    summary = workspace.summary()
    assert isinstance(summary, ModelSummary)
    assert list(summary.by_id) == ["good", "last"]


def test_importing_the_package_stays_light() -> None:
    program = (
        "import sys, psvit_core, psvit_core.tasks.sweep\n"
        "assert {'register_model', 'check_groups'} <= set(dir(psvit_core))\n"
        "assert not {'torch', 'spikingjelly', 'torch_pruning'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PLUGIN.parents[1], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
