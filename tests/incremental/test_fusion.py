"""Convolutions with folded BatchNorms, dense and spike-driven."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core.incremental import fusion
from psvit_core.incremental.fusion import Filters, Folded, convolve
from psvit_core.incremental.propagation import record_network
from psvit_core.kernels import lif, native
from psvit_core.kernels.packing import pack
from tests.tiny import tiny_model

needs_compiler = pytest.mark.skipif(
    not native.available(torch.empty(0)), reason="no C compiler on this machine"
)
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}


CONVOLUTION = ("c_in", "c_out", "kernel", "stride", "padding")
CONVOLUTIONS = [
    (8, 16, 3, 1, 1),
    (64, 70, 1, 1, 0),
    (33, 5, 7, 2, 3),
    (16, 256, 1, 1, 0),
    (3, 130, 3, 2, 1),
]


def spikes(shape: tuple[int, ...], dtype: torch.dtype, levels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(shape, generator=generator) < 0.2
    return on.to(dtype) * torch.randint(1, levels + 1, shape, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize(CONVOLUTION, CONVOLUTIONS)
def test_spike_driven_convolution(
    c_in: int,
    c_out: int,
    kernel: int,
    stride: int,
    padding: int,
    compiled: bool,
    layout: torch.memory_format,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = spikes((5, c_in, 9, 7), dtype, levels=4).contiguous(memory_format=layout)
    weight = torch.randn(c_out, c_in, kernel, kernel, dtype=dtype)
    bias, strides, paddings = torch.randn(c_out).to(dtype), (stride,) * 2, (padding,) * 2
    if compiled:
        got = native.spike_conv(x, pack(weight, bias), strides, paddings)
    else:
        monkeypatch.setattr(native, "library", lambda: None)
        got = convolve(x, Filters(weight, bias), strides, paddings)
    expected = F.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[dtype])


@needs_compiler
def test_results_do_not_depend_on_threads() -> None:
    x, weight = spikes((64, 40, 6, 6), torch.float32), torch.randn(50, 40, 3, 3)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(native.spike_conv(x, pack(weight, None), (1, 1), (1, 1)))
            results.append(lif.lif(x.repeat(4, 1, 1, 1, 1) * 3, 1.0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [1, 2])
def test_folded_filters_equal_convolution_and_norm(dims: int, bias: bool) -> None:
    shape = (6, 5, 3) if dims == 1 else (6, 5, 3, 3)
    weights: dict[object, Tensor] = {
        "w": torch.randn(shape, dtype=torch.float64),
        "b": torch.randn(6).double(),
        "mean": torch.randn(6).double(),
        "var": torch.rand(6).double() + 0.1,
        "gamma": torch.randn(6).double(),
        "beta": torch.randn(6).double(),
    }
    folded = Folded("w", "b" if bias else None, ("mean", "var", "gamma", "beta"), 1e-5)
    x = torch.randn(4, 5, 8, *([8] if dims == 2 else []), dtype=torch.float64)
    plain = F.conv1d if dims == 1 else F.conv2d
    expected = F.batch_norm(
        plain(x, weights["w"], weights["b"] if bias else None, padding=1),
        weights["mean"],
        weights["var"],
        weights["gamma"],
        weights["beta"],
    )
    got = convolve(x, folded.compute(weights), (1,) * dims, (1,) * dims)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@needs_compiler
def test_dense_inputs_use_the_dense_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    real = native.spike_conv

    def watched(x: Tensor, *rest: Any) -> Tensor:
        rows.append(len(x))
        return real(x, *rest)

    monkeypatch.setattr(native, "spike_conv", watched)
    filters = Filters(torch.randn(64, 64, 1, 1), None)
    convolve(torch.rand(32, 64, 4, 4), filters, (1, 1), (0, 0))
    assert not rows
    convolve(spikes((32, 64, 4, 4), torch.float32), filters, (1, 1), (0, 0))
    assert rows


def test_every_norm_after_a_convolution_is_folded() -> None:
    network = record_network(tiny_model("sdt_v1"), (3, 32, 32))
    calls = [node.call for node in network.graph.nodes]
    assert F.batch_norm not in calls
    n_norms = sum(type(m).__name__ == "BatchNorm2d" for m in tiny_model("sdt_v1").modules())
    derived = [d for node in network.graph.nodes for d in node.derived_weights()]
    folded = [d for d in derived if isinstance(d, Folded) and d.norm]
    assert len(folded) == n_norms
    assert fusion.convolve in calls


def test_everything_works_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    native.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not native.available(torch.empty(0))
            assert lif.kernels() == "plain"
            x = torch.randn(4, 100)
            assert set(lif.lif(x, 1.0).unique().tolist()) <= {0.0, 1.0}
        assert "using torch instead of compiled kernels" in caplog.text
    finally:
        native.library.cache_clear()
    monkeypatch.undo()


@needs_compiler
def test_a_library_writable_by_others_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "psvit"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    try:
        assert not native.available(torch.empty(0))
        folder.chmod(0o700)
        native.library.cache_clear()
        assert native.available(torch.empty(0))
    finally:
        native.library.cache_clear()
