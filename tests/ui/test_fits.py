"""Does it fit? The panel of the Export page, on numbers that are easy to add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.machine_jobs import count_fits, find_fits
from psvit_core.metrics.devices import DEVICES, own_device
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import PrunePlan, Subject
from psvit_core.records.jobs import FitsRequest, FitsResult
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.patience import JOB_MS, PATIENCE
from tests.ui.conftest import OpenPage, Server, settled
from tests.ui.example import fit_report, summary
from ui.charts.needs import needs_chart
from ui.model import drafts, fits, loaders
from ui.model.fits import Need

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


def put_job(store: Store, result: FitsResult, plan: PrunePlan | None) -> Job:
    request = FitsRequest(plan=plan)
    params = {"subject": Subject(limit=64).to_dict(), **request.to_dict()}  # other images
    job = Job(id="job1", task="fits", title="Memory", params=params, state="done", created=1.0)
    return client.save(store, dataclasses.replace(job, result=result.to_dict()))


def export_page() -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "export.py"), default_timeout=PATIENCE).run()
    assert not app.exception
    return app


def text(app: AppTest) -> str:
    parts = [str(e.value) for e in (*app.markdown, *app.caption, *app.error)]
    return "\n".join(parts).replace(NBSP, " ")


# ---- the page --------------------------------------------------------------------------------


def test_counting_is_asked_for_once(store: Store) -> None:
    app = export_page()
    assert "Not counted yet." in text(app)
    assert not app.button(key="fits-start").disabled
    job = count_fits(Workspace(Subject(), store), None)  # what the button does
    assert job.request == FitsRequest()
    assert job.active
    assert not [b for b in export_page().button if b.key == "fits-start"]
    client.save(store, dataclasses.replace(job, state="failed", error="no *memory*"))
    assert "Memory count failed. no \\*memory\\*" in text(export_page())


def test_a_plan_that_fits_beside_a_network_that_does_not(store: Store) -> None:
    drafts.save_draft(store, MODEL, drafts.draft_of(MODEL, PLAN))
    put_job(store, FitsResult(unpruned=fit_report(300_000), pruned=fit_report(100_000)), PLAN)
    app = export_page()  # the Pico: 264 KiB = 270,336 bytes of RAM
    shown = text(app)
    assert "**Current plan** :green[:material/check_circle:] fits" in shown
    assert "**Unpruned** :red[:material/cancel:] does not fit" in shown
    assert "needs 300.0 kB, **29.7 kB missing** (111.0 % of it, **binds**)" in shown
    assert "needs 100.0 kB, **170.3 kB spare** (37.0 % of it, **binds**)" in shown
    spare = 2 * 2**20 - plan_size(MODEL, None).bytes
    assert f"**{spare / 1000:.1f} kB spare** (" in shown
    assert "all 4 time steps at once" in shown
    assert "arithmetic" not in shown
    assert "Neuromorphic" not in shown
    assert DEVICES["pico"].source in shown

    app.segmented_control(key="fits-weights").set_value("int8").run()
    shown = text(app)
    assert "int8 is arithmetic" in shown
    spare = 2 * 2**20 - plan_size(MODEL, None, "int8").bytes
    assert f"**{spare / 1e6:.2f} MB spare** (" in shown
    assert "needs 300.0 kB" in shown  # activations stay

    app.selectbox(key="fits-device").set_value("loihi2").run()
    shown = text(app)
    assert "Neuromorphic chips: a fit by bytes does not mean" in shown
    assert "binds" not in shown  # one memory for everything


def test_own_numbers(store: Store) -> None:
    put_job(store, FitsResult(unpruned=fit_report(300_000, levels=4)), None)
    app = export_page()
    app.selectbox(key="fits-device").set_value(fits.OWN).run()
    app.text_input(key="fits-ram").set_value("300KB").run()
    assert "needs 300.0 kB, **0.0 kB spare** (100.0 % of it" in text(app)
    app.text_input(key="fits-flash").set_value("").run()
    total = 300_000 + plan_size(MODEL, None).bytes
    assert f"needs {total / 1e6:.2f} MB, **{(total - 300_000) / 1e6:.2f} MB missing**" in text(app)
    assert "T × D = 2 × 4 = 8 steps" in text(app)
    assert "1,000 integers take 3.0 kB as integers and 4.0 kB as binary spikes" in text(app)
    app.text_input(key="fits-ram").set_value("*much*").run()
    assert not app.exception
    assert "Memories need a size such as 524288, 512KiB or 2MB; got '\\*much\\*'" in text(app)
    assert "does not fit" not in text(app)


def test_which_job_counts_for_a_plan(store: Store) -> None:
    workspace = Workspace(Subject(), store)
    assert find_fits(workspace, None) is None
    put_job(store, FitsResult(unpruned=fit_report(1)), None)
    assert find_fits(workspace, None) is not None
    assert find_fits(workspace, PLAN) is None
    put_job(store, FitsResult(unpruned=fit_report(1), pruned=fit_report(1)), PLAN)
    assert find_fits(workspace, PLAN) is not None
    assert find_fits(workspace, None) is not None  # it counted the unpruned model, too
    other = plan_from_ratios(MODEL, {MODEL.groups[0].group_id: 0.5}, criterion="l2")
    assert find_fits(workspace, other) is None
    assert find_fits(Workspace(Subject(time_steps=2), store), PLAN) is None


@pytest.mark.slow
def test_the_worker_counts(fresh_server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{fresh_server.url}/export")
    settled(page)
    page.get_by_role("button", name="Count memory").click()
    expect(page.get_by_text("does not fit")).to_be_visible(timeout=JOB_MS)
    expect(page.get_by_text("94.2\N{NO-BREAK SPACE}kB missing")).to_be_visible()  # docs/fits.md
    page.get_by_text("Weights by layer, activations by position").click()
    expect(page.get_by_text("the 12 largest of 83")).to_be_visible()


# ---- the data and the chart ------------------------------------------------------------------


def test_the_state_belongs_to_every_position() -> None:
    full = fits.needs(MODEL, None, fit_report(1000, state=200), "float32")
    small = fits.needs(MODEL, PLAN, fit_report(400, state=50), "float32")
    assert full.positions == {"patch_embed": 1200, fits.BETWEEN: 700}
    found = fits.position_needs(full, small)
    assert found == [Need("patch_embed", 1200, 450, 50), Need(fits.BETWEEN, 700, 250, 50)]
    assert fits.need_rows(found).to_dict("list") == {
        "name": ["patch_embed", fits.BETWEEN],
        "unpruned": [1200, 700],
        "plan": [450, 250],
    }
    assert list(fits.need_rows(fits.position_needs(full, None))) == ["name", "unpruned"]
    assert "200 B" not in fits.schedule_line(full)
    assert "one time step after the other" in fits.schedule_line(full)
    against = full.on(own_device(None, plan_size(MODEL, None).bytes + 1200))
    assert against.fits
    assert against.limits[0].spare_bytes == 0


def test_layers_add_up_in_every_precision() -> None:
    for precision in fits.PRECISIONS:
        found = fits.needs(MODEL, PLAN, fit_report(1), precision)
        assert found.weight_bytes == plan_size(MODEL, PLAN, precision).bytes


def test_the_largest_stay_in_their_order() -> None:
    found = [Need(name, n, None) for name, n in (("a", 5), ("b", 1), ("c", 9), ("d", 7))]
    assert [need.name for need in fits.largest(found, 3)] == ["a", "c", "d"]


def test_bars_of_a_plan_with_state() -> None:
    found = [Need("a", 1200, 450, 50), Need("b", 700, 250, 50)]
    unpruned, plan, state = needs_chart(found).data
    assert list(unpruned.x) == [1200, 700]
    assert [b + x for b, x in zip(plan.base, plan.x, strict=True)] == [450, 250]
    assert list(state.x) == [50, 50]
    (only,) = needs_chart([Need("a", 1200, None)], dark=True).data
    assert list(only.x) == [1200]


def test_memories_are_named_as_their_makers_do() -> None:
    assert fits.device_title("pico").endswith(f": 2{NBSP}MiB flash, 264{NBSP}KiB RAM")
    assert fits.device_title("loihi").endswith(f": 33.00{NBSP}MB for everything")
