"""Layers that families share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from psvit_core.zoo.layers import BNAndPad
from tests.tiny import tiny_input, tiny_model


def _padding(layer: BNAndPad) -> BNAndPad:
    generator = torch.Generator().manual_seed(3)
    for tensor in (*layer.parameters(), layer.bn.running_mean, layer.bn.running_var):
        assert tensor is not None
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
    return layer


@pytest.mark.parametrize("training", [False, True])
def test_border_is_a_constant_for_gradients(training: bool) -> None:
    """The published class detaches the border: only the inside has gradients."""
    layer = _padding(BNAndPad(5).double()).train(training)
    twin = _padding(BNAndPad(5).double()).train(training)
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    weights = torch.randn(3, 5, 6, 8, dtype=torch.float64)

    def gradients(
        output: Tensor, factors: Tensor, module: nn.Module, inputs: Tensor
    ) -> list[Tensor]:
        return list(torch.autograd.grad((output * factors).sum(), [*module.parameters(), inputs]))

    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    padded = layer(ours)
    found = gradients(padded, weights, layer, ours)
    expected = gradients(twin.bn(theirs), weights[:, :, 1:-1, 1:-1], twin, theirs)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-12)
    bn = layer.bn  # its statistics are those after the forward
    assert bn.running_mean is not None
    assert bn.running_var is not None
    border = bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)
    assert torch.equal(padded[:, :, 0], border.detach().view(1, -1, 1).expand(3, 5, 8))


def test_border_of_every_reparametrizable_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """All BN-and-pad layers of Meta-SpikeFormer: a border without gradients gives the same ones."""

    def all_gradients() -> dict[str, Tensor]:
        model = tiny_model("sdt_v2").train()
        model(tiny_input("sdt_v2")).square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    found = all_gradients()

    def forward(self: BNAndPad, x: Tensor) -> Tensor:
        inside = self.bn(x)
        with torch.no_grad():
            bn = self.bn
            assert bn.running_mean is not None
            assert bn.running_var is not None
            border = bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)
        frame = torch.ones(x.shape[2] + 2, x.shape[3] + 2, dtype=torch.bool)
        frame[1:-1, 1:-1] = False
        padded = nn.functional.pad(inside, (1, 1, 1, 1))
        return torch.where(frame, border.view(1, -1, 1, 1), padded)

    monkeypatch.setattr(BNAndPad, "forward", forward)
    expected = all_gradients()
    padded = [name for name in found if ".body.1.bn." in name]
    assert len(padded) == 64
    assert any(bool((found[name] != 0).any()) for name in padded)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6, rtol=1e-4), name
