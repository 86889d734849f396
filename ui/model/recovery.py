"""The recovery without training that the numbers of pruned networks include.

The header's choice is a condition of all results, like the images. ``auto`` amounts to none where
the data has no calibration images, which only the worker finds out.
"""

from __future__ import annotations

import os

from psvit_core.errors import PsvitError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import RECOVERIES, PrunePlan, RecoverySettings
from psvit_core.records.jobs import CheckDataResult, SweepResult
from psvit_core.sensitivity.spec import load_spec
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.model import state

DEFAULT_ENV = "PSVIT_RECOVER"  # the choice at first: auto unless set
NEEDS_IMAGES = (
    "Recovery needs the model's images, which are not included. Set their folder at the top."
)
_USED = "recovery-used"  # session key: what the choice amounts to


def default() -> str:
    """Return the choice on a first visit."""
    wanted = os.environ.get(DEFAULT_ENV, "auto")
    return wanted if wanted in RECOVERIES else "auto"


def options(in_url: str | None) -> list[str]:
    """Return the choices: auto, none, and a single method that a link or the user's setting names.

    Args:
        in_url: The method in the URL; one that does not exist is left out.
    """
    named = (default(), in_url, state.get(state.RECOVERY))
    found = dict.fromkeys(["auto", "none", *(name for name in named if name in RECOVERIES)])
    return [*found]


def chosen() -> str:
    """Return the header's choice, one of ``RECOVERIES``."""
    found: str = state.get(state.RECOVERY) or default()
    return found


def used() -> str:
    """Return the recovery that numbers include: the choice, or none where it is not possible."""
    found: str = state.get(_USED, "none")
    return found


def use(method: str) -> None:
    """Set the recovery that the numbers of this run include."""
    state.put(_USED, method)


def possible(workspace: Workspace, method: str) -> bool:
    """Return whether a recovery is possible, as far as is known.

    ``auto`` is not if the images were checked and have no calibration split, or if a job that was
    to recover did not.

    Args:
        workspace: The model on its images.
        method: One of ``RECOVERIES``.
    """
    if method != "auto":
        return True
    data = workspace.subject.data
    for job in client.list_jobs(workspace.store):  # the newest first
        if job.subject is None or job.subject.data != data or job.state != "done":
            continue
        if isinstance(job.outcome, CheckDataResult) and job.outcome.report is not None:
            calib = [s for s in job.outcome.report.splits if s.split == "calib"]
            return bool(calib) and calib[0].n_images > 0
        if job.subject.model == workspace.subject.model and job.subject.recovery == "auto":
            recovered = _recovered(workspace.store, job)
            if recovered is not None:
                return recovered
    return True


def export(workspace: Workspace, plan: PrunePlan, file_name: str, *, recovered: bool) -> Job:
    """Write a plan's network in the background, and measure it before and after recovery.

    Args:
        workspace: The model on its images.
        plan: The plan.
        file_name: Name of the checkpoint file.
        recovered: Whether to recover: by the chosen method, or ``auto`` if that is none.
    """
    single = used() not in ("none", "auto")
    return workspace.export(
        plan,
        file_name,
        RecoverySettings(method=used()) if recovered and single else None,
        default_recovery=recovered and not single,
        measure=True,
    )


def _recovered(store: Store, job: Job) -> bool | None:
    """Return whether a finished job recovered; None if it does not tell."""
    if job.measurement is not None and job.measurement.plan is not None:
        return job.measurement.conditions.recovery != "none"
    if isinstance(job.outcome, SweepResult) and job.outcome.sweep_key:
        try:
            return load_spec(store, job.outcome.sweep_key).conditions.recovery != "none"
        except PsvitError:  # deleted, or of another version
            return None
    return None
