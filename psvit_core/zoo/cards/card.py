"""What a card contains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psvit_core.errors import ModelError
from psvit_core.records import Transform
from psvit_core.zoo.cards.resizing import ResizeRule

NO_LICENCE = "no licence file in the official repository: ask its authors before sharing weights"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published accuracy."""

    top1: float  # percent
    T: int
    px: int  # image side
    source: str  # empty if unknown
    verified: bool = True  # False if the number was not checked at its source

    @property
    def label(self) -> str:
        """Source for display, marked if the number is unverified."""
        return ", ".join(filter(None, (self.source, "" if self.verified else "unverified")))


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A registered model."""

    name: str
    title: str
    family: str
    arguments: Mapping[str, Any]
    parameters: int  # including unused ones; 0 if unknown
    transform: Transform
    data: str  # data set that the model was trained on; default of --data if it is built in
    paper: str
    licence: str = NO_LICENCE
    available: str = ""  # where the weights can be had, with the date of that knowledge
    batch: int = 32  # default of --batch
    weights: Path | None = None  # shipped weights; None if a checkpoint is needed
    file_name: str = ""  # file name of the published weights, if known
    published: tuple[Published, ...] = ()
    notes: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    builder: Any = None  # a psvit_core.custom.plugin.CustomBuilder for custom models
    rule: ResizeRule | None = None  # None: other image sizes keep the transform's own ratio
    side_arguments: tuple[str, ...] = ("img_size_h", "img_size_w")  # of the constructor

    @property
    def images_included(self) -> bool:
        """Whether measuring needs no images from elsewhere."""
        return self.data.startswith("digits")

    def at(self, px: int | None) -> ModelCard:
        """Return this card for another image side, with the official transform for it.

        Args:
            px: Image side in pixels; None returns the card unchanged.

        Raises:
            ModelError: If the images are too small.

        Source:
            The official evaluation scripts; see ``resizing``.
        """
        old = self.transform
        if px is None or px == old.crop + 2 * old.pad:
            return self
        crop = px - 2 * old.pad
        if crop < 8:
            raise ModelError(
                f"Images of {px} pixels are too small for {self.name}. Use a larger image size."
            )
        if self.rule is None:
            resize, interpolation = crop * old.resize // old.crop, old.interpolation
        else:
            resize, interpolation = self.rule.resize(crop)
        transform = dataclasses.replace(old, crop=crop, resize=resize, interpolation=interpolation)
        sides = dict.fromkeys(self.side_arguments, px)
        return dataclasses.replace(self, arguments={**self.arguments, **sides}, transform=transform)
