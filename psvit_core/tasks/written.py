"""Measure a pruned file that was written, and record the result in it. Torch is imported inside."""

from __future__ import annotations

from pathlib import Path

from psvit_core.callbacks import Tick, keep_going
from psvit_core.records import Measurement, PrunePlan
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.recover import measure_file
from psvit_core.tasks.session import Session


def measure_written(
    session: Session, plan: PrunePlan, path: Path, tick: Tick = keep_going
) -> tuple[Measurement, Measurement]:
    """Measure a written file, and the plan as pruned, on the session's images.

    The file is read again, so that the measurement is of what it contains. It is then written with
    the measurement in its header.

    Args:
        session: The unpruned model and its images.
        plan: The plan that the file was made by.
        path: The file.
        tick: Called before each batch; may raise to stop.

    Returns:
        (the plan without recovery, the network in the file).

    Raises:
        DataError: If there are no images.
    """
    from psvit_core.zoo.recorded import record_measurement

    plain = evaluate(session.without_recovery(), plan, tick)
    found = measure_file(session, plan, path, tick, plain)
    record_measurement(path, found)
    return plain, found
