"""What every model of the zoo has in common: explicit widths, declared channel groups.

A model is built from its family's *original* arguments plus the present width of every group. So a
pruned network is built directly and loaded strictly, and whatever follows from the original width
(an attention scale, the head structure) keeps its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from psvit_core.errors import ModelError
from psvit_core.records import ChannelGroup

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

BN_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class GroupSpec:
    """A channel group as its family declares it: modules, not tensors.

    ``out`` names what produces the channels (convolutions with their BatchNorms, depthwise ones
    included), ``into`` what consumes them.
    """

    group_id: str
    kind: str
    width: int  # unpruned
    block: str
    title: str
    out: tuple[str, ...]
    into: tuple[str, ...] = ()
    heads: int | None = None


class SpikingModel(nn.Module):
    """Base of the five families.

    Args:
        arguments: The family's original constructor arguments.
        specs: The family's channel groups, in network order.
        widths: Present width of groups that differ from the original, by ``group_id``.

    Raises:
        ModelError: If ``widths`` names an unknown group or an illegal width.
    """

    family: str = ""
    #: Tensors that official checkpoints hold and no computation reads.
    unused: tuple[str, ...] = ()
    #: Arguments that change the function and that no tensor's shape tells, with their defaults;
    #: without those that every result's key names: time steps, size of the images.
    unseen: Mapping[str, Any] = {}
    #: Whether an image's logits depend on the batch around it.
    batch_coupled: bool = False

    def __init__(
        self,
        arguments: Mapping[str, Any],
        specs: Sequence[GroupSpec],
        widths: Mapping[str, int] | None,
    ) -> None:
        super().__init__()
        self.arguments = dict(arguments)
        self.name = self.family
        self.provenance: dict[str, Any] = {}
        self._specs = tuple(specs)
        self.widths = _resolve_widths(specs, widths or {})

    @property
    def T(self) -> int:
        """Time steps that a static image is repeated for."""
        return int(self.arguments.get("T", 1))

    def resized(self, widths: Mapping[str, int]) -> SpikingModel:
        """This architecture at other group widths, on the meta device: shapes without weights."""
        with torch.device("meta"):
            return type(self)(**self.arguments, widths=widths).eval()

    def set_time_steps(self, T: int) -> None:
        """Run static images for ``T`` steps from now on.

        Raises:
            ModelError: If ``T`` is below 1, or the family has no time axis.
        """
        if T < 1 or ("T" not in self.arguments and T != 1):
            raise ModelError(
                f"{self.family} cannot run for {T} time steps"
                + ("." if "T" in self.arguments else "; it has no time axis (leave T away).")
            )
        if "T" in self.arguments:
            self.arguments["T"] = T

    @property
    def num_classes(self) -> int:
        """Length of the logits."""
        return int(self.arguments["num_classes"])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the model was made for."""
        a = self.arguments
        return int(a["in_channels"]), int(a["img_size_h"]), int(a["img_size_w"])

    def real_fed(self) -> dict[str, int]:
        """Layers that read real values instead of spikes, with how often an image runs each."""
        raise NotImplementedError

    def spike_unit(self, layer: str) -> int:
        """How many spikes an input of 1.0 stands for at this layer."""
        return 1

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """The model's channel groups with their present widths, in network order."""
        modules = dict(self.named_modules())
        return tuple(self._resolve(spec, modules) for spec in self._specs)

    def _resolve(self, spec: GroupSpec, modules: Mapping[str, nn.Module]) -> ChannelGroup:
        writers: list[tuple[str, int]] = []
        for name in spec.out:
            module = modules[name]
            tensors = (
                BN_TENSORS
                if isinstance(module, nn.modules.batchnorm._BatchNorm)
                else (("weight",) if getattr(module, "bias", None) is None else ("weight", "bias"))
            )
            writers += [(f"{name}.{tensor}", 0) for tensor in tensors]
        return ChannelGroup(
            group_id=spec.group_id,
            kind=spec.kind,
            n_units=_width_of(modules[spec.out[0]]),
            heads=spec.heads,
            writers=tuple(writers),
            readers=tuple((f"{name}.weight", 1) for name in spec.into),
            block=spec.block,
            title=spec.title,
        )


def _width_of(writer: nn.Module) -> int:
    weight = writer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


def _resolve_widths(specs: Sequence[GroupSpec], widths: Mapping[str, int]) -> dict[str, int]:
    resolved = {spec.group_id: spec.width for spec in specs}
    if unknown := sorted(set(widths) - set(resolved)):
        raise ModelError(f"No channel groups {unknown} in this model; it has {list(resolved)}.")
    for spec in specs:
        width = widths.get(spec.group_id, spec.width)
        step = spec.heads or 1
        if not 1 <= width <= spec.width or width % step:
            raise ModelError(
                f"Group {spec.group_id!r} can be {step} to {spec.width} wide in steps of {step}, "
                f"not {width!r}."
            )
        resolved[spec.group_id] = width
    return resolved


def accept_unused(family: str, arguments: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    """Accept official arguments that change nothing; refuse others by name.

    Args:
        family: For the message.
        arguments: Leftover keyword arguments of a constructor.
        allowed: Official names, each with the one value that this code computes, or ``...`` where
            any value gives the same numbers.

    Raises:
        ModelError: For an unknown name, or a value that would change the numbers.
    """
    for name, value in arguments.items():
        if name not in allowed:
            raise ModelError(f"{family} takes no argument {name!r}.")
        if allowed[name] is not ... and value != allowed[name]:
            raise ModelError(f"{family} supports only {name}={allowed[name]!r}, got {value!r}.")


def prefixed(prefix: str, names: Sequence[str]) -> tuple[str, ...]:
    """``names`` under a module path."""
    return tuple(f"{prefix}.{name}" for name in names)
