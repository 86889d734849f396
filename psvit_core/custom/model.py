"""A user's own module as a ``SpikingModel``: the user's layers, neurons and forward, resizable.

``forward`` starts from zero state and leaves none (SpikingJelly's ``reset_net``). A narrower copy
is the user's module with the same layers at other widths; nothing is built anew, so that whatever
follows from the original width (an attention scale, the head structure) keeps its value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from psvit_core.custom.layers import (
    BATCH_NORM,
    Counted,
    Parts,
    count_,
    emptied,
    fold_,
    refit_,
    replace_,
    sharing,
)
from psvit_core.custom.structure import Found, Member, Structure
from psvit_core.errors import ModelError
from psvit_core.groups import COMPUTE_LAYERS
from psvit_core.records import ChannelGroup
from psvit_core.zoo.base import BN_TENSORS, SpikingModel
from psvit_core.zoo.checkpoint import CUSTOM

_INNER = "net"  # the user's module; its tensors are named net.<the user's name>


class CustomModel(SpikingModel):
    """A user's module with the channel groups that were found in it.

    Args:
        net: The user's module, on the CPU; owned and changed by this model.
        arguments: Registered ``name``, ``in_channels``, ``img_size_h``, ``img_size_w``,
            ``num_classes``, ``structure`` (JSON) and ``T`` where this model repeats the image.
        code: Digest of the user's code, so that results of changed code have other keys.
        refused: Groups that are left out, with the reason.

    Raises:
        ModelError: If the module cannot run on such images, or the structure is not its own.
    """

    family = CUSTOM
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
        self._count_layers()
        self._take(Structure.from_dict(json.loads(arguments["structure"])))

    # ---- running -----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), or frames (B, T, C, H, W), to logits (B, num_classes)."""
        if x.is_meta and (stray := self._not_empty()):
            return torch.func.functional_call(self, stray, (x,))
        for layer in self.net.modules():
            if isinstance(layer, Counted):
                layer.met = 0
        with torch.device("meta") if x.is_meta else nullcontext():
            out = logits(self.net, x, self.arguments.get("T"))
        if not isinstance(out, Tensor) or out.shape != (len(x), self.num_classes):
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ModelError(
                f"{self.name} gives {given} for {len(x)} images; it must give logits "
                f"(B, {self.num_classes}) or (T, B, {self.num_classes})."
            )
        return out

    def _not_empty(self) -> dict[str, Tensor]:
        """Meta tensors for what an empty copy keeps with numbers: buffers that are not saved."""
        return {name: t.to("meta") for name, t in self.named_buffers() if not t.is_meta}

    @property
    def T(self) -> int:
        """Time steps: those the image is repeated for, or the module's own ``T``."""
        own: Any = getattr(self.net, "T", 1)
        return int(self.arguments.get("T") or own)

    def set_time_steps(self, T: int) -> None:
        """Run static images for ``T`` steps, where the model was registered with ``T``.

        Raises:
            ModelError: If ``T`` is below 1, or the module sees to its time steps itself.
        """
        if "T" in self.arguments:
            super().set_time_steps(T)
        elif T != self.T:
            raise ModelError(
                f"{self.name} sees to its {self.T} time steps itself. Register it with T=... and "
                "let it take sequences (T, B, C, H, W) to choose them."
            )

    def get_extra_state(self) -> Tensor:
        """Part of the weights hash: results of changed code must not be taken for these."""
        return torch.frombuffer(bytearray(self._code.encode() or b"-"), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """The code is what it is now, whatever a file was written with."""

    # ---- groups ------------------------------------------------------------------------------

    def _take(self, structure: Structure) -> None:
        """Take over a structure; layers that hold several parts of a group are split."""
        self.structure = structure
        self.batch_coupled = structure.batch_coupled
        self.arguments["structure"] = json.dumps(structure.to_dict())
        self.widths = {found.group_id: found.n_units for found in structure.groups}
        for found in structure.groups:
            for member in found.members:
                if member.parts > 1:
                    self._split(member)

    def _split(self, member: Member) -> None:
        layer = self.net.get_submodule(member.path)
        if member.axis == 0:
            parent, _, leaf = member.path.rpartition(".")
            setattr(self.net.get_submodule(parent), leaf, Parts(layer, member.parts))
            return
        for name, part in self._layers_of(member.path):
            if not isinstance(part, nn.Linear) or not isinstance(part, Counted):
                raise ModelError(f"The inputs of {name} cannot be folded into units.")
            fold_(part, member.parts)

    def with_structure(
        self, structure: Structure, refused: Mapping[str, str] | None = None
    ) -> CustomModel:
        """This model, which has no groups yet, with these; shares all weights that it can."""
        copied: CustomModel = sharing(self)
        copied.refused = dict(refused or {})
        copied._take(structure)
        return copied

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """The groups that passed the check, with their present widths, in network order."""
        return tuple(self._group(found) for found in self.structure.groups)

    def real_fed(self) -> dict[str, int]:
        """Layers that read real values instead of spikes, as one run on images showed."""
        runs, then = self.structure.real_fed or {}, self.structure.T
        return {n: k // then * self.T if k % then == 0 else k for n, k in runs.items()}

    def _group(self, found: Found) -> ChannelGroup:
        writers: list[tuple[str, int]] = []
        readers: list[tuple[str, int]] = []
        for member in found.members:
            if self._is_parameter(member.path):
                readers.append((f"{_INNER}.{member.path}", member.axis))
                continue
            for name, layer in self._layers_of(member.path):
                if member.axis == 0:
                    writers += [(f"{name}.{tensor}", 0) for tensor in _output_tensors(layer)]
                else:
                    readers.append((f"{name}.weight", 1))
        block, title = _display(found.group_id)
        return ChannelGroup(
            group_id=found.group_id, kind=found.kind, n_units=self.widths[found.group_id],
            heads=found.heads, writers=tuple(writers), readers=tuple(readers), block=block,
            title=title,
        )  # fmt: skip

    def _is_parameter(self, path: str) -> bool:
        parent, _, leaf = path.rpartition(".")
        return leaf in self.net.get_submodule(parent)._parameters

    def _layers_of(self, path: str) -> list[tuple[str, nn.Module]]:
        """The layer at a path of the user's module, or its parts, by name in this model."""
        layer = self.net.get_submodule(path)
        if isinstance(layer, Parts):
            return [(f"{_INNER}.{path}.parts.{i}", part) for i, part in enumerate(layer.parts)]
        return [(f"{_INNER}.{path}", layer)]

    def resized(self, widths: Mapping[str, int]) -> CustomModel:
        """This architecture at other group widths, on the meta device: shapes without weights.

        Raises:
            ModelError: If there is no such group or width.
        """
        small: CustomModel = emptied(self)
        small.widths = {**self.widths, **widths}
        if unknown := sorted(set(widths) - set(self.widths)):
            raise ModelError(f"No channel groups {unknown} in {self.name}.")
        tensors = small.state_dict(keep_vars=True)
        for found, group in zip(self.structure.groups, self.channel_groups(), strict=True):
            width, step = small.widths[found.group_id], found.heads or 1
            if not 1 <= width <= group.n_units or width % step:
                raise ModelError(
                    f"Group {found.group_id!r} can be {step} to {group.n_units} wide in steps of "
                    f"{step}, not {width!r}."
                )
            for name, axis in (*group.writers, *group.readers):
                parent, _, leaf = name.rpartition(".")
                layer = small.get_submodule(parent)
                shape = list(tensors[name].shape)
                shape[axis] = width
                tensors[name] = tensors[name].new_empty(shape)
                replace_(layer, leaf, tensors[name])
                refit_(layer)
        return small.eval()

    # ---- layers as the engine counts them ----------------------------------------------------

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Layers whose compute and spikes no number includes: called in ways that no row fits.

        Attention products that the module computes by itself are not layers and not counted either.
        """
        strange = (nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.Embedding)
        return tuple(
            name.removeprefix(f"{_INNER}.")
            for name, layer in self.named_modules()
            if (isinstance(layer, strange) and not isinstance(layer, COMPUTE_LAYERS))
            or (isinstance(layer, Counted) and not layer.leading)
        )

    def _count_layers(self) -> None:
        """Find how each layer is called, and make it show rows to the engine's hooks."""
        seen = [self._layer_inputs(batch) for batch in (2, 3)]
        for name, layer in self.net.named_modules():
            if not isinstance(layer, COMPUTE_LAYERS) or isinstance(layer, Counted):
                continue
            two, three = (calls.get(name, []) for calls in seen)
            if not two:
                continue  # never called
            leading, hooked = _leading_axes(two, three), self._calls_a_step(two)
            if isinstance(layer, nn.Linear):  # its inputs may have to be folded, too
                count_(layer, leading, hooked)
                continue
            n_axes = leading + 1 + len(layer.kernel_size)  # (..., C, H, W)
            if (leading, n_axes, hooked) != (1, len(two[0]), len(two)):
                count_(layer, leading if n_axes == len(two[0]) else 0, hooked)

    def _calls_a_step(self, shapes: list[torch.Size]) -> int:
        """How many of a layer's calls make up one time step; ``shapes`` at a batch of 2."""
        looped = self.T > 1 and len(shapes) % self.T == 0 and all(s[0] == 2 for s in shapes)
        return len(shapes) // self.T if looped else len(shapes)

    def _layer_inputs(self, batch: int) -> dict[str, list[torch.Size]]:
        """Input shapes of every call of every convolution and linear layer."""
        calls: dict[str, list[torch.Size]] = {}
        empty = emptied(self)
        for name, layer in empty.net.named_modules():
            if isinstance(layer, COMPUTE_LAYERS):
                layer.register_forward_pre_hook(
                    lambda _m, inputs, name=name: calls.setdefault(name, []).append(inputs[0].shape)
                )
        try:
            with torch.no_grad():
                empty.eval()(torch.empty(batch, *self.input_shape, device="meta"))
        except ModelError:
            raise
        except Exception as error:  # whatever the user's forward raises
            raise ModelError(
                f"{self.name} cannot run on {batch} images {self.input_shape} for shapes alone "
                f"(torch's meta device): {first_line(error)}"
            ) from error
        return calls


def logits(net: nn.Module, x: Tensor, T: int | None) -> Any:
    """What a user's module says of images, from zero state and leaving none.

    Args:
        net: Takes images (B, C, H, W), or with ``T`` sequences (T, B, C, H, W).
        x: Images (B, C, H, W), or frames (B, T, C, H, W) that are a sequence already.
        T: How often an image is repeated, or None.

    Returns:
        (B, num_classes) where ``net`` gives that or (T, B, num_classes), else what it gives.
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


def first_line(error: Exception) -> str:
    """An error in one line, with its type."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _leading_axes(two: list[torch.Size], three: list[torch.Size]) -> int:
    """Axes up to the batch axis, from a layer's input shapes at batches of 2 and 3; or 0."""
    found = set()
    for a, b in zip(two, three, strict=False):
        axes = [i for i, (m, n) in enumerate(zip(a, b, strict=False)) if m != n]
        sound = len(axes) == 1 and len(a) == len(b) and 3 * a[axes[0]] == 2 * b[axes[0]]
        found.add(axes[0] + 1 if sound else 0)
    return found.pop() if len(two) == len(three) and len(found) == 1 else 0


def _output_tensors(layer: nn.Module) -> list[str]:
    """Tensors of a layer that have one entry, or row, an output."""
    names = BN_TENSORS if isinstance(layer, BATCH_NORM) else ("weight", "bias")
    return [name for name in names if getattr(layer, name, None) is not None]


def _display(group_id: str) -> tuple[str, str]:
    """``blocks.0.mlp.fc1`` as block ``blocks.0`` and title ``mlp.fc1``."""
    parts = group_id.split(".")
    cut = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[:cut]), ".".join(parts[cut:]) or parts[-1]
