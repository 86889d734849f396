"""Patch embeddings of Max-Former and MS-QKFormer, described as data.

Each embedding adds a residual path to a main path of one or two convolutions. Neurons stand before
convolutions, and pooling acts on the real values after a BatchNorm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.neurons import LIF
from psvit_core.zoo.layers import max_pool, over_time, repeat_over_time


@dataclass(frozen=True)
class ConvNames:
    """A convolution with its BatchNorm, and the neuron before it."""

    conv: str
    bn: str
    lif: str = ""  # empty: no neuron of its own
    kernel: int = 3
    stride: int = 1
    pool: bool = False  # max-pool the BatchNorm's output


@dataclass(frozen=True)
class EmbeddingNames:
    """An embedding: the convolution of the image (in the first one), main path, residual path."""

    main: tuple[ConvNames, ...]
    residual: ConvNames
    first: ConvNames | None = None


def _embed(name: str, *, neuron: bool = True, **settings: int | bool) -> ConvNames:
    lif = f"{name}.embed_lif" if neuron else ""
    return ConvNames(f"{name}.embed_conv", f"{name}.embed_bn", lif, **settings)  # type: ignore[arg-type]  # kernel, stride, pool


_CIFAR_FIRST = EmbeddingNames(
    first=ConvNames("proj_conv", "proj_bn"),
    main=(_embed("embed1"),),
    residual=_embed("embed2", kernel=1),
)
_MAX = EmbeddingNames(
    main=(_embed("max_embed1", pool=True), _embed("embed1")),
    residual=_embed("max_embed2", neuron=False, kernel=1, pool=True),
)
_MS_QK = EmbeddingNames(
    main=(
        ConvNames("proj3_conv", "proj3_bn", "init_lif", pool=True),
        ConvNames("proj4_conv", "proj4_bn", "proj3_lif"),
    ),
    residual=ConvNames("proj_res_conv", "proj_res_bn", kernel=1, stride=2),
)
_MS_QK_CIFAR = EmbeddingNames(
    main=(_embed("embed1"), _embed("max_embed1", pool=True)),
    residual=_embed("embed2", neuron=False, kernel=1, stride=2),
)
#: Family -> its three embeddings.
EMBEDDINGS: dict[str, tuple[EmbeddingNames, EmbeddingNames, EmbeddingNames]] = {
    "max_former_imagenet": (
        EmbeddingNames(
            first=_embed("embed1", neuron=False, stride=2),
            main=(_embed("embed2", stride=2), _embed("embed3")),
            residual=_embed("embed4", neuron=False, kernel=1, stride=2),
        ),
        _MAX,
        _MAX,
    ),
    "max_former_cifar": (_CIFAR_FIRST, _MAX, _MAX),
    "ms_qkformer_imagenet": (
        EmbeddingNames(
            first=ConvNames("proj_conv", "proj_bn", pool=True),
            main=(
                ConvNames("proj_conv1", "proj_bn1", "proj_lif1", pool=True),
                ConvNames("proj_conv2", "proj_bn2", "proj_lif2"),
            ),
            residual=ConvNames("rpe_conv", "rpe_bn", kernel=1, stride=2),
        ),
        _MS_QK,
        _MS_QK,
    ),
    "ms_qkformer_cifar": (_CIFAR_FIRST, _MS_QK_CIFAR, _MS_QK_CIFAR),
}


class Embedding(nn.Module):
    """One patch embedding.

    Args:
        names: Its layers.
        widths: Present widths: of the input, then of every convolution up to the stream.
    """

    def __init__(self, names: EmbeddingNames, widths: Sequence[int]) -> None:
        super().__init__()
        self.names = names
        chain = (*((names.first,) if names.first else ()), *names.main)
        for layer, c_in, c_out in zip(chain, widths[:-1], widths[1:], strict=True):
            self._add(layer, c_in, c_out)
        self._add(names.residual, widths[1] if names.first else widths[0], widths[-1])

    def _add(self, layer: ConvNames, c_in: int, c_out: int) -> None:
        kernel, stride = layer.kernel, layer.stride
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        for name, module in ((layer.conv, conv), (layer.bn, nn.BatchNorm2d(c_out))):
            _add_at(self, name, module)
        if layer.lif:
            _add_at(self, layer.lif, LIF())

    def forward(self, x: Tensor, T: int = 1) -> Tensor:
        """Map images (B, C, H, W) or (T, B, C, H, W) to the stream (T, B, C', h, w).

        Args:
            x: Images in the first embedding, with or without time; otherwise the stream.
            T: Time steps for images.
        """
        names = self.names
        if names.first is not None:
            # the first convolution sees the same image at every step: run it once
            image = x.dim() == 4
            x = repeat_over_time(self._image(x), T) if image else self._run(names.first, x)
        spikes = self._fire(names.main[0], x)
        a = self._run(names.main[0], spikes)
        for layer in names.main[1:]:
            a = self._run(layer, self._fire(layer, a))
        if names.residual.lif:  # a neuron of its own, on the same input
            spikes = self._fire(names.residual, x)
        return a + self._run(names.residual, spikes)

    def _image(self, x: Tensor) -> Tensor:
        layer = self.names.first
        assert layer is not None
        x = self.get_submodule(layer.bn)(self.get_submodule(layer.conv)(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1) if layer.pool else x

    def _fire(self, layer: ConvNames, x: Tensor) -> Tensor:
        spikes: Tensor = self.get_submodule(layer.lif)(x)
        return spikes

    def _run(self, layer: ConvNames, x: Tensor) -> Tensor:
        conv, bn = self.get_submodule(layer.conv), self.get_submodule(layer.bn)
        x = over_time(bn, over_time(conv, x))
        return max_pool(x) if layer.pool else x


def _add_at(parent: nn.Module, path: str, module: nn.Module) -> None:
    """Add a module at a dotted path, with plain containers in between."""
    head, _, rest = path.partition(".")
    if not rest:
        parent.add_module(head, module)
        return
    if head not in parent._modules:
        parent.add_module(head, nn.Module())
    _add_at(parent.get_submodule(head), rest, module)
