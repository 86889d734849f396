"""Make the results that ship with a model: its sweep, and measured plans of every policy.

    python scripts/make_demo_store.py [--model NAME] [--data SPEC]
    python scripts/make_demo_store.py --recovered [--model NAME] [--data SPEC]

Writes psvit_core/storage/bundles/MODEL.npz, or the recovered sweep and the plans measured after
recovery as MODEL.lsq.npz, which is read together with the first. Run it again when the engine's
numbers, the recovery or the weights change: the app ignores bundles of other engine versions and
weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import numpy as np

from psvit_core.pareto import ParetoArchive
from psvit_core.records import (
    DEFAULT_MODEL,
    POLICIES,
    Measurement,
    ParetoSettings,
    SensitivityTable,
    Subject,
    SweepSettings,
)
from psvit_core.sensitivity.joint import joint_key
from psvit_core.sensitivity.spec import SweepSpec, load_spec, sweep_keys
from psvit_core.storage.predictions import Outcome, load_outcome
from psvit_core.storage.shipped import bundle_path, write_bundle
from psvit_core.storage.store import Store
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.pareto import predicted_key, predicted_plans, run_pareto
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.tasks.unpruned import shipped_measurement_key

SAVINGS = "0.2,0.35,0.5,0.6,0.65,0.7,0.8"


def main() -> None:
    """Make the bundle of one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model that ships with weights")
    parser.add_argument("--data", help="its images, if they are not included")
    parser.add_argument("--savings", default=SAVINGS, help="of the measured plans")
    parser.add_argument("--folder", help="store to work in, so that a stopped run can continue")
    parser.add_argument("--recovered", action="store_true", help="results after recovery")
    options = parser.parse_args()
    savings = tuple(float(saving) for saving in options.savings.split(","))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.folder or folder)
        subject = Subject(model=options.model, data=options.data)
        if options.recovered:
            make_recovered(
                Session(dataclasses.replace(subject, recovery="auto"), store), store, savings
            )
        else:
            make(Session(subject, store), store, savings)
        store.close()


def make_recovered(session: Session, store: Store, savings: tuple[float, ...]) -> None:
    """Sweep recovered cells, measure plans, and write the bundle.

    The baseline is in the other one. The plans without recovery are parts of the recovered ones.
    """
    keys: list[str] = []
    table = run_sweep(session, SweepSettings(), keys.append)
    spec = load_spec(store, keys[0])
    archive = measure_front(session, table, savings).under(session.recovery.method)
    predicted_plans(store, spec, table)
    entries: dict[str, Any] = {
        spec.key: {"spec": spec.to_dict(), "saved": 0.0},
        joint_key(spec.key, recovered=True): [row.to_dict() for row in table.joint],
    }
    entries[predicted_key(spec)] = store.get(predicted_key(spec))
    entries |= front_entries(store, recovered=True)
    outcomes = outcomes_of(store, spec, [cell.key for cell in spec.cells() if cell.plan.kept])
    path = bundle_path(session.model.name, table.conditions.recovery)
    write_bundle(path, table.summary.weights_hash, entries, outcomes, np.float16)
    print(
        f"{path.name}: {path.stat().st_size:,} bytes, {len(table.rows)} cells, "
        f"{len(archive.points)} plans"
    )


def measure_front(
    session: Session, table: SensitivityTable, savings: tuple[float, ...]
) -> ParetoArchive:
    """Measure the plans of every policy, planned from the sweep alone."""
    front = ParetoSettings(
        policies=tuple(POLICIES), savings=savings, measured_planning=False, profile=True
    )
    archive = run_pareto(session, front, table, lambda done, total, what: print(what, flush=True))
    for missed in archive.unreached:
        print(missed.reason)
    return archive


def front_entries(store: Store, *, recovered: bool) -> dict[str, Any]:
    """Return the entries of the front's plans, and of archives; without what else was measured."""
    entries = {}
    for key in store.keys("pareto"):
        entry = store.get(key)
        if "measurement" not in entry:  # an archive without points
            if entry["split"] == "val":
                entries[key] = entry
            continue
        m = Measurement.from_dict(entry["measurement"])
        if (m.conditions.recovery != "none") != recovered:
            continue
        if m.conditions.split == "val" and m.profile is not None:
            entries[key] = {**entry, "measurement": timeless(m).to_dict()}
    return entries


def outcomes_of(store: Store, spec: SweepSpec, keys: Iterable[str]) -> dict[str, Outcome]:
    """Return the stored outcomes under some keys on the images of a sweep, in its order."""
    outcomes = {}
    for key in dict.fromkeys(keys):
        outcome = load_outcome(store, key)
        assert outcome is not None
        outcomes[key] = outcome.select(spec.ids)
    return outcomes


def make(session: Session, store: Store, savings: tuple[float, ...]) -> None:
    """Sweep, plan from the sweep alone, measure every plan, write the bundle."""
    began, busy = time.monotonic(), time.process_time()
    whole = not sweep_keys(store)  # a continued sweep's time says nothing of its cells
    table = run_sweep(session, SweepSettings())
    seconds = time.process_time() - busy  # excludes other processes; run on one thread
    print(f"sweep of {len(table.rows)} cells: {seconds:.0f} s of processor time", flush=True)
    archive = measure_front(session, table, savings)
    specs = [load_spec(store, key) for key in sweep_keys(store)]
    (spec,) = [spec for spec in specs if not spec.recovered_by]
    predicted = predicted_key(spec)
    predicted_plans(store, spec, table)
    baseline = evaluate(session, profile=True)

    entries: dict[str, Any] = {
        spec.key: {  # older than any other
            "spec": spec.to_dict(),
            "saved": 0.0,
            **({"seconds": seconds} if whole else {}),
        }
    }
    for key in (predicted, joint_key(spec.key)):
        entries[key] = store.get(key)
    entries |= front_entries(store, recovered=False)
    entries[shipped_measurement_key(table.summary.weights_hash)] = timeless(baseline).to_dict()
    outcomes = outcomes_of(store, spec, [spec.baseline_key, *(cell.key for cell in spec.cells())])
    path = bundle_path(session.model.name)
    path.parent.mkdir(exist_ok=True)
    write_bundle(path, table.summary.weights_hash, entries, outcomes)
    print(
        f"{path.name}: {path.stat().st_size:,} bytes, {len(archive.points)} plans, "
        f"{time.monotonic() - began:.0f} s"
    )


def timeless(m: Measurement) -> Measurement:
    """Return a measurement without latencies, which are valid on one machine only."""
    assert m.profile is not None
    return dataclasses.replace(m, profile=dataclasses.replace(m.profile, latency_ms={}))


if __name__ == "__main__":
    main()
