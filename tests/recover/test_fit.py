"""Statistics of a layer's fit against a simple loop; the classifier's fit against an optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.groups import COMPUTE_LAYERS
from psvit_core.recover.classifier import RIDGE, fit_probabilities
from psvit_core.recover.lockstep import Halt
from psvit_core.recover.readers import Fit

LAYERS = {
    "strided 3x5": nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 2), bias=False),
    "dilated": nn.Conv2d(3, 4, 3, padding=2, dilation=2),
    "pointwise": nn.Conv2d(3, 4, 1),
    "tokens": nn.Conv1d(3, 4, 1, bias=False),
    "linear": nn.Linear(3, 4),
    "grouped": nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False),
}


def inputs_of(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the input of every weight of a group at every position: (groups, weights, n)."""
    if isinstance(layer, nn.Conv2d):
        kernel, gap, step, pad = layer.kernel_size, layer.dilation, layer.stride, layer.padding
        assert not isinstance(pad, str)
        columns = F.unfold(x, kernel, dilation=gap, padding=pad, stride=step)
    else:
        columns = x.reshape(*x.shape[:2], -1)
    return columns.transpose(0, 1).flatten(1).unflatten(0, (getattr(layer, "groups", 1), -1))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("free_mean", [False, True])
def test_statistics_are_those_of_a_simple_reference(kind: str, free_mean: bool) -> None:
    layer = copy.deepcopy(LAYERS[kind])
    assert isinstance(layer, COMPUTE_LAYERS)
    chance = torch.Generator().manual_seed(0)
    places: tuple[int, ...] = {"linear": (), "tokens": (5,)}.get(kind, (7, 6))
    n_groups = getattr(layer, "groups", 1)
    shape = (9, layer.weight.shape[1] * n_groups, *places)
    spikes = (torch.randint(0, 5, shape, generator=chance) / 4).float()
    with torch.no_grad():
        output = layer(spikes)
        target = output + torch.randn(output.shape, generator=chance)
        fit = Fit(layer, free_mean=free_mean)
        for part in torch.arange(9).split(4):
            fit.add(Halt("", layer, spikes[part], output[part]), target[part])
        x = inputs_of(layer, spikes).double()
        if layer.bias is not None or free_mean:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        rest = (target - output).double().reshape(9, output.shape[1], -1)
        rest = rest.transpose(0, 1).flatten(1).unflatten(0, (n_groups, -1))
    assert torch.equal(fit.gram, x @ x.mT)  # exact for spikes, in float32
    torch.testing.assert_close(fit.cross, rest @ x.mT, rtol=1e-5, atol=1e-4)
    assert fit.error == pytest.approx(float(rest.square().sum()), rel=1e-5)


def test_a_shift_that_a_norm_takes_up_costs_nothing() -> None:
    chance = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 4, 1, bias=False).double()
    x = (torch.rand(50, 3, 4, 4, generator=chance) > 0.5).double()
    with torch.no_grad():
        output = layer(x)
        weight = torch.randn(layer.weight.shape, generator=chance, dtype=torch.float64)
        target = F.conv2d(x, weight) + torch.tensor([5.0, -3.0, 0.0, 9.0]).view(1, -1, 1, 1)
        fit = Fit(layer, free_mean=True)
        fit.add(Halt("", layer, x, output), target)
        refit = fit.solve("")
        missed = target - layer(x)
        missed -= missed.mean((0, 2, 3), keepdim=True)
    assert float(missed.square().sum() / target.square().sum()) == pytest.approx(refit.after)
    assert refit.after < 1e-3 < refit.before


@pytest.mark.parametrize("bias", [False, True])
def test_the_classifier_minimizes_the_divergence(bias: bool) -> None:
    """Compare with torch's general optimizer on the same cost."""
    chance = torch.Generator().manual_seed(3)
    layer = nn.Linear(6, 4, bias=bias).double()
    start = copy.deepcopy(layer)
    x = torch.rand(60, 6, generator=chance, dtype=torch.float64)
    wanted = 6 * torch.randn(60, 4, generator=chance, dtype=torch.float64)
    fit_probabilities(layer, x, wanted)

    other = copy.deepcopy(start)
    ridge = RIDGE * float(x.square().sum() + 60 * bias) / (6 + bias)

    def cost(found: nn.Linear) -> Tensor:
        total = -(wanted.softmax(1) * found(x).log_softmax(1)).sum()
        total = total + ridge / 2 * (found.weight - start.weight.detach()).square().sum()
        if bias:
            total = total + ridge * 5e-4 * (found.bias - start.bias.detach()).square().sum()
        return total

    optimizer = torch.optim.LBFGS(other.parameters(), max_iter=500, tolerance_grad=1e-10)

    def closure() -> float:
        optimizer.zero_grad()
        total = cost(other)
        total.backward()
        return float(total.detach())

    optimizer.step(closure)
    assert cost(layer).item() == pytest.approx(cost(other).item(), rel=1e-6)
    assert cost(layer).item() < cost(start).item() - 1
    torch.testing.assert_close(layer.weight, other.weight, rtol=1e-2, atol=1e-2)


def test_a_classifier_without_inputs_stays() -> None:
    layer = nn.Linear(6, 4)
    before = layer.weight.detach().clone()
    fit_probabilities(layer, torch.zeros(5, 6), torch.randn(5, 4))
    assert torch.equal(layer.weight, before)
