"""Evaluation transforms of the published ImageNet models, by family and image size.

The official scripts resize the shorter side to ``int(px / crop_pct)``, then take the centre crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from psvit_core.records import Transform


@dataclass(frozen=True, kw_only=True)
class ResizeRule:
    """How a family's official scripts resize images before the centre crop."""

    crop_pct: float  # image side divided by the resized shorter side
    whole_above: int | None = None  # larger images are resized to the image side itself
    #: Image side -> (resized shorter side, interpolation), where a script has an option for it.
    exceptions: Mapping[int, tuple[int, str]] = field(default_factory=dict)

    def resize(self, px: int) -> tuple[int, str]:
        """Return the resized shorter side and the interpolation for images of ``px`` pixels."""
        if px in self.exceptions:
            return self.exceptions[px]
        whole = self.whole_above is not None and px > self.whole_above
        return (px if whole else int(px / self.crop_pct)), "bicubic"


def _whole_above_224(resize: int) -> ResizeRule:
    return ResizeRule(crop_pct=224 / resize, whole_above=224)


_LARGE_VALID = {288: (320, "bilinear")}  # the option --large-valid

#: Rule of each family's ImageNet models. Other models keep the ratio of their own transform.
RESIZE_RULES: dict[str, ResizeRule] = {
    "spikformer_imagenet": ResizeRule(crop_pct=1.0),
    "sdt_v1": ResizeRule(crop_pct=0.95, exceptions=_LARGE_VALID),
    "sdt_v2": _whole_above_224(256),
    "sdt_v3": _whole_above_224(232),
    "qkformer_imagenet": _whole_above_224(256),
    "spikingformer_imagenet": ResizeRule(crop_pct=1.0),
    "spikingformer_cml_imagenet": ResizeRule(crop_pct=1.0),
    "statten": ResizeRule(crop_pct=0.95, exceptions=_LARGE_VALID),
    "max_former_imagenet": _whole_above_224(256),
    "ms_qkformer_imagenet": _whole_above_224(256),
    "sdt_v3_large": _whole_above_224(232),
    "sdt_v3_large_base": _whole_above_224(232),
    "sdt_v3_large_d8": _whole_above_224(232),
    "spikingresformer": ResizeRule(crop_pct=0.95),
}


def imagenet_transform(family: str, px: int = 224) -> Transform:
    """Return the official ImageNet transform of a family at one image size."""
    resize, interpolation = RESIZE_RULES[family].resize(px)
    return Transform(resize=resize, crop=px, interpolation=interpolation)
