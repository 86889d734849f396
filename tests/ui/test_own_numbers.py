"""What pages say of measured numbers, and how their header fits a small window."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Locator, Page, expect

from psvit_core.jobs import client
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import Interval, Measurement, PrunePlan, Subject
from psvit_core.records.jobs import MeasureRequest, MeasureResult
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.ui.conftest import OpenPage, Server, start_server
from tests.ui.example import CONDITIONS, put_sweep, summary
from ui.model import drafts, open_files

pytestmark = pytest.mark.slow

NAME = "sdt_v1_digits"
MODEL = summary(NAME)
CHANCE = "no better than guessing"
PLAN = plan_from_ratios(
    MODEL, {g.group_id: 0.5 for g in MODEL.groups if g.kind != "residual"}, criterion="l2"
)
FIRING = {"block.0.mlp.lif": 0.125, "block.1.mlp.lif": 0.0625}


def measurement(plan: PrunePlan | None, accuracy: float, data: str = "digits") -> Measurement:
    return Measurement(
        model=NAME,
        weights_hash=MODEL.weights_hash,
        conditions=dataclasses.replace(CONDITIONS, data=data, n_images=750, T=MODEL.T),
        accuracy=Interval(value=accuracy, low=accuracy - 0.02, high=accuracy + 0.02),
        size=plan_size(MODEL, plan),
        sops=1e6,
        macs_real=1e6,
        energy_pj=1e6,
        firing=FIRING,
        plan=plan,
        baseline_accuracy=Interval(value=0.98, low=0.97, high=0.99) if plan else None,
        drop=Interval(value=5.0, low=4.0, high=6.0) if plan else None,
        confusions=(("4", "9", 12, 2), ("7", "1", 3, 5)) if plan else None,
        per_class={"4": (75, 60, 73), "7": (75, 72, 70)} if plan else None,
    )


def put(store: Store, job_id: str, plan: PrunePlan | None, found: Measurement) -> None:
    """Store a measurement as its job would."""
    subject = Subject(model=NAME, data=None if found.conditions.data == "digits" else "folder:/x")
    client.save(
        store,
        client.Job(
            id=job_id,
            task="measure",
            title="",
            params={"subject": subject.to_dict(), **MeasureRequest(plan=plan).to_dict()},
            state="done",
            created=1.0,
            ended=1.0,
            result=MeasureResult(measurement=found).to_dict(),
        ),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("store"))
    put_sweep(server.store, MODEL)
    put(server.store, "base", None, measurement(None, 0.98))
    put(server.store, "own", None, measurement(None, 0.1, "folder:/x"))
    put(server.store, "plan", PLAN, measurement(PLAN, 0.93))
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, PLAN))
    yield server
    server.kill()
    server.end_workers()


@pytest.mark.parametrize("path", ["", "sensitivity", "tune", "export"])
def test_accuracy_at_chance_is_a_warning(server: Server, open_page: OpenPage, path: str) -> None:
    own = open_page(f"{server.url}/{path}?data=folder:/x")
    expect(own.get_by_role("alert").filter(has_text=CHANCE)).to_be_visible()
    usual = open_page(f"{server.url}/{path}")
    expect(usual.get_by_text(CHANCE)).to_have_count(0)


def test_compare_shows_confusions_and_firing_rates(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/compare")
    expect(page.get_by_role("heading", name="Firing rate by layer")).to_be_visible()
    expect(page.get_by_text("Mean spikes per neuron and time step")).to_be_visible()
    confusions = page.get_by_text("Confusions that change most")
    expect(confusions).to_be_visible()
    confusions.click()
    expect(page.locator('[data-testid="stDataFrame"]:visible').last).to_be_visible()
    expect(page.get_by_text("most of all 4")).to_be_visible()  # the class that loses most


def test_images_that_fit_the_model_are_preselected(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/open")
    kinds = page.get_by_role("radiogroup").filter(has_text="Image folder")
    expect(kinds.get_by_role("radio", name="Digits (built in)")).to_be_checked()


@pytest.mark.parametrize(
    ("shape", "n_classes", "kind"),
    [
        ((3, 224, 224), 1000, "imagenet"),
        ((3, 32, 32), 10, "cifar10"),
        ((1, 32, 32), 10, "digits"),
        ((3, 224, 224), 10, "folder"),
        ((2, 128, 128), 11, "folder"),
    ],
)
def test_images_that_fit_a_file(
    tmp_path: Path, shape: tuple[int, int, int], n_classes: int, kind: str
) -> None:
    workspace = Workspace(Subject(model=str(tmp_path / "own.pth")), Store(tmp_path))
    model = dataclasses.replace(MODEL, input_shape=shape, num_classes=n_classes)
    assert open_files.fitting_kind(workspace, model) == kind


_SIDES: tuple[Literal["width", "height"], ...] = ("width", "height")


def box(found: Locator) -> dict[str, float]:
    measured = found.bounding_box()
    assert measured is not None
    return {"x": measured["x"], "y": measured["y"], **{k: measured[k] for k in _SIDES}}


def in_one_line(page: Page, *found: Locator) -> bool:
    """Return whether elements overlap vertically, and none lies outside the window."""
    boxes = [box(one) for one in found]
    top, bottom = max(b["y"] for b in boxes), min(b["y"] + b["height"] for b in boxes)
    width = page.evaluate("innerWidth")
    return top < bottom and all(b["x"] >= 0 and b["x"] + b["width"] <= width for b in boxes)


def test_nothing_wraps_badly_at_1024_pixels(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/tune", viewport={"width": 1024, "height": 800})
    groups = [page.get_by_role("radiogroup", name=name) for name in ("Images", "Recovery")]
    model = page.get_by_role("combobox", name="Model")
    assert in_one_line(page, model, *groups, page.get_by_role("button", name="Glossary"))
    undo = [page.get_by_role("button", name=name) for name in ("Undo", "Redo", "Reset")]
    assert in_one_line(page, page.get_by_role("radiogroup", name="Edit as"), *undo)
    first = (page.get_by_role("button", name="Fit"), page.get_by_role("radiogroup", name="Policy"))
    assert in_one_line(page, *first)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
