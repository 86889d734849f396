"""Latency by layer: the panel of the Compare page, and the limit on the Tune page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from psvit_core.callbacks import Progress, Tick
from psvit_core.jobs import client, run
from psvit_core.jobs.client import Job
from psvit_core.machine_jobs import latency_job, latency_table, time_layers
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.latency import PredictedLatency
from psvit_core.records import LatencyTable, LayerLatency, Machine, Subject
from psvit_core.records.jobs import LatencyRequest, LatencyResult
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session
from psvit_core.workspace import Workspace
from tests.patience import PATIENCE
from tests.ui.example import put_sweep, summary
from ui.charts.latency import latency_chart
from ui.model import drafts, latency, loaders
from ui.panels.job import how_far

ROOT = Path(__file__).parents[2]
MODEL = summary("sdt_v1_digits")
PLAN = plan_from_ratios(MODEL, {g.group_id: 0.5 for g in MODEL.groups}, criterion="l2")
NBSP = "\N{NO-BREAK SPACE}"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Iterator[Store]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    yield Store(tmp_path)
    loaders.open_store.clear()


def known_table() -> LatencyTable:
    """Return a table: 2 ms a group in proportion to its units, 3 ms between the layers."""
    layers = tuple(
        LayerLatency(
            name=f"layer {i}",
            kind="Conv2d",
            groups=(g.group_id,),
            widths=((g.n_units,), (1,)),
            ms=(2.0, 2.0 / g.n_units),
        )
        for i, g in enumerate(MODEL.groups)
    )
    return LatencyTable(
        model=MODEL.model,
        weights_hash=MODEL.weights_hash,
        machine=Machine(device="cpu", processor="P", threads=1, torch="2", kernels="plain"),
        precision="float32",
        T=MODEL.T,
        batch=1,
        input_shape=MODEL.input_shape,
        full_widths={g.group_id: g.n_units for g in MODEL.groups},
        total_ms=3.0 + 2.0 * len(layers),
        rest_ms=3.0,
        rest_slope_ms=0.0,
        layers=layers,
    )


def put_job(store: Store) -> Job:
    params = {"subject": Subject(limit=64).to_dict(), **LatencyRequest().to_dict()}
    job = Job(id="job1", task="latency", title="Times", params=params, state="done", created=1.0)
    result = LatencyResult(table=known_table())
    return client.save(store, dataclasses.replace(job, result=result.to_dict()))


def page(name: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=PATIENCE).run()
    assert not app.exception
    return app


def text(app: AppTest) -> str:
    return "\n".join(str(e.value) for e in (*app.markdown, *app.caption)).replace(NBSP, " ")


def test_timing_is_asked_for_once_and_then_shown(store: Store) -> None:
    drafts.save_draft(store, MODEL, drafts.draft_of(MODEL, PLAN))
    app = page("compare")
    assert "Not timed yet on this machine." in text(app)
    assert not app.button(key="latency-start").disabled
    workspace = Workspace(Subject(), store)
    job = time_layers(workspace)  # what the button does
    assert job.active and job.request == LatencyRequest()
    assert latency_job(workspace) == job
    assert not [b for b in page("compare").button if b.key == "latency-start"]
    client.save(
        store,
        dataclasses.replace(job, result=LatencyResult(table=known_table()).to_dict(), state="done"),
    )
    assert latency_table(store, MODEL) == known_table()
    shown = text(page("compare"))
    n = len(MODEL.groups)
    assert f"Unpruned **{3 + 2 * n:.2f} ms**, measured" in shown
    assert f"This plan **{3 + n:.2f} ms**, predicted" in shown
    assert "timed on P, 1 thread" in shown
    assert f"by layer, the 13 slowest of {n}" in shown  # the last bar is no layer


def test_the_worker_measures_the_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Session, int]] = []

    def measured(session: Session, batch: int, progress: Progress, tick: Tick) -> LatencyTable:
        asked.append((session, batch))
        progress(25, 25, "networks timed")
        return known_table()

    monkeypatch.setattr(run, "measure_latency", measured)
    job, session = time_layers(Workspace(Subject(), store)), Session(Subject(), store)
    working = run.JobRun(store, job, lambda _: session, lambda _: None)
    assert working.run() == LatencyResult(table=known_table())
    assert asked == [(session, 1)]
    assert how_far(working.job) == "25 of 25 networks timed"


def test_a_table_of_other_weights_or_steps_is_not_used(store: Store) -> None:
    put_job(store)
    assert latency_table(store, MODEL) == known_table()
    assert latency_table(store, dataclasses.replace(MODEL, weights_hash="other")) is None
    assert latency_table(store, dataclasses.replace(MODEL, T=MODEL.T + 1)) is None


def test_the_chart_has_all_layers_and_the_rest() -> None:
    found = PredictedLatency(known_table())
    times = latency.layer_times(found, PLAN)
    assert sum(time.unpruned for time in times) == pytest.approx(found.table.total_ms)
    assert sum(time.plan or 0 for time in times) == pytest.approx(3 + len(MODEL.groups))
    figure = latency_chart(latency.largest(times, 4))
    whole, plan = figure.data
    assert len(whole.x) == 4 and whole.x[-1] == plan.x[-1] == 3.0  # the rest is last, not pruned
    assert list(latency.rows(times).columns) == ["layer", "unpruned", "plan"]
    [alone] = latency_chart(latency.layer_times(found, None)).data
    assert sum(alone.x) == pytest.approx(found.table.total_ms)


@pytest.mark.slow
def test_a_limit_on_latency_is_planned_by_the_table(store: Store) -> None:
    put_sweep(store, MODEL)
    app = page("tune")
    field = next(n for n in app.number_input if "limits-latency" in str(n.key))
    assert field.disabled
    assert [b for b in app.button if b.key == "tune-limits-timing-start"]
    put_job(store)
    app = page("tune")
    field = next(n for n in app.number_input if "limits-latency" in str(n.key))
    assert not field.disabled
    field.set_value(45.0).run()
    app.button(key="tune-fit").click().run()
    assert not app.exception and not app.error
    draft = drafts.load_draft(store, MODEL)
    assert draft is not None
    assert PredictedLatency(known_table()).saving(draft.plan) >= 0.45
