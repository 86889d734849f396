"""Rows of ``benchmarks/cifar10.py``: plans, trained networks and zeros, judged on test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._unstructured import prune_magnitudes, sparse_size
from psvit_core.evaluate import measure
from psvit_core.groups import plan_from_kept
from psvit_core.planners import make_plan
from psvit_core.records import (
    FinetuneSettings,
    Interval,
    Measurement,
    PrunePlan,
    RecoverySettings,
    SensitivityTable,
)
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.finetune import FinetuneTask, run_finetune
from psvit_core.tasks.recover import measure_file
from psvit_core.tasks.session import Session

#: One short training, the same for every policy. Nothing else was tried on these plans.
TRAINING = FinetuneSettings(epochs=1, lr=5e-4, batch=128, augment="crop")


def structured(
    test: Session, table: SensitivityTable, policy: str, saving: float
) -> dict[str, Any]:
    """Return the row of a policy's plan, as pruned and recovered."""
    plan: PrunePlan = make_plan(table, policy, memory_saving=saving)
    found: Measurement = evaluate(test, plan)
    pruned = found.unrecovered
    assert pruned is not None and pruned.drop is not None and found.drop is not None
    return {
        "saving": saving,
        "policy": policy,
        "bytes": found.size.bytes,
        "pruned": numbers(pruned.drop),
        "recovered": numbers(found.drop),
        "used": found.recovered_by,
    }


def finetuned(
    val: Session, test: Session, table: SensitivityTable, policy: str, saving: float, folder: Path
) -> list[float]:
    """Return the drop on test of a policy's plan, recovered and then fine-tuned.

    Args:
        val: The validation images, which choose the epoch, and the training images.
        test: The test images.
        table: The sweep that the plan is made from.
        policy: The policy.
        saving: Fraction of the bytes that the plan removes.
        folder: Of trained files; one that is there already is not trained again.
    """
    plan = make_plan(table, policy, memory_saving=saving)
    path = folder / f"{policy}-{saving}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{policy}-{saving}.part.safetensors"
        recovery = RecoverySettings(method="auto")
        task = FinetuneTask(settings=TRAINING, out=part, plan=plan, recovery=recovery)
        run_finetune(val, task)
        part.rename(path)
    drop = measure_file(test, plan, path).drop
    assert drop is not None
    return numbers(drop)


def unstructured(test: Session, saving: float) -> list[dict[str, Any]]:
    """Return the rows of zeros in single weights at the same bytes, without and with indices."""
    rows = []
    base = sparse_size(test.model).dense
    for name in ("values alone", "values and indices"):
        low, high = 0.0, 0.999
        for _ in range(30):  # the sparsity at which the file has the bytes
            middle = (low + high) / 2
            size = sparse_size(prune_magnitudes(test.model, middle))
            spent = size.sparse if name == "values and indices" else values_alone(size)
            low, high = (middle, high) if spent > (1 - saving) * base else (low, middle)
        sparse = prune_magnitudes(test.model, high)
        nothing = plan_from_kept(test.model, {})
        found = measure(
            test.model, test.data, nothing, result=sparse, run=test.run, store=test.store
        )
        assert found.drop is not None
        rows.append(
            {
                "saving": saving,
                "policy": f"zeros, {name}",
                "bytes": round((1 - saving) * base),
                "pruned": numbers(found.drop),
                "recovered": None,
                "used": "",
            }
        )
    return rows


def values_alone(size: Any) -> int:
    """Return the bytes of the weights that are left, without where they are."""
    return int(size.dense - 4 * (size.n_weights - size.n_left))


def numbers(interval: Interval, factor: float = 1.0) -> list[float]:
    """Return value, low and high."""
    return [round(factor * x, 4) for x in (interval.value, interval.low, interval.high)]
