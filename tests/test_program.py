"""Native programs: the same numbers as the steps that they are made of, one by one in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core import fused, native
from psvit_core.runtime import Run, channels_last
from psvit_core.sensitivity import replay
from psvit_core.sensitivity.fold import fold
from psvit_core.sensitivity.prepare import prepare
from psvit_core.sensitivity.program import Programs, agrees, unsupported
from psvit_core.sensitivity.replay import Answer, Replay, Task
from psvit_core.sensitivity.sweep import make_spec, sweep
from psvit_core.sensitivity.writer import Entry, UnsupportedError
from psvit_core.tape import Made, Value, record
from psvit_core.zoo.layers import bn_and_pad
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
    tape = record(lambda x: function(x, **empty), empty, shape, dtype)
    tape, _ = fold(tape, frozenset())
    made = {m for step in tape.steps for m in step.made() if isinstance(m, Made)}
    everything: dict[Any, Any] = {**real, **{m: m.of(real) for m in made}}
    assert isinstance(tape.result, Value)
    programs = Programs(tape, {tape.result.index}, dtype)
    with torch.no_grad():
        found = programs.run(
            range(len(tape.steps)), {0: Entry(x, 0, 5, None)}, {}, everything,
            torch.tensor([4, 0, 2]), per_run,
        )  # fmt: skip
        return found[tape.result.index], function(x, **real)[[4, 0, 2]]


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
    "neuron": (lambda x: fused.lif(x.unflatten(1, (4, 2)).transpose(0, 1), 0.3).sum((0, 2, 3)),
               (8, 6)),
    "neuron of a repeated image": (
        lambda x: fused.lif(x.unsqueeze(0).expand(4, -1, -1, -1), 0.3).sum((0, 2, 3)), (8, 6)
    ),
    "integer neuron": (lambda x: fused.integer_lif(x, 4, 2).flatten(1), (3, 5)),
}  # fmt: skip


def _attention(x: Tensor) -> Tensor:
    heads = x.unflatten(1, (3, -1)).transpose(2, 3)
    return ((heads @ heads.transpose(2, 3)) @ heads * 0.5).transpose(2, 3).flatten(1, 2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(name: str, dtype: torch.dtype) -> None:
    function, shape = FUNCTIONS[name]
    close(*run_both(function, shape, dtype))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("c_in", "c_out", "kernel", "stride", "padding", "spikes"),
    [(3, 5, 1, 1, 0, True), (17, 40, 3, 1, 1, True), (33, 64, 3, 2, 1, False),
     (64, 130, 1, 1, 0, True), (20, 16, 2, 2, 0, False), (1, 129, 7, 2, 3, False)],
)  # fmt: skip
def test_convolutions(
    c_in: int, c_out: int, kernel: int, stride: int, padding: int, spikes: bool,
    order: torch.memory_format, dtype: torch.dtype,
) -> None:  # fmt: skip
    torch.manual_seed(1)
    weights = {"w": torch.randn(c_out, c_in, kernel, kernel), "b": torch.randn(c_out)}

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x, w, b, (stride, stride), (padding, padding), (1, 1), 1).flatten(1)

    close(*run_both(function, (c_in, 7, 6), dtype, weights, spikes=spikes, order=order))


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
    weights = {"w": torch.randn(c, 1, 3, 3), "mean": torch.randn(c), "var": torch.rand(c) + 0.5,
               "g": torch.randn(c), "b": torch.randn(c)}  # fmt: skip

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


def _fires(x: Tensor, w: Tensor) -> Tensor:
    steps = x.unflatten(1, (4, 8)).transpose(0, 1)  # (T, images, 8, H, W)
    current = F.conv2d(steps.flatten(0, 1), w, None, (1, 1), (0, 0), (1, 1), 1)
    return fused.lif(current.unflatten(0, steps.shape[:2]), 1.0).sum((0, 3, 4))


def test_what_has_no_operation_is_named(dtype: torch.dtype) -> None:
    tape = record(lambda x: torch.sigmoid(x * 2), {}, (3,), dtype)
    assert unsupported(tape.steps) == "sigmoid"
    assert unsupported(tape.steps[:1]) is None
    with pytest.raises(UnsupportedError, match="sigmoid"):
        run_both(lambda x: torch.sigmoid(x), (3,), dtype)
    with pytest.raises(UnsupportedError, match="result"):
        run_both(lambda x: x * 2, (3, 4), dtype)


# ---- sweeps ----------------------------------------------------------------------------------


def answers(
    name: str, dtype: torch.dtype, *, is_native: bool, per_run: int = 16
) -> dict[str, Answer]:
    """Every cell's answer on all images, by cell."""
    model, data = tiny_model(name, dtype), tiny_data(name, 7)
    run = Run(precision=str(dtype).removeprefix("torch."))
    spec = make_spec(model, data, ratios=RATIOS, run=run)
    found: dict[str, Answer] = {}
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "_MOST_PER_RUN", per_run)
        cells, _ = prepare(spec, model, data, run)
        assert isinstance(cells, Replay)
        if cells.finish_early:  # else images influence each other, and all run together
            assert cells.is_native
            cells.is_native = is_native
        tasks: dict[str, list[Task]] = {}
        for cell in spec.cells():
            if kept := cell.plan.kept.get(cell.group.group_id):

                def keep(answer: Answer, key: str = cell.key) -> None:
                    found[key] = answer

                tasks.setdefault(cell.group.group_id, []).append(Task(kept, np.arange(7), keep))
        (x,) = data.batches(7, dtype)
        groups = {group: (lambda wanted=wanted: wanted) for group, wanted in tasks.items()}
        cells.run(channels_last(x), groups, lambda: None)
        assert cells.is_native == (is_native and cells.finish_early)  # nothing was unsupported
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
        for mine, wanted in ((ours[key].reached, answer.reached),
                             (ours[key].recounted, answer.recounted)):  # fmt: skip
            assert mine.keys() == wanted.keys()
            for reader, count in wanted.items():
                np.testing.assert_array_equal(mine[reader], count)


def test_bits_do_not_depend_on_how_images_are_taken_together(two_threads: None) -> None:
    one = answers("sdt_v3", torch.float32, is_native=True, per_run=1)
    for per_run in (3, 16):
        other = answers("sdt_v3", torch.float32, is_native=True, per_run=per_run)
        for key, answer in one.items():
            np.testing.assert_array_equal(other[key].logits, answer.logits)


def test_wrong_programs_are_noticed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    assert agrees(dtype)
    run = Programs.run

    def wrong(self: Programs, *rest: Any) -> dict[int, Tensor]:
        return {i: value + 1 for i, value in run(self, *rest).items()}

    monkeypatch.setattr(Programs, "run", wrong)
    agrees.cache_clear()
    try:
        assert not agrees(dtype)
        with torch.no_grad():
            model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 3)
            cells, _ = prepare(make_spec(model, data, ratios=RATIOS), model, data, Run())
        assert isinstance(cells, Replay)
        assert not cells.is_native
    finally:
        agrees.cache_clear()


def test_torch_runs_what_has_no_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6)
    wanted = sweep(model, data, ratios=RATIOS)

    def refuse(*_: Any) -> Any:
        raise UnsupportedError("anything")

    monkeypatch.setattr(Programs, "run", refuse)
    got = sweep(model, data, ratios=RATIOS)
    assert [r.accuracy for r in got.rows] == [r.accuracy for r in wanted.rows]
    assert [r.size for r in got.rows] == [r.size for r in wanted.rows]
