"""Recovered sweeps: their definition, and what recovers their cells (``recover.cells``)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from psvit_core.data import EvalSet
from psvit_core.errors import DataError
from psvit_core.recover import check_calibration
from psvit_core.recover.cells import CellRefits
from psvit_core.recover.readers import RIDGE
from psvit_core.runtime import Run
from psvit_core.sensitivity.spec import SweepSpec
from psvit_core.sensitivity.work import MakeMeasurer
from psvit_core.storage.store import digest
from psvit_core.zoo.base import SpikingModel


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What a run needs beside the sweep, its images and where they run.

    Args:
        memory_budget: Bytes for the values of a batch; a quarter of the free memory if None.
        recovery_images: Calibration images of a recovered sweep.
        measurer: Makes what measures the cells elsewhere; this process if None.
    """

    memory_budget: int | None = None
    recovery_images: EvalSet | None = None
    measurer: MakeMeasurer | None = None


def recovered(spec: SweepSpec, images: EvalSet) -> SweepSpec:
    """Return the sweep whose cells are recovered: the readers of each group are refitted.

    Args:
        spec: A sweep of plain cells.
        images: Calibration images.

    Raises:
        DataError: If the images are a split that accuracy is measured on.
    """
    check_calibration(images)
    return replace(
        spec,
        conditions=replace(spec.conditions, recovery="lsq"),
        recovered_by=f"lsq {RIDGE:g} {digest([images.transform, *images.ids])}",
    )


def cell_refits(
    spec: SweepSpec, model: SpikingModel, run: Run, images: EvalSet | None
) -> CellRefits | None:
    """Return what recovers the cells of a sweep; None if nothing does.

    Raises:
        DataError: If these are not the sweep's calibration images.
    """
    if not spec.recovered_by:
        return None
    if images is None or recovered(spec, images).recovered_by != spec.recovered_by:
        raise DataError(
            f"The sweep {spec.key} is of recovered cells. It can only go on with the calibration "
            "images and the ridge that it began with. Start a new sweep."
        )
    return CellRefits(model, spec.summary.groups, images, run)
