"""Base class of all models: explicit widths and declared channel groups.

A model is built from its family's *original* arguments plus the present width of every group. A
pruned network is therefore built directly and loaded strictly, and everything that follows from
the original width (attention scale, head structure) keeps its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from psvit_core.errors import ModelError
from psvit_core.records import ChannelGroup, Measurement
from psvit_core.zoo.sizing import Choice, Shapes

#: Official constructor arguments that change no number in any family.
UNUSED_ARGUMENTS: dict[str, Any] = {
    "patch_size": ...,
    "qkv_bias": ...,
    "qk_scale": ...,
    "drop_rate": ...,
    "attn_drop_rate": ...,
    "drop_path_rate": ...,
    "norm_layer": ...,
    "sr_ratios": ...,
    "pretrained": False,
    "pretrained_cfg": None,
}

BATCH_NORM = nn.modules.batchnorm._BatchNorm
BN_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class GroupSpec:
    """A channel group as its family declares it: by modules, not tensors."""

    group_id: str
    kind: str
    width: int  # unpruned
    block: str
    title: str
    writers: tuple[str, ...]  # convolutions, BatchNorms and parameters that produce the channels
    readers: tuple[str, ...] = ()  # modules that consume them
    heads: int | None = None
    #: Writers whose output axis holds, for each head, the units of these groups one after another.
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Readers that are grouped convolutions: their input axis is relative to the conv group.
    local: tuple[str, ...] = ()


class SpikingModel(nn.Module):
    """Base class of the five families.

    Args:
        arguments: The family's original constructor arguments.
        specs: The family's channel groups, in network order.
        widths: Present width of each group that differs from the original, by ``group_id``.

    Raises:
        ModelError: If ``widths`` names an unknown group or an invalid width.
    """

    family: str = ""
    #: Family with the same function at other defaults: files are read as that one.
    alias_of: ClassVar[str] = ""
    #: Name of the family for display.
    title: str = ""
    #: True if released files may have older names, in the order of the state dict.
    loads_by_position: ClassVar[bool] = False
    #: Tensors of official checkpoints that no computation reads.
    unused: tuple[str, ...] = ()
    #: Arguments that change the function but no tensor shape, with their defaults. They are part of
    #: the weights hash, except time steps and image size, which every result's key names.
    hashed_arguments: ClassVar[Mapping[str, Any]] = {}
    #: True if an image's logits depend on the other images of its batch.
    batch_coupled: bool = False

    def __init__(
        self,
        arguments: Mapping[str, Any],
        specs: Sequence[GroupSpec],
        widths: Mapping[str, int] | None,
    ) -> None:
        super().__init__()
        self.arguments = {name: plain_value(value) for name, value in arguments.items()}
        self.name = self.family
        self.provenance: dict[str, Any] = {}
        self.notes: tuple[str, ...] = ()  # what its user should know, each in one sentence
        self.stored_weights = "float32"  # as in its file; ``zoo.quantized`` checks it
        self.recorded: tuple[Measurement, ...] = ()  # of its file; ``zoo.recorded`` checks them
        self._specs = tuple(specs)
        self.widths = _resolve_widths(specs, widths or {})

    def _build(self) -> None:
        """Add all modules, from ``arguments`` and ``widths`` alone: exports contain this method."""
        raise NotImplementedError

    @classmethod
    def read_size(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return the constructor arguments that tensor shapes reveal.

        Args:
            shapes: Shapes of all tensors of an unpruned state dict, by name.

        Returns:
            Everything that follows from the shapes; None if tensors that define this family are
            missing. Other tensors are not checked here: the caller builds the model and compares.
        """
        return None

    @classmethod
    def choices(cls, size: Mapping[str, Any]) -> tuple[Choice, ...]:
        """Return the arguments that no tensor reveals, in the order in which to ask for them.

        Args:
            size: What ``read_size`` returned.
        """
        return ()

    @classmethod
    def image_arguments(cls, side: int) -> dict[str, Any]:
        """Return the constructor arguments for square images of this side in pixels."""
        return {"img_size_h": side, "img_size_w": side}

    @classmethod
    def cautions(cls, size: Mapping[str, Any]) -> tuple[str, ...]:
        """Return warnings about files of this size, as sentences."""
        return ()

    @property
    def T(self) -> int:  # noqa: N802  # the letter of every paper
        """Number of time steps that a static image is repeated for."""
        return int(self.arguments.get("T", 1))

    def resized(self, widths: Mapping[str, int]) -> SpikingModel:
        """Build this architecture at other group widths, on the meta device (without weights)."""
        with torch.device("meta"):
            return type(self)(**self.arguments, widths=widths).eval()

    def set_time_steps(self, T: int) -> None:
        """Set the number of time steps of static images.

        Raises:
            ModelError: If ``T`` is below 1, or the family has no time axis.
        """
        if T < 1 or ("T" not in self.arguments and T != 1):
            raise ModelError(
                f"{self.family} cannot run for {T} time steps"
                + ("." if "T" in self.arguments else "; it has no time axis (omit T).")
            )
        if "T" in self.arguments:
            self.arguments["T"] = T

    @property
    def num_classes(self) -> int:
        """Length of the logits."""
        return int(self.arguments["num_classes"])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Image shape that the model was built for: (channels, height, width)."""
        a = self.arguments
        return int(a["in_channels"]), int(a["img_size_h"]), int(a["img_size_w"])

    def fault_of_values(self) -> str:
        """Return why loaded values cannot be used, as a sentence; empty if they can."""
        return ""

    def real_fed(self) -> dict[str, int]:
        """Return the layers that read real values instead of spikes, with their runs per image."""
        raise NotImplementedError

    def calls_per_step(self, layer: str) -> int | None:
        """Return the calls of a layer that belong to one time step; None if all of them do."""
        return None

    def without_second_names(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a pruned file's tensors without further names of shared ones."""
        return dict(tensors)

    def changed_since(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Return how the code behind this model differs from that of a pruned file, or ''."""
        return ""

    def spike_unit(self, layer: str) -> int:
        """Return the number of spikes that an input value of 1.0 represents at ``layer``."""
        return 1

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """Return the channel groups with their present widths, in network order."""
        modules = dict(self.named_modules())
        return tuple(self._resolve(spec, modules) for spec in self._specs)

    def _resolve(self, spec: GroupSpec, modules: Mapping[str, nn.Module]) -> ChannelGroup:
        writers: list[tuple[str, int]] = []
        maps: dict[str, tuple[int, ...]] = {}
        for name in spec.writers:
            if name not in modules:  # a parameter of its own, such as a layer scale
                writers.append((name, 0))
                continue
            module = modules[name]
            tensors = (
                BN_TENSORS
                if isinstance(module, BATCH_NORM)
                else (("weight",) if getattr(module, "bias", None) is None else ("weight", "bias"))
            )
            writers += [(f"{name}.{tensor}", 0) for tensor in tensors]
            if name in spec.shared:
                positions = self._positions(spec, spec.shared[name])
                maps |= {f"{name}.{tensor}:0": positions for tensor in tensors}
        return ChannelGroup(
            group_id=spec.group_id,
            kind=spec.kind,
            n_units=self.widths[spec.group_id],
            heads=spec.heads,
            writers=tuple(writers),
            readers=tuple((f"{name}.weight", 1) for name in spec.readers),
            block=spec.block,
            title=spec.title,
            maps=maps,
            local={f"{name}.weight:1": _conv_groups(modules[name]) for name in spec.local},
        )

    def _positions(self, spec: GroupSpec, layout: tuple[str, ...]) -> tuple[int, ...]:
        """Return the positions of a group's units on an axis that groups share head by head."""
        heads = spec.heads or 1
        widths = {group: self.widths[group] // heads for group in layout}
        start = sum(widths[group] for group in layout[: layout.index(spec.group_id)])
        step, own = sum(widths.values()), widths[spec.group_id]
        return tuple(head * step + start + i for head in range(heads) for i in range(own))


def plain_value(value: Any) -> Any:
    """Return an argument as plain Python data, with integral floats as integers.

    4.0, ``numpy.int64(4)`` and 4 are the same argument, and only the last can be written to a file
    and read back.
    """
    if isinstance(value, (list, tuple)):
        return [plain_value(v) for v in value]
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()  # a number of NumPy
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _conv_groups(module: nn.Module) -> int:
    assert isinstance(module, nn.Conv2d)
    return module.groups


def batch_norm_names(model: nn.Module) -> set[str]:
    """Return the names of all BatchNorm modules of a model."""
    return {name for name, module in model.named_modules() if isinstance(module, BATCH_NORM)}


def check_width(group_id: str, width: int, full_width: int, heads: int | None) -> None:
    """Raise ``ModelError`` unless ``width`` is 1 to ``full_width`` and a multiple of ``heads``."""
    step = heads or 1
    if not 1 <= width <= full_width or width % step:
        raise ModelError(
            f"The width of group {group_id!r} must be between {step} and {full_width} in steps of "
            f"{step}; got {width!r}."
        )


def _resolve_widths(specs: Sequence[GroupSpec], widths: Mapping[str, int]) -> dict[str, int]:
    resolved = {spec.group_id: spec.width for spec in specs}
    if unknown := sorted(set(widths) - set(resolved)):
        raise ModelError(f"No channel groups {unknown} in this model; it has {list(resolved)}.")
    for spec in specs:
        width = widths.get(spec.group_id, spec.width)
        check_width(spec.group_id, width, spec.width, spec.heads)
        resolved[spec.group_id] = width
    return resolved


def check_unused_arguments(
    family: str, arguments: Mapping[str, Any], allowed: Mapping[str, Any]
) -> None:
    """Accept official arguments that change nothing, and reject all others by name.

    Args:
        family: Name used in the message.
        arguments: Leftover keyword arguments of a constructor.
        allowed: Official argument names, each with the only value that this code computes, or
            ``...`` if every value gives the same numbers.

    Raises:
        ModelError: For an unknown name, or a value that would change the numbers.
    """
    for name, value in arguments.items():
        if name not in allowed:
            raise ModelError(f"{family} takes no argument {name!r}.")
        if allowed[name] is not ... and value != allowed[name]:
            raise ModelError(f"{family} supports only {name}={allowed[name]!r}; got {value!r}.")


def prefixed(prefix: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` as dotted paths below ``prefix``."""
    return tuple(f"{prefix}.{name}" for name in names)
