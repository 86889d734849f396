"""Native programs: the same numbers as the steps that they are made of, one by one in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core.incremental import executor
from psvit_core.incremental.builder import ProgramInput
from psvit_core.incremental.cells import CellOutput, Task
from psvit_core.incremental.executor import IncrementalExecutor
from psvit_core.incremental.fusion import fold
from psvit_core.incremental.graph import DerivedWeight, Value, record_graph
from psvit_core.incremental.lowering import first_unsupported
from psvit_core.incremental.program import ProgramRunner, matches_torch
from psvit_core.kernels import lif, native
from psvit_core.kernels.ops import UnsupportedError
from psvit_core.runtime import Run, channels_last
from psvit_core.sensitivity.prepare import prepare
from psvit_core.sensitivity.sweep import make_spec
from psvit_core.zoo.layers import bn_and_pad, scale_channels
from psvit_core.zoo.products import ChunkProduct, patch_scores, patch_values
from tests.tiny import NAMES, tiny_data, tiny_model

pytestmark = pytest.mark.skipif(
    not native.available(torch.empty(0)), reason="no C compiler on this machine"
)
RATIOS = (0.25, 0.75)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def run_both(
    function: Callable[..., Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    weights: Mapping[str, Tensor] | None = None,
    *,
    spikes: bool = False,
    order: torch.memory_format = torch.contiguous_format,
    per_run: int = 2,
) -> tuple[Tensor, Tensor]:
    """What a function of 5 images (and weights) gives natively and in torch, (5, n) each."""
    torch.manual_seed(0)
    x = torch.randn(5, *shape, dtype=dtype)
    x = (x > 0.5).to(dtype) if spikes else x
    x = x.to(memory_format=order)
    real = {name: w.to(dtype) for name, w in (weights or {}).items()}
    empty = {name: w.to("meta") for name, w in real.items()}
    graph = record_graph(lambda x: function(x, **empty), empty, shape, dtype)
    graph, _ = fold(graph, frozenset())
    made = {
        m for step in graph.nodes for m in step.derived_weights() if isinstance(m, DerivedWeight)
    }
    everything: dict[Any, Any] = {**real, **{m: m.compute(real) for m in made}}
    assert isinstance(graph.result, Value)
    runner = ProgramRunner(graph, {graph.result.index}, dtype)
    with torch.no_grad():
        found = runner.run(
            range(len(graph.nodes)),
            {0: ProgramInput(x, 0, 5, None)},
            {},
            everything,
            torch.tensor([4, 0, 2]),
            per_run,
        )
        return found[graph.result.index], function(x, **real)[[4, 0, 2]]


def close(got: Tensor, wanted: Tensor) -> None:
    tolerance = 1e-4 if got.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


# ---- operations ------------------------------------------------------------------------------


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "sum of all but images": (lambda x: x.sum((1, 2, 3)), (3, 5, 7)),
    "sum of channels": (lambda x: x.sum(1).flatten(1), (3, 5, 7)),
    "sum that keeps axes": (lambda x: (x * x.sum((2, 3), keepdim=True)).flatten(1), (9, 4, 5)),
    "mean": (lambda x: x.mean((2, 3)), (33, 4, 4)),
    "number": (lambda x: (x * 3 - 1).flatten(1), (3, 5)),
    "difference of views": (lambda x: (x - x.transpose(1, 2)).flatten(1), (4, 4)),
    "quotient": (lambda x: (x / x.sum(1, keepdim=True)).flatten(1), (3, 4)),
    "copy that no view can be": (lambda x: x.transpose(1, 2).flatten(1) * 1, (3, 4)),
    "part": (lambda x: x.unflatten(1, (2, 3))[:, 1] * 2, (6,)),
    "spread": (lambda x: (x.unsqueeze(1).expand(-1, 3, -1) + 1).flatten(1), (4,)),
    "pooling": (lambda x: F.max_pool2d(x, 3, stride=2, padding=1).flatten(1), (5, 7, 8)),
    "pooling without overlap": (lambda x: F.max_pool2d(x, 2).flatten(1), (5, 6, 8)),
    "product": (lambda x: (x @ x.transpose(1, 2)).flatten(1), (5, 7)),
    "product of heads": (lambda x: _attention(x).flatten(1), (24, 10)),
    "neuron": (
        lambda x: lif.lif(x.unflatten(1, (4, 2)).transpose(0, 1), 0.3).sum((0, 2, 3)),
        (8, 6),
    ),
    "neuron of a repeated image": (
        lambda x: lif.lif(x.unsqueeze(0).expand(4, -1, -1, -1), 0.3).sum((0, 2, 3)),
        (8, 6),
    ),
    "integer neuron": (lambda x: lif.integer_lif(x, 4, 2).flatten(1), (3, 5)),
    "integer neuron, halves up": (lambda x: _on_ties(x, half_up=True).flatten(1), (3, 5)),
    "integer neuron of a part": (lambda x: _on_ties(x[:, ::2], half_up=True).flatten(1), (6, 5)),
    "integer neuron, halves to even": (lambda x: _on_ties(x, half_up=False).flatten(1), (3, 5)),
}


def _on_ties(x: Tensor, *, half_up: bool) -> Tensor:
    levels = lif.integer_lif(x * 3, 4, 1)  # whole numbers
    return lif.integer_lif(levels - 0.5, 4, 2, half_up)


def _attention(x: Tensor) -> Tensor:
    heads = x.unflatten(1, (3, -1)).transpose(2, 3)
    return ((heads @ heads.transpose(2, 3)) @ heads * 0.5).transpose(2, 3).flatten(1, 2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(name: str, dtype: torch.dtype) -> None:
    function, shape = FUNCTIONS[name]
    close(*run_both(function, shape, dtype))


@pytest.mark.parametrize(("side", "width", "heads"), [(14, 64, 8), (7, 24, 8), (6, 32, 4)])
def test_chunk_attention_of_sides_that_are_no_power_of_two(
    side: int, width: int, heads: int, dtype: torch.dtype
) -> None:
    """The scale 1 / side is rounded then; values on a neuron's threshold must round alike."""
    product = ChunkProduct(heads, chunk_size=2)

    def function(x: Tensor) -> Tensor:
        x = x.unflatten(1, (4, 3 * width)).transpose(0, 1)
        q, k, v = x[:, :, :width], x[:, :, width : 2 * width], x[:, :, 2 * width :]
        return product(q, k, v, side).transpose(0, 1).flatten(1)

    got, wanted = run_both(function, (4 * 3 * width, side * side), dtype, spikes=True)
    assert got.abs().max() > 0
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("c_in", "c_out", "kernel", "stride", "padding", "spikes"),
    [
        (3, 5, 1, 1, 0, True),
        (17, 40, 3, 1, 1, True),
        (33, 64, 3, 2, 1, False),
        (64, 130, 1, 1, 0, True),
        (20, 16, 2, 2, 0, False),
        (1, 129, 7, 2, 3, False),
    ],
)
def test_convolutions(
    c_in: int,
    c_out: int,
    kernel: int,
    stride: int,
    padding: int,
    spikes: bool,
    order: torch.memory_format,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(1)
    weights = {"w": torch.randn(c_out, c_in, kernel, kernel), "b": torch.randn(c_out)}

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x, w, b, (stride, stride), (padding, padding), (1, 1), 1).flatten(1)

    close(*run_both(function, (c_in, 7, 6), dtype, weights, spikes=spikes, order=order))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("c_in", "c_out", "groups", "kernel", "stride", "bias"),
    [
        (32, 32, 4, 3, 1, True),
        (12, 24, 3, 1, 1, False),
        (8, 24, 8, 3, 2, True),
        (6, 2, 2, 3, 1, False),
    ],
    ids=["grouped", "wider 1x1", "several filters a channel", "one filter a group"],
)
def test_grouped_convolutions(
    c_in: int,
    c_out: int,
    groups: int,
    kernel: int,
    stride: int,
    bias: bool,
    order: torch.memory_format,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(1)
    weights = {
        "w": torch.randn(c_out, c_in // groups, kernel, kernel),
        **({"b": torch.randn(c_out)} if bias else {}),
        **{name: torch.rand(c_out) + 0.5 for name in ("mean", "var", "gamma", "beta")},
    }

    def function(x: Tensor, w: Tensor, b: Tensor | None = None, **norm: Tensor) -> Tensor:
        pad = kernel // 2
        x = F.conv2d(x, w, b, (stride, stride), (pad, pad), (1, 1), groups)
        n = norm
        return F.batch_norm(x, n["mean"], n["var"], n["gamma"], n["beta"]).flatten(1)

    close(*run_both(function, (c_in, 7, 6), dtype, weights, spikes=True, order=order))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_products_of_dual_spike_attention(order: torch.memory_format, dtype: torch.dtype) -> None:
    """Three heads of 4 spiking channels, with 4 channels of y1 and 2 of y2 each; 5 patches."""
    torch.manual_seed(1)
    weights = {"w": torch.randn(18, 12, 1, 5), "f": torch.rand(1, 3, 1, 1) + 0.5}

    def function(x: Tensor, w: Tensor, f: Tensor) -> Tensor:
        y = F.conv2d(x, w, None, (1, 5), (0, 0), (1, 1), 1).flatten(2)
        s = x.flatten(2)
        a = patch_scores(y, s, f * 0.1, 3)
        return patch_values(y, s, a, f, 3).flatten(1)

    def naive(x: Tensor, w: Tensor, f: Tensor) -> Tensor:
        y = F.conv2d(x, w, stride=(1, 5)).flatten(2).unflatten(1, (3, 6))
        s = x.flatten(2).unflatten(1, (3, 4))
        a = torch.einsum("rhcp,rhcn->rhpn", y[:, :, :4], s) * f * 0.1
        return (torch.einsum("rhcp,rhpn->rhcn", y[:, :, 4:], a) * f).flatten(1)

    got, wanted = run_both(function, (12, 1, 25), dtype, weights, spikes=True, order=order)
    close(got, wanted)
    torch.manual_seed(0)
    x = (torch.randn(5, 12, 1, 25, dtype=dtype) > 0.5).to(dtype)
    close(wanted, naive(x, **{k: v.to(dtype) for k, v in weights.items()})[[4, 0, 2]])


def test_convolution_along_one_axis_and_what_follows(dtype: torch.dtype) -> None:
    weights = {"w": torch.randn(20, 12, 1), "v": torch.randn(7, 20), "b": torch.randn(7)}

    def function(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return F.linear(F.conv1d(x, w, None, (1,), (0,), (1,), 1).mean(2), v, b)

    close(*run_both(function, (12, 9), dtype, weights))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [6, 64, 100])
def test_depthwise_and_batch_norms(
    channels: int, order: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    c = channels
    weights = {
        "w": torch.randn(c, 1, 3, 3),
        "mean": torch.randn(c),
        "var": torch.rand(c) + 0.5,
        "g": torch.randn(c),
        "b": torch.randn(c),
    }

    def function(x: Tensor, w: Tensor, mean: Tensor, var: Tensor, g: Tensor, b: Tensor) -> Tensor:
        x = bn_and_pad(x, mean, var, g, b, 1e-5)
        x = F.conv2d(x, w, None, (1, 1), (0, 0), (1, 1), c)
        return F.batch_norm(x, mean, var, weight=g, bias=b, training=False).flatten(1)

    close(*run_both(function, (channels, 5, 6), dtype, weights, order=order))


def test_neurons_behind_convolutions_work_at_once(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    weights = {"w": torch.randn(24, 8, 1, 1)}
    got, wanted = run_both(_fires, (32, 3, 4), dtype, weights, spikes=True)
    assert torch.equal(got, wanted)
    assert 0 < float(got.mean()) < 48


@pytest.mark.parametrize("half_up", [False, True])
def test_integer_neurons_behind_convolutions_round_as_alone(
    half_up: bool, dtype: torch.dtype
) -> None:
    weights = {"w": torch.randint(-3, 4, (40, 8, 1, 1)) / 2}  # sums of spikes end in 0 or 1/2

    def function(x: Tensor, w: Tensor) -> Tensor:
        current = F.conv2d(x, w, None, (1, 1), (0, 0), (1, 1), 1)
        return lif.integer_lif(current, 4, 4, half_up).flatten(1)

    got, wanted = run_both(function, (8, 3, 4), dtype, weights, spikes=True)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("shape", [(12,), (12, 5), (12, 3, 4)])
def test_channels_are_scaled(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def function(x: Tensor, scale: Tensor) -> Tensor:
        return scale_channels(x, scale).flatten(1)

    got, wanted = run_both(function, shape, dtype, {"scale": torch.randn(12)})
    assert torch.equal(got, wanted)


def _fires(x: Tensor, w: Tensor) -> Tensor:
    steps = x.unflatten(1, (4, 8)).transpose(0, 1)  # (T, images, 8, H, W)
    current = F.conv2d(steps.flatten(0, 1), w, None, (1, 1), (0, 0), (1, 1), 1)
    return lif.lif(current.unflatten(0, steps.shape[:2]), 1.0).sum((0, 3, 4))


def test_what_has_no_operation_is_named(dtype: torch.dtype) -> None:
    graph = record_graph(lambda x: torch.sigmoid(x * 2), {}, (3,), dtype)
    assert first_unsupported(graph.nodes) == "sigmoid"
    assert first_unsupported(graph.nodes[:1]) is None
    with pytest.raises(UnsupportedError, match="sigmoid"):
        run_both(lambda x: torch.sigmoid(x), (3,), dtype)
    with pytest.raises(UnsupportedError, match="result"):
        run_both(lambda x: x * 2, (3, 4), dtype)


# ---- sweeps ----------------------------------------------------------------------------------


def answers(
    name: str, dtype: torch.dtype, *, is_native: bool, per_run: int = 16
) -> dict[str, CellOutput]:
    """Every cell's answer on all images, by cell."""
    model, data = tiny_model(name, dtype), tiny_data(name, 7)
    run = Run(precision=str(dtype).removeprefix("torch."))
    spec = make_spec(model, data, ratios=RATIOS, run=run)
    found: dict[str, CellOutput] = {}
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "_MOST_PER_RUN", per_run)
        cells, _ = prepare(spec, model, data, run)
        assert isinstance(cells, IncrementalExecutor)
        if cells.independent_images:  # else images influence each other, and all run together
            assert cells.is_native
            cells.is_native = is_native
        tasks: dict[str, list[Task]] = {}
        for cell in spec.cells():
            if kept := cell.plan.kept.get(cell.group.group_id):

                def keep(answer: CellOutput, key: str = cell.key) -> None:
                    found[key] = answer

                tasks.setdefault(cell.group.group_id, []).append(Task(kept, np.arange(7), keep))
        (x,) = data.batches(7, dtype)
        groups = {group: (lambda wanted=wanted: wanted) for group, wanted in tasks.items()}
        cells.run_cells(channels_last(x), groups, lambda: None)
        assert cells.is_native == (
            is_native and cells.independent_images
        )  # nothing was unsupported
    return found


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n.startswith("sdt_v2") else n for n in NAMES],
)
def test_cells_are_those_of_torch(name: str) -> None:
    ours = answers(name, torch.float64, is_native=True)
    theirs = answers(name, torch.float64, is_native=False)
    assert ours.keys() == theirs.keys()
    for key, answer in theirs.items():
        np.testing.assert_allclose(ours[key].logits, answer.logits, rtol=0, atol=1e-12)
        for mine, wanted in (
            (ours[key].reached, answer.reached),
            (ours[key].recounted, answer.recounted),
        ):
            assert mine.keys() == wanted.keys()
            for reader, count in wanted.items():
                np.testing.assert_array_equal(mine[reader], count)


@pytest.mark.slow
def test_bits_do_not_depend_on_how_images_are_taken_together(two_threads: None) -> None:
    one = answers("sdt_v3", torch.float32, is_native=True, per_run=1)
    for per_run in (3, 16):
        other = answers("sdt_v3", torch.float32, is_native=True, per_run=per_run)
        for key, answer in one.items():
            np.testing.assert_array_equal(other[key].logits, answer.logits)


def test_wrong_programs_are_noticed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    assert matches_torch(dtype)
    run = ProgramRunner.run

    def wrong(self: ProgramRunner, *rest: Any) -> dict[int, Tensor]:
        return {i: value + 1 for i, value in run(self, *rest).items()}

    monkeypatch.setattr(ProgramRunner, "run", wrong)
    matches_torch.cache_clear()
    try:
        assert not matches_torch(dtype)
        with torch.no_grad():
            model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 3)
            cells, _ = prepare(make_spec(model, data, ratios=RATIOS), model, data, Run())
        assert isinstance(cells, IncrementalExecutor)
        assert not cells.is_native
    finally:
        matches_torch.cache_clear()
