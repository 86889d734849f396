"""Sweep a shipped model and measure plans of every policy: what the app shows on first open.

python scripts/make_demo_store.py

Writes psvit_core/zoo/demo/MODEL.npz (``psvit_core.demo``). Run it again when the engine's numbers
or the weights change: a bundle of others is not shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from psvit_core.demo import baseline_key, bundle_path, write_bundle
from psvit_core.jobs.engine import Engine, Subject, SweepSettings
from psvit_core.jobs.fronts import ParetoSettings, predicted_plans, run_pareto
from psvit_core.jobs.tasks import evaluate, run_sweep
from psvit_core.outcomes import load_outcome
from psvit_core.planners import POLICIES
from psvit_core.records import Measurement
from psvit_core.sensitivity.table import load_spec, sweep_keys
from psvit_core.store import Store
from psvit_core.zoo.cards import DEFAULT_MODEL

SAVINGS = (0.2, 0.35, 0.5, 0.6, 0.65, 0.7, 0.8)


def main() -> None:
    """Make the bundle of one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model that ships with weights")
    parser.add_argument("--folder", help="store to work in, for going on after a stop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.folder or folder)
        make(Engine(Subject(model=options.model), store), store)
        store.close()


def make(engine: Engine, store: Store) -> None:
    """Sweep, plan from the sweep alone, measure every plan, write the bundle."""
    began, busy = time.monotonic(), time.process_time()
    table = run_sweep(engine, SweepSettings())
    seconds = time.process_time() - busy  # others' load is not counted; run it on one thread
    print(f"sweep of {len(table.rows)} cells: {seconds:.0f} s of processor time", flush=True)
    front = ParetoSettings(
        policies=tuple(POLICIES), savings=SAVINGS, measured_planning=False, profile=True
    )
    archive = run_pareto(engine, front, table, lambda done, total, what: print(what, flush=True))
    for missed in archive.unreached:
        print(missed.reason)
    (key,) = sweep_keys(store)
    spec = load_spec(store, key)
    predicted_plans(store, spec, table)
    baseline = evaluate(engine, profile=True)

    entries: dict[str, Any] = {
        key: {"spec": spec.to_dict(), "saved": 0.0, "seconds": seconds}  # older than any other
    }
    for key in (k for prefix in ("pareto", "predicted/") for k in store.keys(prefix)):
        entries[key] = store.get(key)
    for entry in entries.values():
        if "measurement" in entry:
            entry["measurement"] = timeless(Measurement.from_dict(entry["measurement"])).to_dict()
    entries[baseline_key(table.summary.weights_hash)] = timeless(baseline).to_dict()
    keys = [spec.baseline_key, *dict.fromkeys(cell.key for cell in spec.cells())]
    outcomes = {}
    for key in keys:
        outcome = load_outcome(store, key)
        assert outcome is not None
        outcomes[key] = outcome.select(spec.ids)
    path = bundle_path(engine.model.name)
    path.parent.mkdir(exist_ok=True)
    write_bundle(path, table.summary.weights_hash, entries, outcomes)
    print(
        f"{path.name}: {path.stat().st_size:,} bytes, {len(archive.points)} plans, "
        f"{time.monotonic() - began:.0f} s"
    )


def timeless(m: Measurement) -> Measurement:
    """A measurement without latencies: they hold for one machine only, peak memory for all."""
    assert m.profile is not None
    return dataclasses.replace(m, profile=dataclasses.replace(m.profile, latency_ms={}))


if __name__ == "__main__":
    main()
