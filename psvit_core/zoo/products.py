"""Products of attention: what they compute, and how their compute and spikes are counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from psvit_core.zoo.layers import wide_sum

Monomial = tuple[str, float, tuple[str, ...]]  # (suffix of the layer, factor, groups)


@dataclass(frozen=True)
class Heads:
    """Attention heads of the unpruned model."""

    count: int
    width: int  # channels of a head's values
    qk_width: int | None = None  # channels of its queries and of its keys; None: as many

    def keys_first_is_cheaper(self, n_tokens: int) -> bool:
        """Return True if ``q (k^T v)`` takes fewer multiply-accumulates than ``(q k^T) v``."""
        qk = self.qk_width or self.width
        return 2 * qk * self.width < n_tokens * (qk + self.width)


class AttentionProduct(nn.Module, ABC):
    """Base class of products without weights."""

    heads: int

    @abstractmethod
    def macs(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Monomial, ...]:
        """Return the multiply-accumulates of one image and time step.

        Args:
            name: The product's name in the model.
            inputs: Its inputs for one image.
        """

    @abstractmethod
    def reached(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return input spikes times the positions that each reaches, one row per time and image."""

    def fan_out_group(self, name: str) -> str:
        """Return the group whose width per head each spike reaches; empty if it reaches one."""
        return ""


def _path(name: str) -> str:
    return name.rpartition(".")[0]


def _sum_of_each(x: Tensor) -> Tensor:
    return wide_sum(x, tuple(range(1, x.dim())))


class SpikeProduct(AttentionProduct):
    """Attention of spikes per head, times a stored scale; a head's channels are contiguous.

    ``(q k^T) v`` and ``q (k^T v)`` are equal, and exact in floating point for spikes and integer
    levels. The cheaper order is computed. The order of the published model is counted.

    Args:
        heads: The heads; their unpruned width decides the order, so pruning does not change it.
        scale: Factor of the product, a constant of the unpruned model.
        keys_first: True if the published model computes ``q (k^T v)``.
    """

    def __init__(self, heads: Heads, scale: float, keys_first: bool = False) -> None:
        super().__init__()
        self.heads = heads.count
        self.layout = heads
        self.scale = scale
        self.keys_first = keys_first

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Multiply q, k (rows, Cqk, N) and v (rows, Cv, N) to (rows, Cv, N)."""
        n_tokens = q.shape[2]
        q, k, v = (x.unflatten(1, (self.heads, -1)).transpose(2, 3) for x in (q, k, v))
        if self.layout.keys_first_is_cheaper(n_tokens):
            o = q @ (k.transpose(2, 3) @ v) * self.scale
        else:
            o = (q @ k.transpose(2, 3)) @ v * self.scale  # (rows, heads, N, Cv/heads)
        return o.transpose(2, 3).flatten(1, 2)  # (rows, Cv, N)

    def macs(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Monomial, ...]:
        """Return the multiply-accumulates in the published order."""
        n_tokens, qk, v = inputs[0].shape[-1], f"{_path(name)}.qk", f"{_path(name)}.v"
        if self.keys_first:  # two products of n_tokens x qk/heads x v/heads in every head
            factor = n_tokens / self.heads
            return ("kv", factor, (qk, v)), ("q", factor, (qk, v))
        return ("qk", n_tokens * n_tokens, (qk,)), ("v", n_tokens * n_tokens, (v,))

    def reached(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the spikes of keys and queries, or of queries and values over all tokens."""
        q, k, v = inputs
        if self.keys_first:
            return _sum_of_each(q) + _sum_of_each(k)
        return (_sum_of_each(q) + _sum_of_each(v)) * q.shape[-1]

    def fan_out_group(self, name: str) -> str:
        """Return the values' group if keys come first."""
        return f"{_path(name)}.v" if self.keys_first else ""


class ChunkProduct(AttentionProduct):
    """Product ``q ((k^T v) / H)`` over the tokens of a chunk of time steps, per head.

    The products are inexact unless H is a power of two, so they are computed in the published
    order: what differs in the last bit can move a value across a neuron's threshold.

    Args:
        heads: Number of heads.
        chunk_size: Time steps of a chunk.
    """

    def __init__(self, heads: int, chunk_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.chunk_size = chunk_size

    def forward(self, q: Tensor, k: Tensor, v: Tensor, height: int) -> Tensor:
        """Multiply q, k (T, B, Cqk, N) and v (T, B, Cv, N) to (T, B, Cv, N).

        Args:
            q: Queries; T is a multiple of the chunk size.
            k: Keys.
            v: Values.
            height: Rows of the feature map.
        """
        n_tokens = q.shape[3]
        q, k, v = (self._as_sequences(x) for x in (q, k, v))
        o = q @ ((k.transpose(3, 4) @ v) * (1 / height))  # (chunks, B, heads, steps * N, Cv/heads)
        o = o.unflatten(3, (self.chunk_size, n_tokens))  # (chunks, B, heads, steps, N, Cv/heads)
        return o.permute(0, 3, 1, 2, 5, 4).flatten(0, 1).flatten(2, 3)

    def _as_sequences(self, x: Tensor) -> Tensor:
        """Reshape (T, B, C, N) to (chunks, B, heads, steps * N, C/heads)."""
        x = x.unflatten(0, (-1, self.chunk_size)).unflatten(3, (self.heads, -1))
        return x.permute(0, 2, 3, 1, 5, 4).flatten(3, 4)

    def macs(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Monomial, ...]:
        """Return the multiply-accumulates: keys first."""
        groups = (f"{_path(name)}.qk", f"{_path(name)}.v")
        factor = inputs[0].shape[-1] / self.heads
        return ("kv", factor, groups), ("q", factor, groups)

    def reached(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the spikes of keys and queries."""
        q, k = (x.flatten(0, 1) for x in inputs[:2])
        return _sum_of_each(q) + _sum_of_each(k)

    def fan_out_group(self, name: str) -> str:
        """Return the values' group."""
        return f"{_path(name)}.v"


class PatchScores(AttentionProduct):
    """Scores of dual spike self-attention: ``y1^T s`` per head, times a factor per head.

    ``y`` holds, for each head, its part y1 (as wide as the head's spikes) and then y2. The width of
    y1 is read from the spikes, so that the product has no width as an argument.

    Args:
        heads: Number of heads.
        group_id: Channel group of the spikes.
    """

    def __init__(self, heads: int, group_id: str) -> None:
        super().__init__()
        self.heads = heads
        self.group_id = group_id

    def forward(self, s: Tensor, y: Tensor, factor: Tensor) -> Tensor:
        """Multiply spikes s (rows, C, N) and y (rows, C', P) to (rows, heads, P, N)."""
        return patch_scores(y, s, factor, self.heads)

    def macs(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Monomial, ...]:
        """Return one multiply-accumulate for each channel, patch and position."""
        s, y, _ = inputs
        return (("scores", y.shape[2] * s.shape[2], (self.group_id,)),)

    def reached(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the spikes times the patches that each meets."""
        s, y, _ = inputs
        return _sum_of_each(s) * y.shape[2]


class PatchValues(AttentionProduct):
    """Output of dual spike self-attention: ``y2 a`` per head, times a factor per head.

    Args:
        heads: Number of heads.
        group_id: Channel group of y2.
    """

    def __init__(self, heads: int, group_id: str) -> None:
        super().__init__()
        self.heads = heads
        self.group_id = group_id

    def forward(self, y: Tensor, s: Tensor, a: Tensor, factor: Tensor) -> Tensor:
        """Multiply y (rows, C', P) and spikes a (rows, heads, P, N) to (rows, C, N).

        Args:
            y: y1 and y2 of each head.
            s: The spikes that y1 is as wide as, (rows, C, N).
            a: Attention spikes.
            factor: (1, heads, 1, 1).
        """
        return patch_values(y, s, a, factor, self.heads)

    def macs(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Monomial, ...]:
        """Return one multiply-accumulate for each channel, patch and position."""
        a = inputs[2]
        return (("values", a.shape[2] * a.shape[3], (self.group_id,)),)

    def reached(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the attention spikes."""
        return _sum_of_each(inputs[2])

    def fan_out_group(self, name: str) -> str:
        """Return the group of y2."""
        return self.group_id


def patch_scores(y: Tensor, s: Tensor, factor: Tensor, heads: int) -> Tensor:
    """Compute ``PatchScores``."""
    tensors = (y, s, factor)
    if has_torch_function(tensors):  # recorded as a single operation
        return handle_torch_function(patch_scores, tensors, *tensors, heads)
    spikes = s.unflatten(1, (heads, -1))  # (rows, heads, d, N)
    y1 = first_parts(y, heads, spikes.shape[2])
    return (y1.transpose(2, 3) @ spikes) * factor


def patch_values(y: Tensor, s: Tensor, a: Tensor, factor: Tensor, heads: int) -> Tensor:
    """Compute ``PatchValues``."""
    tensors = (y, s, a, factor)
    if has_torch_function(tensors):  # recorded as a single operation
        return handle_torch_function(patch_values, tensors, *tensors, heads)
    y2 = last_parts(y, heads, s.shape[1] // heads)
    return ((y2 @ a) * factor).flatten(1, 2)


def first_parts(y: Tensor, heads: int, width: int) -> Tensor:
    """Return the first channels of each head of (rows, C', P): (rows, heads, width, P)."""
    return y.unflatten(1, (heads, -1))[:, :, :width]


def last_parts(y: Tensor, heads: int, width: int) -> Tensor:
    """Return all but the first ``width`` channels of each head: (rows, heads, rest, P)."""
    return y.unflatten(1, (heads, -1))[:, :, width:]
