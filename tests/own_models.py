"""Networks as a user would write them: the plugin for tests of custom models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import Tensor, nn

import psvit_core

SHAPE = (1, 8, 8)
CLASSES = 10


def warmed(net: nn.Module, shape: tuple[int, int, int] = SHAPE, T: int | None = None) -> nn.Module:
    """Initialize a network with seeded weights and statistics so that its neurons fire."""
    random = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            std = (2 / module.weight[0].numel()) ** 0.5
            module.weight.data.normal_(0, std, generator=random)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1, generator=random)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.weight.data.uniform_(1.0, 2.0, generator=random)
            module.bias.data.uniform_(0.2, 1.0, generator=random)
    net.train()
    for _ in range(3):
        functional.reset_net(net)
        x = torch.randn(8, *shape, generator=random)
        with torch.no_grad():
            net(x.repeat(T, 1, 1, 1, 1) if T else x)
    functional.reset_net(net)
    return net.eval()


def spikformer() -> nn.Module:
    """Build a small version of SpikingJelly's Spikformer: combined q, k, v, and 4 heads."""
    return warmed(
        Spikformer(
            T=4,
            in_channels=1,
            img_size_h=16,
            img_size_w=16,
            patch_size=4,
            num_classes=CLASSES,
            embed_dims=32,
            num_heads=4,
            mlp_ratio=2.0,
            depths=2,
        ),
        (1, 16, 16),
    )


def conv(n_in: int, n_out: int, size: int = 3, bias: bool = False) -> nn.Conv2d:
    made: nn.Conv2d = layer.Conv2d(n_in, n_out, size, padding=size // 2, bias=bias, step_mode="m")
    return made


def bn(width: int) -> nn.BatchNorm2d:
    made: nn.BatchNorm2d = layer.BatchNorm2d(width, step_mode="m")
    return made


def lif() -> neuron.LIFNode:
    return neuron.LIFNode(step_mode="m")


class Mixed(nn.Module):
    """Network with valid and invalid groups; takes sequences (T, B, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.good_bn, self.good_lif = conv(1, 6), bn(6), lif()
        self.fixed, self.fixed_bn, self.fixed_lif = conv(6, 8), bn(8), lif()
        self.bare, self.bare_lif = conv(8, 5, bias=True), lif()  # a bias and no BatchNorm
        self.cat_a, self.cat_a_bn, self.cat_a_lif = conv(5, 6), bn(6), lif()
        self.cat_b, self.cat_b_bn, self.cat_b_lif = conv(5, 7), bn(7), lif()
        self.last, self.last_bn, self.last_lif = conv(13, 6), bn(6), lif()
        self.pool = layer.AvgPool2d(4, step_mode="m")
        self.flatten = layer.Flatten(step_mode="m")
        self.head = layer.Linear(24, CLASSES, step_mode="m")
        self.unused = conv(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.good_lif(self.good_bn(self.good(x)))
        x = self.fixed_lif(self.fixed_bn(self.fixed(x)))
        x = x.reshape(x.shape[0], x.shape[1], 8, 8, 8)  # a hard-coded width
        x = self.bare_lif(self.bare(x))
        a = self.cat_a_lif(self.cat_a_bn(self.cat_a(x)))
        b = self.cat_b_lif(self.cat_b_bn(self.cat_b(x)))
        x = self.last_lif(self.last_bn(self.last(torch.cat([a, b], dim=2))))
        out: Tensor = self.head(self.flatten(self.pool(x)))
        return out


class Tokens(nn.Module):
    """Attention over tokens with separate q, k and v; loops over time in its forward."""

    T = 3

    def __init__(self, num_heads: int = 3) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.embed, self.embed_bn = nn.Conv2d(1, 12, 4, stride=4), nn.BatchNorm2d(12)
        self.q, self.k, self.v = (nn.Linear(12, 9, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(9) for _ in range(3))
        self.lifs = nn.ModuleList(neuron.LIFNode() for _ in range(4))
        self.attn_lif = neuron.LIFNode(v_threshold=0.5)
        self.proj, self.proj_bn = nn.Linear(9, 12), nn.BatchNorm1d(12)
        self.head = nn.Linear(12, CLASSES)

    def step(self, x: Tensor) -> Tensor:
        x = self.lifs[3](self.embed_bn(self.embed(x))).flatten(2).transpose(1, 2)  # (B, N, C)
        heads = []
        for linear, norm, fire in zip(
            (self.q, self.k, self.v), self.norms, self.lifs, strict=False
        ):
            y = fire(norm(linear(x).transpose(1, 2)))  # (B, C, N)
            heads.append(y.unflatten(1, (self.num_heads, -1)).transpose(2, 3))
        q, k, v = heads  # (B, heads, N, d)
        y = (q @ k.transpose(2, 3)) @ v
        y = self.attn_lif(y.transpose(2, 3).flatten(1, 2)).transpose(1, 2)
        x = x + self.proj_bn(self.proj(y).transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.head(x.mean(1))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.step(x) for _ in range(self.T)])


class Silent(nn.Module):
    """Network whose neurons never fire."""

    def __init__(self, v_reset: float = 0.0) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.lif = neuron.LIFNode(v_threshold=1000.0, v_reset=v_reset)
        self.head = nn.Linear(4 * 36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lif(self.bn(self.conv(x))).flatten(1))
        return out


def register() -> None:
    """Register all networks, as a plugin does on import."""
    psvit_core.register_model(
        "own_spikformer",
        spikformer,
        input_shape=(1, 16, 16),
        num_classes=CLASSES,
        data="digits",
        title="SpikingJelly's Spikformer",
    )
    others: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
        "own_mixed": (lambda: warmed(Mixed(), T=4), 4),
        "own_tokens": (lambda: warmed(Tokens()), None),
        "own_silent": (Silent, None),
        "own_restless": (lambda: Silent(v_reset=-1.0), None),
    }
    for name, (build, T) in others.items():
        psvit_core.register_model(name, build, input_shape=SHAPE, num_classes=CLASSES, T=T)


register()
