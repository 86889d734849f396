"""Records of what there is to prune, and the decision what goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from psvit_core.errors import InvalidPlanError, RecordError
from psvit_core.records._base import Kept, Record


@dataclass(frozen=True, kw_only=True)
class Transform(Record):
    """What is done to an image before the network: resize, centre crop, pad, normalise."""

    resize: int  # shorter side, pixels
    crop: int  # square, pixels
    pad: int = 0  # zeros on every side, after the crop
    channels: int = 3  # 1: converted to grey
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def name(self) -> str:
        """One line that identifies the transform; part of every result's key."""
        stats = ",".join(f"{v:g}" for v in (*self.mean, *self.std))
        return (
            f"resize {self.resize} {self.interpolation}, crop {self.crop}, pad {self.pad}, "
            f"{self.channels} ch, normalise {stats}"
        )


DIGITS_TRANSFORM = Transform(
    resize=28, crop=28, pad=2, channels=1, interpolation="bilinear", mean=(0.1307,), std=(0.3081,)
)

DIGITS_48_TRANSFORM = Transform(
    resize=48, crop=48, channels=1, interpolation="bilinear", mean=(0.1307,), std=(0.3081,)
)


@dataclass(frozen=True, kw_only=True)
class ChannelGroup(Record):
    """Units that must be removed together, across layers."""

    group_id: str  # dotted, e.g. "block.0.mlp.hidden"
    kind: str  # residual, conv, mlp, qk, v, ...
    n_units: int
    heads: int | None  # None, or every one of this many heads keeps the same count
    writers: tuple[tuple[str, int], ...]  # (tensor, axis) that produce the units
    readers: tuple[tuple[str, int], ...]  # (tensor, axis) that consume them
    block: str  # where it stands, for display: "Block 3"
    title: str  # what it is, for display: "MLP hidden"

    @property
    def label(self) -> str:
        """Block and title in one line."""
        return f"{self.block} · {self.title}"


@dataclass(frozen=True, kw_only=True)
class TensorShape(Record):
    """One tensor of the state dict and which group each of its axes belongs to."""

    name: str
    role: str  # weight (conv or linear), affine, buffer, counter or unused
    sizes: tuple[int, ...]
    groups: tuple[str | None, ...]  # per axis


@dataclass(frozen=True, kw_only=True)
class ComputeTerm(Record):
    """Multiply-accumulates of one layer: ``factor`` times the widths of ``groups``."""

    layer: str
    factor: float  # MACs a unit of every group: kernel x positions x ungrouped axes
    groups: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ShapeTable(Record):
    """All that decides the size and the compute of a model at any widths."""

    tensors: tuple[TensorShape, ...]
    terms: tuple[ComputeTerm, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSummary(Record):
    """What a screen or a planner needs of a model, without its weights."""

    document: ClassVar[str] = "model_summary"

    model: str  # registered name or path of a pruned file
    family: str
    weights_hash: str
    T: int
    input_shape: tuple[int, ...]  # (channels, height, width)
    num_classes: int
    real_fed: dict[str, int]  # layers that read real values, not spikes -> runs an image
    batch_coupled: bool  # whether an image's logits depend on the batch around it
    groups: tuple[ChannelGroup, ...]
    shapes: ShapeTable
    rankings: dict[str, dict[str, tuple[int, ...]]]  # criterion -> group -> units, best first

    @cached_property
    def by_id(self) -> dict[str, ChannelGroup]:
        """Groups by ``group_id``."""
        return {g.group_id: g for g in self.groups}

    def ranking(self, criterion: str) -> dict[str, tuple[int, ...]]:
        """Units of each group, most important first.

        Raises:
            InvalidPlanError: If this summary was made without that criterion.
        """
        if criterion not in self.rankings:
            raise InvalidPlanError(
                f"{self.model} has no ranking by {criterion!r}; there are: "
                f"{', '.join(self.rankings)}."
            )
        return self.rankings[criterion]

    def check(self) -> None:
        """Raise ``RecordError`` unless groups, shapes and rankings agree with each other."""
        if not self.groups or len(self.by_id) < len(self.groups):
            raise RecordError("Its model has no channel group, or one of them twice.")
        for group in self.groups:
            n, heads = group.n_units, group.heads or 1
            if n < 1 or heads < 1 or n % heads:
                raise RecordError(f"Group {group.group_id!r} has {n} units in {heads} heads.")
            for criterion, ranking in self.rankings.items():
                units = ranking.get(group.group_id, ())
                if len(units) != n or sorted(units) != list(range(n)):
                    raise RecordError(
                        f"The ranking by {criterion!r} does not name each of the {n} units of "
                        f"{group.group_id!r} once."
                    )
        widths = {g.group_id: g.n_units for g in self.groups}
        for tensor in self.shapes.tensors:
            sound = len(tensor.sizes) == len(tensor.groups) and all(
                0 < size < 1 << 31 and (owner is None or widths.get(owner) == size)
                for size, owner in zip(tensor.sizes, tensor.groups, strict=True)
            )
            if not sound:
                raise RecordError(
                    f"Tensor {tensor.name!r} has axes {tensor.sizes} of groups {tensor.groups}; "
                    "they do not agree."
                )
        if all(tensor.role in ("counter", "unused") for tensor in self.shapes.tensors):
            raise RecordError("Its model has no tensor with weights.")
        macs = [
            term.factor * math.prod(widths.get(owner, math.nan) for owner in term.groups)
            for term in self.shapes.terms
        ]
        if not (all(0 <= m < math.inf for m in macs) and sum(macs) > 0):
            raise RecordError("What its model computes is no amount of operations.")


@dataclass(frozen=True, kw_only=True)
class PrunePlan(Record):
    """Which units of which groups stay; an absent group stays whole."""

    document: ClassVar[str] = "prune_plan"

    model: str
    weights_hash: str  # of the model that ``kept`` indexes
    criterion: str
    kept: dict[str, tuple[int, ...]]
    policy: str = "by hand"
    note: str = ""  # how it was made; "predicted" or "measured" for planned ones

    def check(self, groups: tuple[ChannelGroup, ...], weights_hash: str) -> None:
        """Raise ``InvalidPlanError`` unless this plan fits those groups and weights."""
        if self.weights_hash != weights_hash:
            raise InvalidPlanError(
                f"This plan was made for {self.model} with weights {self.weights_hash[:12]}, not "
                f"for weights {weights_hash[:12]}. Make a plan for this model."
            )
        by_id = {g.group_id: g for g in groups}
        for group_id, kept in self.kept.items():
            group = by_id.get(group_id)
            if group is None:
                raise InvalidPlanError(
                    f"The model has no channel group {group_id!r}. Make a plan for this model."
                )
            check_kept(group, kept)


def check_kept(group: ChannelGroup, kept: Kept) -> None:
    """Raise ``InvalidPlanError`` unless ``kept`` is a legal choice of units of ``group``."""
    n = group.n_units
    where = f"Group {group.group_id!r} has units 0..{n - 1}"
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= n:
        raise InvalidPlanError(
            f"{where}; kept indices must be sorted, distinct, inside and at least one, "
            f"got {str(kept)[:60]}."
        )
    if group.heads:
        width = n // group.heads
        counts = {sum(i // width == h for i in kept) for h in range(group.heads)}
        if len(counts) > 1:
            raise InvalidPlanError(
                f"{where} in {group.heads} heads; every head must keep the same number, "
                f"got {sorted(counts)}."
            )
