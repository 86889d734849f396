"""SpikingResformer: a convolutional transformer with dual spike self-attention (DSSA).

Source:
    Shi et al. 2024, SpikingResformer: Bridging ResNet and Vision Transformer in Spiking Neural
    Networks, CVPR, arXiv 2403.14302. State-dict keys match the official checkpoints. The residual
    stream is real-valued, and every branch starts with a neuron.

Evaluation refuses a model whose firing rates were never set (``resformer_layers``): its weights
must be loaded, or a training batch must be run first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.errors import CheckpointError, ModelError
from psvit_core.zoo.base import GroupSpec, SpikingModel, check_unused_arguments, prefixed
from psvit_core.zoo.layers import over_time, repeat_over_time
from psvit_core.zoo.resformer_layers import DSSA, GWFFN, Downsample, Norm, bias_free_conv
from psvit_core.zoo.sizing import Choice, Shapes, count_blocks, image_size_choice, time_steps_choice

_INNER = 4  # width of the feed-forward block divided by the stream's
_TI_LAYERS = (("DSSA", "GWFFN"), ("DSSA", "GWFFN") * 2, ("DSSA", "GWFFN") * 3)


class SpikingResformer(SpikingModel):
    """SpikingResformer: images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, classes).

    Args:
        layers: For each stage, its layers: "DSSA" or "GWFFN".
        planes: Unpruned stream width of each stage.
        num_heads: Heads of each stage.
        patch_sizes: Side of the patches in each stage.
        img_size: Side of the images; it scales the attention.
        T: Time steps.
        in_channels: Channels of the images.
        num_classes: Length of the logits.
        group_size: Channels of a group of the 3x3 convolutions.
        widths: Present width of each group that differs from the original.
        unused: Official arguments without effect; ``prologue`` follows from the family.
    """

    family = "spikingresformer"
    title = "SpikingResformer"
    #: They scale the attention, but show in no shape.
    hashed_arguments: ClassVar[Mapping[str, Any]] = {"img_size": 224}
    prologue_kernel: ClassVar[int] = 7
    published_sides: ClassVar[tuple[int, ...]] = (224, 288, 128)
    default_size: ClassVar[int] = 224

    def __init__(  # noqa: PLR0913  # the official names
        self,
        *,
        layers: Sequence[Sequence[str]] = _TI_LAYERS,
        planes: Sequence[int] = (64, 192, 384),
        num_heads: Sequence[int] = (1, 3, 6),
        patch_sizes: Sequence[int] = (4, 2, 1),
        img_size: int | None = None,
        T: int = 4,
        in_channels: int = 3,
        num_classes: int = 1000,
        group_size: int = 64,
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        prologue = None if self.prologue_kernel == 7 else ...  # the CIFAR variant always has it
        check_unused_arguments(self.family, unused, {"prologue": prologue, "activation": "LIF"})
        arguments = {
            "layers": [list(stage) for stage in layers],
            "planes": list(planes),
            "num_heads": list(num_heads),
            "patch_sizes": list(patch_sizes),
            "img_size": img_size or self.default_size,
            "T": T,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "group_size": group_size,
        }
        _check(arguments)
        super().__init__(arguments, _group_specs(arguments), widths)
        self._build()

    def _build(self) -> None:
        a, w = self.arguments, self.widths
        streams = [w[f"stage{i}.stream"] for i in range(len(a["planes"]))]
        kernel, stride = self.prologue_kernel, 2 if self.prologue_kernel == 7 else 1
        self.prologue = nn.Sequential(
            bias_free_conv(a["in_channels"], streams[0], kernel, stride), Norm(streams[0])
        )
        side = a["img_size"] // (4 if self.prologue_kernel == 7 else 1)
        stages = []
        for stage, stream in enumerate(streams):
            blocks: list[nn.Module] = []
            if stage:
                side //= 2
                blocks.append(Downsample(streams[stage - 1], stream))
            for kind in a["layers"][stage]:
                name = f"layers.{stage}.{len(blocks)}"
                layer = self._dssa(name, stage, side) if kind == "DSSA" else self._gwffn(name)
                blocks.append(layer)
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.classifier = nn.Linear(streams[-1], self.num_classes, bias=False)

    def _dssa(self, name: str, stage: int, side: int) -> DSSA:
        a, w = self.arguments, self.widths
        groups, patch = (f"stage{stage}.stream", f"{name}.y2"), a["patch_sizes"][stage]
        if not 1 <= patch <= side:
            raise ModelError(
                f"Stage {stage + 1} has maps of {side} x {side} at img_size={a['img_size']}; its "
                f"patches must be 1 to {side} wide, got {patch}. Use a larger img_size."
            )
        return DSSA(
            w[groups[0]],
            w[groups[1]],
            heads=a["num_heads"][stage],
            head_width=a["planes"][stage] // a["num_heads"][stage],
            patch=patch,
            n_patches=(side // patch) ** 2,
            groups=groups,
        )

    def _gwffn(self, name: str) -> GWFFN:
        stage = int(name.split(".")[1])
        conv_groups = _INNER * self.arguments["planes"][stage] // self.arguments["group_size"]
        stream, hidden = self.widths[f"stage{stage}.stream"], self.widths[f"{name}.hidden"]
        return GWFFN(stream, hidden, conv_groups)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Image shape that the model was built for: (channels, height, width)."""
        side = int(self.arguments["img_size"])
        return int(self.arguments["in_channels"]), side, side

    @classmethod
    def image_arguments(cls, side: int) -> dict[str, Any]:
        """Return the constructor argument for square images of this side in pixels."""
        return {"img_size": side}

    @classmethod
    def read_size(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return everything but time steps and image size."""
        first = shapes.get("prologue.0.weight")
        if first is None or first[3] != cls.prologue_kernel or "classifier.weight" not in shapes:
            return None
        size: dict[str, Any] = {
            "layers": [],
            "planes": [],
            "num_heads": [],
            "patch_sizes": [],
            "in_channels": first[1],
            "num_classes": shapes["classifier.weight"][0],
        }
        for stage in range(count_blocks(shapes, "layers")):
            _read_stage(size, stage, shapes)
        return size

    @classmethod
    def choices(cls, size: Mapping[str, Any]) -> tuple[Choice, ...]:
        """Return the choices of time steps and image size."""
        return time_steps_choice(), image_size_choice(cls.published_sides)

    def fault_of_values(self) -> str:
        """Return why the firing rates cannot be used; empty if they can."""
        for name, module in self.named_modules():
            for rate in ("firing_rate_x", "firing_rate_attn") if isinstance(module, DSSA) else ():
                values = getattr(module, rate)
                if not (values.is_meta or bool((values > 0).all())):
                    return (
                        f"{name}.{rate} contains {float(values.min()):g}, but firing rates must be "
                        "above 0: the attention is divided by their roots. It is 0 in a model "
                        "without trained weights. Load trained weights, or run at least one "
                        "training batch and save the model again."
                    )
        return ""

    def real_fed(self) -> dict[str, int]:
        """Return the first convolution and the classifier, which reads averages at every step."""
        return {"prologue.0": 1, "classifier": self.T}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the mean over positions, averaged over time.

        Raises:
            CheckpointError: In evaluation mode, if the firing rates were never set.
        """
        if not self.training and (fault := self.fault_of_values()):
            raise CheckpointError(f"{self.name}: {fault}")
        if x.dim() == 5:
            x = over_time(self._start, x.transpose(0, 1))
        else:  # the prologue sees the same image at every step: run it once
            x = repeat_over_time(self._start(x), self.T)
        return over_time(self.classifier, self.layers(x).mean(dim=(3, 4))).mean(dim=0)

    def _start(self, x: Tensor) -> Tensor:
        """Run the prologue on (rows, C, H, W)."""
        x = self.prologue(x)
        if self.prologue_kernel != 7:
            return x
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class SpikingResformerCifar(SpikingResformer):
    """The variant with a 3x3 prologue without pooling."""

    family = "spikingresformer_cifar"
    title = "SpikingResformer, CIFAR"
    hashed_arguments: ClassVar[Mapping[str, Any]] = {"img_size": 32}
    prologue_kernel = 3
    published_sides = (32,)
    default_size = 32


def _check(a: Mapping[str, Any]) -> None:
    n_stages = len(a["planes"])
    per_stage = [len(a[name]) for name in ("layers", "num_heads", "patch_sizes")]
    if n_stages < 1 or set(per_stage) != {n_stages}:
        raise ModelError(
            "layers, planes, num_heads and patch_sizes need one entry per stage, and at least one."
        )
    for layers, width, heads in zip(a["layers"], a["planes"], a["num_heads"], strict=True):
        if set(layers) - {"DSSA", "GWFFN"}:
            raise ModelError(f"layers are DSSA or GWFFN; got {list(layers)}.")
        if heads < 1 or width % heads or _INNER * width % a["group_size"]:
            raise ModelError(
                f"In a stage of {width} channels, num_heads must divide {width} and group_size "
                f"must divide {_INNER * width}; got {heads} and {a['group_size']}."
            )


def _read_stage(size: dict[str, Any], stage: int, shapes: Shapes) -> None:
    """Add what a stage's shapes reveal to ``size``."""
    prefix = f"layers.{stage}"
    first = 0 if stage == 0 else 1
    blocks = [f"{prefix}.{i}" for i in range(first, count_blocks(shapes, prefix))]
    size["layers"].append(["DSSA" if f"{b}.W.weight" in shapes else "GWFFN" for b in blocks])
    attention = [b for b in blocks if f"{b}.W.weight" in shapes]
    feed = [b for b in blocks if f"{b}.up.1.weight" in shapes]
    width = shapes["prologue.0.weight" if stage == 0 else f"{prefix}.0.conv.weight"][0]
    size["planes"].append(width)
    heads = shapes[f"{attention[0]}.firing_rate_x"][2] if attention else 1
    size["num_heads"].append(heads)
    size["patch_sizes"].append(shapes[f"{attention[0]}.W.weight"][2] if attention else 1)
    if feed:
        size["group_size"] = shapes[f"{feed[0]}.conv.0.1.weight"][1]


# ---- channel groups --------------------------------------------------------------------------


def _group_specs(a: Mapping[str, Any]) -> list[GroupSpec]:
    specs = []
    for stage, kinds in enumerate(a["layers"]):
        start = 0 if stage == 0 else 1
        blocks = [(f"layers.{stage}.{start + i}", kind) for i, kind in enumerate(kinds)]
        specs.append(_stream_spec(stage, blocks, a))
        for i, (name, kind) in enumerate(blocks):
            title = f"Stage {stage + 1}, layer {i + 1}"
            specs.append(_inner_spec(name, kind, title, a["planes"][stage], stage, a))
    return specs


def _stream_spec(stage: int, blocks: list[tuple[str, str]], a: Mapping[str, Any]) -> GroupSpec:
    group_id = f"stage{stage}.stream"
    before = "prologue.0", "prologue.1.bn"
    writers = list(before if stage == 0 else prefixed(f"layers.{stage}.0", ("conv", "norm.bn")))
    readers: list[str] = []
    shared: dict[str, tuple[str, ...]] = {}
    for name, kind in blocks:
        if kind == "DSSA":
            both = prefixed(name, ("W", "norm.bn"))  # their y1 rows meet the stream's spikes
            shared |= dict.fromkeys(both, (group_id, f"{name}.y2"))
            writers += (*both, *prefixed(name, ("Wproj", "norm_proj.bn")))
            readers.append(f"{name}.W")
        else:
            writers += prefixed(name, ("down.1", "down.2.bn"))
            readers.append(f"{name}.up.1")
    last = stage + 1 == len(a["planes"])
    readers.append("classifier" if last else f"layers.{stage + 1}.0.conv")
    return GroupSpec(
        group_id=group_id,
        kind="residual_dssa",
        width=a["planes"][stage],
        block=f"Stage {stage + 1}",
        title="residual stream",
        writers=tuple(writers),
        readers=tuple(readers),
        heads=a["num_heads"][stage],
        shared=shared,
    )


def _inner_spec(
    name: str, kind: str, title: str, width: int, stage: int, a: Mapping[str, Any]
) -> GroupSpec:
    if kind == "DSSA":
        group_id, both = f"{name}.y2", prefixed(name, ("W", "norm.bn"))
        return GroupSpec(
            group_id=group_id,
            kind="dssa_y2",
            width=width,
            block=title,
            title="DSSA y2",
            writers=both,
            readers=(f"{name}.Wproj",),
            heads=a["num_heads"][stage],
            shared=dict.fromkeys(both, (f"stage{stage}.stream", group_id)),
        )
    hidden, conv = _INNER * width, f"{name}.conv.0.1"
    return GroupSpec(
        group_id=f"{name}.hidden",
        kind="gwffn",
        width=hidden,
        block=title,
        title="GWFFN hidden",
        writers=prefixed(name, ("up.1", "up.2.bn", "conv.0.1", "conv.0.2.bn")),
        readers=(conv, f"{name}.down.1"),
        heads=hidden // a["group_size"],
        local=(conv,),
    )
