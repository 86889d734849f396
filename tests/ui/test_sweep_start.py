"""Starting a sweep from the app: the order of measurements, and the estimated time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from psvit_core.importance import CRITERIA
from psvit_core.jobs import client
from psvit_core.plan.size import plan_size
from psvit_core.records import IMAGE_CRITERIA, ModelSummary, SweepSettings
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import ModelCard, model_card
from tests.made import make_job
from tests.ui.example import put_sweep, summary
from ui.model import formats
from ui.model.durations import sweep_time
from ui.panels.sensitivity import start


@dataclass
class Recorder:
    """A fake workspace that records its calls."""

    card: ModelCard | None
    calls: list[str] = field(default_factory=list)

    def measure(self, plan: Any) -> None:
        assert plan is None
        self.calls.append("baseline")

    def start_sweep(self, settings: SweepSettings) -> None:
        self.calls.append("sweep")


@pytest.mark.parametrize(
    ("name", "expected"), [("sdt_v1_8_512", ["baseline", "sweep"]), ("sdt_v1_digits", ["sweep"])]
)
def test_published_models_measure_their_baseline_first(
    name: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.model.state.put", lambda key, value: None)
    workspace = Recorder(model_card(name))
    start._start(workspace, SweepSettings())  # type: ignore[arg-type]
    assert workspace.calls == expected


def test_the_criteria_on_screen_are_those_of_the_engine() -> None:
    assert set(formats.CRITERION_NAMES) == set(CRITERIA)
    assert {name for name, c in CRITERIA.items() if c.needs_images} == set(IMAGE_CRITERIA)


def check(store: Store, model: ModelSummary, n_cells: int, source: str, seconds: float) -> None:
    estimate = sweep_time(store, model, n_cells, 50)
    assert estimate is not None
    assert estimate.source == source
    assert estimate.seconds == pytest.approx(seconds)


def test_the_time_is_estimated_from_earlier_sweeps(tmp_path: Path) -> None:
    store, model, other = Store(tmp_path), summary(), summary("sdt_v1_digits")
    assert sweep_time(store, model, 100, 50) is None  # no pace is known
    shipped = put_sweep(store, other, n_images=20)
    n_cells = len(other.groups) * len(shipped.ratios)
    entry = {"spec": shipped.to_dict(), "saved": 0.0, "seconds": 0.2 * 20 * n_cells}
    store.put(shipped.key, entry)
    check(store, other, 100, "shipped", 0.2 * 50 * 100)
    check(store, other, 200, "shipped", 0.2 * 50 * 200)
    larger = size_ratio(model, other)
    check(store, model, 100, "shipped", 0.2 * 50 * 100 * larger)

    spec = put_sweep(store, model, n_images=20)
    job = make_job(
        state="done",
        paced=100.0,
        ended=300.0,
        fresh=2001,
        result={"sweep_key": spec.key},
    )
    client.save(store, job)
    check(store, model, 100, "model", 5000 * 0.1)
    check(store, other, 100, "machine", 5000 * 0.1 / larger)


def size_ratio(one: ModelSummary, other: ModelSummary) -> float:
    """Return the ratio of two models' multiply-accumulates per image."""
    macs = [plan_size(model, None).macs * model.T for model in (one, other)]
    return macs[0] / macs[1]
