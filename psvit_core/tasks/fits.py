"""Count the bytes that a model needs to run, unpruned and pruned. Torch is imported inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psvit_core.records import FitReport, PrunePlan
from psvit_core.tasks.session import Session

if TYPE_CHECKING:
    from psvit_core.zoo.base import SpikingModel


def count_needs(session: Session, plan: PrunePlan | None) -> tuple[FitReport, FitReport | None]:
    """Return what the session's model needs for one image, and what it needs under a plan.

    No image of a user is read. The model runs as a copy: another job, between whose batches this
    one may run, has hooks on the session's own.

    Args:
        session: The unpruned model.
        plan: The plan; None: only the unpruned model.

    Returns:
        (the unpruned model's report, the pruned one's or None), against all known devices.

    Raises:
        InvalidPlanError: If the plan was made for other weights or does not fit the model.
    """
    from psvit_core.metrics.fits import check_fit
    from psvit_core.surgery import apply_plan

    copy = _copied(session.model)
    return check_fit(copy), check_fit(apply_plan(copy, plan)) if plan else None


def _copied(model: SpikingModel) -> SpikingModel:
    """Return the model in the processor's memory, with memory of its own and without hooks."""
    copy = model.resized(model.widths)
    tensors = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    copy.load_state_dict(tensors, strict=True, assign=True)
    copy.name = model.name
    return copy
