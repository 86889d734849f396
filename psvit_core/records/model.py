"""Records of a model's prunable structure, and of prune plans."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from psvit_core.errors import InvalidPlanError, RecordError
from psvit_core.records._base import Kept, Record


@dataclass(frozen=True, kw_only=True)
class Transform(Record):
    """Image preprocessing: resize, centre crop, pad, normalise."""

    resize: int  # shorter side, pixels
    crop: int  # square, pixels
    pad: int = 0  # zeros on every side, after the crop
    channels: int = 3  # 1: images are converted to greyscale
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def name(self) -> str:
        """One-line description; part of every result's key."""
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


#: Titles that count from 1, and the ids of their groups, which count from 0.
_COUNTED = (
    (r"(Block )(\d+)$", r"[A-Za-z_]+\d*\.(\d+)\."),  # Block 5, block.4.mlp.hidden
    (r"(Block \d+\.)(\d+)$", r"[A-Za-z_]+\d*\.(\d+)\."),  # Block 3.1, block3.0.mlp.hidden
    (r"(Stage )(\d+)$", r"stage(\d+)\."),  # Stage 2, stage1.stream
)
_LAYER_TITLE = re.compile(r"Stage (\d+), layer \d+$")
_LAYER_NUMBERS = re.compile(r"layers\.(\d+)\.(\d+)\.")  # layers.1.2.hidden


@dataclass(frozen=True, kw_only=True)
class ChannelGroup(Record):
    """Units that must be removed together, across layers."""

    group_id: str  # dotted, e.g. "block.0.mlp.hidden"
    kind: str  # residual, conv, mlp, qk, v, ...
    n_units: int
    heads: int | None  # all heads keep the same number of units; None: no heads
    writers: tuple[tuple[str, int], ...]  # (tensor, axis) that produce the units
    readers: tuple[tuple[str, int], ...]  # (tensor, axis) that consume them
    block: str  # position, counted from 1; ``place`` is shown
    title: str  # kind, for display: "MLP hidden"
    #: "tensor:axis" -> position of each unit on an axis that the group shares with others.
    maps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: "tensor:axis" -> number of groups of a convolution, on whose input axis a unit's position
    #: is relative to its convolution group.
    local: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, without ``maps`` and ``local`` where they are empty."""
        data = super().to_dict()
        return {k: v for k, v in data.items() if v or k not in ("maps", "local")}

    @property
    def is_stream(self) -> bool:
        """True for a residual stream, which passes through many blocks."""
        return self.kind.startswith("residual")

    @property
    def place(self) -> str:
        """Its position as it is shown: blocks have the number of the id, ``block.4`` is Block 4.

        ``block`` counts from 1. It stays as it is, because stored results contain it.
        """
        for titles, ids in _COUNTED:
            title, number = re.match(titles, self.block), re.match(ids, self.group_id)
            if title and number and int(title[2]) == int(number[1]) + 1:
                return f"{title[1]}{number[1]}"
        layer, numbers = _LAYER_TITLE.match(self.block), _LAYER_NUMBERS.match(self.group_id)
        if layer and numbers and int(layer[1]) == int(numbers[1]) + 1:
            return f"Stage {numbers[1]}, layer {numbers[2]}"
        return self.block

    @property
    def label(self) -> str:
        """Place and title on one line."""
        return f"{self.place} · {self.title}"


# Ids of groups are dotted names without empty parts, so they contain neither of these. Any other
# character may be in the name of a module.
_SHARED, _DIVIDED = "..", "..."


@functools.lru_cache(maxsize=1 << 14)
def axis_owners(owner: str) -> tuple[tuple[str, ...], int]:
    """Return the groups of an axis and a divisor: the axis has the sum of their widths / divisor.

    Args:
        owner: From ``shared_owner`` or ``divided_owner``, or the id of one group.
    """
    names, _, divisor = owner.partition(_DIVIDED)
    return tuple(names.split(_SHARED)), int(divisor or 1)


def shared_owner(*owners: str) -> str:
    """Return the owner of an axis that several groups share, on different positions."""
    return _SHARED.join(owners)


def divided_owner(group_id: str, conv_groups: int) -> str:
    """Return the owner of the input axis of a grouped convolution."""
    return f"{group_id}{_DIVIDED}{conv_groups}"


def axis_width(owner: str, widths: Mapping[str, int]) -> int:
    """Return the width of an axis at these group widths; ``owner`` as for ``axis_owners``."""
    names, divisor = axis_owners(owner)
    return sum(widths[name] for name in names) // divisor


@dataclass(frozen=True, kw_only=True)
class TensorShape(Record):
    """One tensor of the state dict and the groups of each of its axes."""

    name: str
    role: str  # weight (conv or linear), affine, buffer, counter or unused
    sizes: tuple[int, ...]
    groups: tuple[str | None, ...]  # of each axis, as ``axis_owners`` reads them

    def monomials(self) -> Iterator[tuple[float, tuple[str, ...]]]:
        """Yield the number of entries as a sum: factors times the widths of groups."""
        factor: float = 1
        axes: list[tuple[str, ...]] = []
        for size, owner in zip(self.sizes, self.groups, strict=True):
            if owner is None:
                factor *= size
                continue
            names, divisor = axis_owners(owner)
            axes.append(names)
            factor = factor / divisor if divisor > 1 else factor
        for names in itertools.product(*axes):
            yield factor, names


@dataclass(frozen=True, kw_only=True)
class ComputeTerm(Record):
    """Multiply-accumulates (MACs) of one layer: ``factor`` times the widths of ``groups``."""

    layer: str
    factor: float  # kernel x positions x ungrouped axes
    groups: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ShapeTable(Record):
    """Tensor shapes and MAC terms that determine a model's size and compute at any widths."""

    tensors: tuple[TensorShape, ...]
    terms: tuple[ComputeTerm, ...]

    @cached_property
    def full_widths(self) -> dict[str, int]:
        """Width of every group that has an axis of its own, as it is in the tensors."""
        found: dict[str, int] = {}
        for tensor in self.tensors:
            for size, owner in zip(tensor.sizes, tensor.groups, strict=True):
                names, divisor = axis_owners(owner) if owner else ((), 1)
                if len(names) == 1:
                    found.setdefault(names[0], size * divisor)
        return found


@dataclass(frozen=True, kw_only=True)
class ModelSummary(Record):
    """Description of a model for planners and the app, without its weights."""

    document: ClassVar[str] = "model_summary"

    model: str  # registered name or path of a pruned file
    family: str
    weights_hash: str
    T: int
    input_shape: tuple[int, ...]  # (channels, height, width)
    num_classes: int
    real_fed: dict[str, int]  # layers that read real values, not spikes -> runs per image
    batch_coupled: bool  # an image's logits depend on the rest of its batch
    groups: tuple[ChannelGroup, ...]
    shapes: ShapeTable
    rankings: dict[str, dict[str, tuple[int, ...]]]  # criterion -> group -> units, best first

    @cached_property
    def by_id(self) -> dict[str, ChannelGroup]:
        """Groups by ``group_id``."""
        return {g.group_id: g for g in self.groups}

    def ranking(self, criterion: str) -> dict[str, tuple[int, ...]]:
        """Return the units of each group, most important first.

        Raises:
            InvalidPlanError: If the summary has no ranking by that criterion.
        """
        if criterion not in self.rankings:
            raise InvalidPlanError(
                f"{self.model} has no ranking by {criterion!r}. Available: "
                f"{', '.join(self.rankings)}."
            )
        return self.rankings[criterion]

    def check(self) -> None:
        """Raise ``RecordError`` unless groups, rankings, shapes and MAC terms are consistent."""
        self._check_groups()
        self._check_tensors()
        self._check_terms()

    def _check_groups(self) -> None:
        if not self.groups or len(self.by_id) < len(self.groups):
            raise RecordError("Its model has no channel group, or has a group twice.")
        for group in self.groups:
            n, heads = group.n_units, group.heads or 1
            if n < 1 or heads < 1 or n % heads:
                raise RecordError(f"Group {group.group_id!r} has {n} units in {heads} heads.")
            for criterion, ranking in self.rankings.items():
                units = ranking.get(group.group_id, ())
                if len(units) != n or sorted(units) != list(range(n)):
                    raise RecordError(
                        f"The ranking by {criterion!r} must list each of the {n} units of "
                        f"{group.group_id!r} once."
                    )

    def _check_tensors(self) -> None:
        widths = {g.group_id: g.n_units for g in self.groups}
        for tensor in self.shapes.tensors:
            valid = len(tensor.sizes) == len(tensor.groups) and all(
                0 < size < 1 << 31 and (owner is None or _has_width(owner, widths, size))
                for size, owner in zip(tensor.sizes, tensor.groups, strict=True)
            )
            if not valid:
                raise RecordError(
                    f"Tensor {tensor.name!r} has axes {tensor.sizes}, which do not match the "
                    f"groups {tensor.groups}."
                )
        if all(tensor.role in ("counter", "unused") for tensor in self.shapes.tensors):
            raise RecordError("Its model has no tensor with weights.")

    def _check_terms(self) -> None:
        widths = {g.group_id: g.n_units for g in self.groups}
        macs = [
            term.factor * math.prod(widths.get(owner, math.nan) for owner in term.groups)
            for term in self.shapes.terms
        ]
        if not (all(0 <= m < math.inf for m in macs) and sum(macs) > 0):
            raise RecordError("The MACs of its model are not a positive, finite number.")


def _has_width(owner: str, widths: Mapping[str, int], size: int) -> bool:
    try:
        return axis_width(owner, widths) == size
    except (KeyError, ValueError, ZeroDivisionError):
        return False


@dataclass(frozen=True, kw_only=True)
class PrunePlan(Record):
    """Units that remain in each group; groups that are not listed are not pruned."""

    document: ClassVar[str] = "prune_plan"

    model: str
    weights_hash: str  # of the unpruned model
    criterion: str
    kept: dict[str, tuple[int, ...]]  # group -> sorted indices of the remaining units
    policy: str = "by hand"
    note: str = ""  # how it was made; planners state "predicted" or "measured"

    def check(self, groups: tuple[ChannelGroup, ...], weights_hash: str) -> None:
        """Raise ``InvalidPlanError`` unless the plan is for these groups and weights."""
        if self.weights_hash != weights_hash:
            raise InvalidPlanError(
                f"This plan was made for {self.model} with weights {self.weights_hash[:12]}, not "
                f"for weights {weights_hash[:12]}. Create a plan for this model."
            )
        by_id = {g.group_id: g for g in groups}
        for group_id, kept in self.kept.items():
            group = by_id.get(group_id)
            if group is None:
                raise InvalidPlanError(
                    f"The model has no channel group {group_id!r}. Create a plan for this model."
                )
            check_kept(group, kept)


def check_kept(group: ChannelGroup, kept: Kept) -> None:
    """Raise ``InvalidPlanError`` unless ``kept`` is a valid selection of the group's units."""
    n = group.n_units
    where = f"Group {group.group_id!r} has units 0..{n - 1}"
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= n:
        raise InvalidPlanError(
            f"{where}; kept indices must be sorted, distinct, in this range and at least one, "
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
