"""Wraps a user's module as a ``SpikingModel`` that can be resized.

``forward`` starts from zero state and leaves none (SpikingJelly's ``reset_net``). A narrower copy
is the user's module with the same layers at other widths. The module is not built again, so
everything that follows from the original width (attention scale, head structure) keeps its value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from psvit_core.custom.counting import count_layers_
from psvit_core.custom.layers import (
    CountedLayer,
    SplitLayer,
    fold_inputs_,
    meta_copy,
    replace_tensor_,
    shared_copy,
    update_widths_,
)
from psvit_core.custom.network import own_time_steps
from psvit_core.custom.sharing import SharedTensors, untie_
from psvit_core.custom.structure import CustomGroup, GroupAxis, Structure
from psvit_core.custom.users_code import users_code
from psvit_core.errors import ModelError
from psvit_core.groups import COMPUTE_LAYERS
from psvit_core.records import ChannelGroup
from psvit_core.zoo.base import BATCH_NORM, BN_TENSORS, SpikingModel, check_width
from psvit_core.zoo.cards import CUSTOM_FAMILY

_NET = "net"  # prefix of the names of all tensors of the user's module


class CustomModel(SharedTensors, SpikingModel):
    """A user's module with its channel groups.

    Args:
        net: The user's module, on the CPU; owned and changed by this model.
        arguments: Registered ``name``, ``in_channels``, ``img_size_h``, ``img_size_w``,
            ``num_classes``, ``structure`` (JSON), and ``T`` if this model repeats the image.
        code: Digest of the user's code, so that results of changed code have other keys.
        refused: Rejected groups with the reason.

    Raises:
        ModelError: If the module cannot run on such images, or the structure does not fit it.
    """

    family = CUSTOM_FAMILY
    unused = ("_extra_state",)

    def __init__(
        self,
        net: nn.Module,
        arguments: Mapping[str, Any],
        *,
        code: str = "",
        refused: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(arguments, (), None)
        self.name = str(arguments["name"])
        self.refused = dict(refused or {})
        self._code = code
        self.net = net
        structure = Structure.from_dict(json.loads(arguments["structure"]))
        # Files of version 0.1 may contain groups of shared parameters: copies, as they were pruned.
        untie_(net, {member.path for group in structure.groups for member in group.members})
        count_layers_(self, net)
        self._set_structure(structure)

    # ---- running -----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes)."""
        if x.is_meta and (replacements := self._meta_buffers()):
            return torch.func.functional_call(self, replacements, (x,), tie_weights=False)
        T = x.shape[1] if x.dim() == 5 else self.T
        kind = str(x.dtype).removeprefix("torch.")
        images = f"{len(x)} image{'' if len(x) == 1 else 's'} {tuple(x.shape[1:])}"
        where = f"{kind}, T={T}"
        if x.is_meta:  # shapes only
            images += " on torch's meta device"
            where += "; tensors must be parameters or buffers"
        fault = f"{self.name} cannot run on {images} ({where})"
        with users_code(fault), torch.device("meta") if x.is_meta else nullcontext():
            out = run_network(self.net, x, self.arguments.get("T"))
        if not isinstance(out, Tensor) or out.shape != (len(x), self.num_classes):
            returned = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ModelError(
                f"{self.name} returns {returned} for {len(x)} images; it must return logits "
                f"(B, {self.num_classes}) or (T, B, {self.num_classes})."
            )
        return out

    def _meta_buffers(self) -> dict[str, Tensor]:
        """Return meta tensors for the buffers that ``meta_copy`` leaves: those not saved."""
        buffers = self.named_buffers(remove_duplicate=False)  # each name of a shared one
        return {name: t.to("meta") for name, t in buffers if not t.is_meta}

    @property
    def T(self) -> int:  # noqa: N802  # the letter of every paper
        """Number of time steps: of the repeated image, or the module's attribute ``T``."""
        return int(self.arguments.get("T") or own_time_steps(self.net, self.name))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and of the images that they take."""
        floats = (p.dtype for p in self.parameters() if p.is_floating_point())
        return next(floats, torch.float32)

    def set_time_steps(self, T: int) -> None:
        """Set the number of time steps of static images, if the model was registered with ``T``.

        Raises:
            ModelError: If ``T`` is below 1, or the module repeats images itself.
        """
        if "T" in self.arguments:
            super().set_time_steps(T)
        elif T != self.T:
            raise ModelError(
                f"Cannot set T={T}: {self.name} runs its {self.T} time steps itself. To make T "
                "selectable, register it with T=... and let it take sequences (T, B, C, H, W)."
            )

    def get_extra_state(self) -> Tensor:
        """Return the code digest, so that the weights hash changes with the code."""
        return torch.frombuffer(bytearray(self._code.encode() or b"-"), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Ignore the digest in a file: the code of this process counts."""

    def changed_since(self, tensors: Mapping[str, Tensor]) -> str:
        """Return how the user's code differs from that of a pruned file, or ''."""
        written = tensors.get("_extra_state")
        if written is None or torch.equal(written, self.get_extra_state()):
            return ""
        return (
            f"The plugin that registers {self.arguments['name']} has changed since this file was "
            "written, so the network may compute something else. Prune the model again, or go back "
            "to the plugin as it was."
        )

    # ---- groups ------------------------------------------------------------------------------

    def _set_structure(self, structure: Structure) -> None:
        """Set the groups; layers with several parts of a group are split."""
        self.structure = structure
        self.batch_coupled = structure.batch_coupled
        self.arguments["structure"] = json.dumps(structure.to_dict())
        self.widths = {group.group_id: group.n_units for group in structure.groups}
        for group in structure.groups:
            for member in group.members:
                if member.parts > 1:
                    self._split(member)

    def _split(self, member: GroupAxis) -> None:
        layer = self.net.get_submodule(member.path)
        if member.axis == 0:
            parent, _, leaf = member.path.rpartition(".")
            setattr(self.net.get_submodule(parent), leaf, SplitLayer(layer, member.parts))
            return
        for name, part in self._layers_at(member.path):
            if not isinstance(part, nn.Linear) or not isinstance(part, CountedLayer):
                raise ModelError(f"The inputs of {name} cannot be folded into units.")
            fold_inputs_(part, member.parts)

    def with_structure(
        self, structure: Structure, refused: Mapping[str, str] | None = None
    ) -> CustomModel:
        """Return a copy of this model, which must have no groups yet, with these groups.

        The copy shares the weights, except of layers that are split.
        """
        copied: CustomModel = shared_copy(self)
        copied.refused = dict(refused or {})
        copied._set_structure(structure)
        return copied

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """Return the groups that passed the check, with present widths, in network order."""
        return tuple(self._channel_group(group) for group in self.structure.groups)

    def real_fed(self) -> dict[str, int]:
        """Return the layers that read real values, as a run on random images showed.

        Each comes with its runs per image.
        """
        runs, T = self.structure.real_fed or {}, self.structure.T
        return {name: n // T * self.T if n % T == 0 else n for name, n in runs.items()}

    def _channel_group(self, group: CustomGroup) -> ChannelGroup:
        writers: list[tuple[str, int]] = []
        readers: list[tuple[str, int]] = []
        for member in group.members:
            if self._is_parameter(member.path):
                readers.append((f"{_NET}.{member.path}", member.axis))
                continue
            for name, layer in self._layers_at(member.path):
                if member.axis == 0:
                    writers += [(f"{name}.{tensor}", 0) for tensor in _output_tensors(layer)]
                else:
                    readers.append((f"{name}.weight", 1))
        block, title = _block_and_title(group.group_id)
        return ChannelGroup(
            group_id=group.group_id,
            kind=group.kind,
            n_units=self.widths[group.group_id],
            heads=group.heads,
            writers=tuple(writers),
            readers=tuple(readers),
            block=block,
            title=title,
        )

    def _is_parameter(self, path: str) -> bool:
        parent, _, leaf = path.rpartition(".")
        return leaf in self.net.get_submodule(parent)._parameters

    def _layers_at(self, path: str) -> list[tuple[str, nn.Module]]:
        """Return the layer at a path of the user's module, or its parts, with full names."""
        layer = self.net.get_submodule(path)
        if isinstance(layer, SplitLayer):
            return [(f"{_NET}.{path}.parts.{i}", part) for i, part in enumerate(layer.parts)]
        return [(f"{_NET}.{path}", layer)]

    def resized(self, widths: Mapping[str, int]) -> CustomModel:
        """Return this architecture at other group widths, on the meta device (without weights).

        Raises:
            ModelError: If a group is unknown or a width invalid.
        """
        small: CustomModel = meta_copy(self)
        small.widths = {**self.widths, **widths}
        if unknown := sorted(set(widths) - set(self.widths)):
            raise ModelError(f"No channel groups {unknown} in {self.name}.")
        tensors = small.state_dict(keep_vars=True)
        for group in self.channel_groups():
            width = small.widths[group.group_id]
            check_width(group.group_id, width, group.n_units, group.heads)
            for name, axis in (*group.writers, *group.readers):
                parent, _, leaf = name.rpartition(".")
                layer = small.get_submodule(parent)
                shape = list(tensors[name].shape)
                shape[axis] = width
                tensors[name] = tensors[name].new_empty(shape)
                replace_tensor_(layer, leaf, tensors[name])
                update_widths_(layer)
        return small.eval()

    # ---- counted layers ----------------------------------------------------------------------

    def calls_per_step(self, layer: str) -> int | None:
        """Return the calls of a layer that belong to one time step; None if all of them do."""
        return getattr(self.get_submodule(layer), "calls_per_step", None)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Layers whose compute and spikes are in no number, because their calls fit no rows.

        Attention products in the module's own code are not layers, and not counted either.
        """
        unsupported = (nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.Embedding)
        return tuple(
            name.removeprefix(f"{_NET}.")
            for name, layer in self.named_modules()
            if (isinstance(layer, unsupported) and not isinstance(layer, COMPUTE_LAYERS))
            or (isinstance(layer, CountedLayer) and not layer.n_leading)
        )


def run_network(net: nn.Module, x: Tensor, T: int | None) -> Any:
    """Run a user's module on images, from zero state and leaving none.

    Args:
        net: Takes images (B, C, H, W), or sequences (T, B, C, H, W) if ``T`` is given.
        x: Images (B, C, H, W), or frames (B, T, C, H, W).
        T: Number of repetitions of an image, or None.

    Returns:
        Logits (B, num_classes) if ``net`` returns these or (T, B, num_classes); otherwise the
        output of ``net``.
    """
    if x.dim() == 5:
        x = x.transpose(0, 1)  # (T, B, C, H, W)
    elif T:
        x = x.unsqueeze(0).repeat(T, 1, 1, 1, 1)
    functional.reset_net(net)
    try:
        out = net(x)
    finally:
        functional.reset_net(net)
    return out.mean(0) if isinstance(out, Tensor) and out.dim() == 3 else out


def _output_tensors(layer: nn.Module) -> list[str]:
    """Return the names of a layer's tensors that have one entry or row per output."""
    names = BN_TENSORS if isinstance(layer, BATCH_NORM) else ("weight", "bias")
    return [name for name in names if getattr(layer, name, None) is not None]


def _block_and_title(group_id: str) -> tuple[str, str]:
    """Split ``blocks.0.mlp.fc1`` into block ``blocks.0`` and title ``mlp.fc1``."""
    parts = group_id.split(".")
    cut = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[:cut]), ".".join(parts[cut:]) or parts[-1]
