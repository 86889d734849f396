"""The Fine-tune page: estimates, the live curve, stopping, the written file."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import (
    EpochRecord,
    FinetuneReport,
    FinetuneSettings,
    Interval,
    Measurement,
    PrunePlan,
    RecoveryReport,
)
from psvit_core.records.jobs import FinetuneResult
from psvit_core.tasks.trials import vary
from tests.patience import PATIENCE
from tests.ui.conftest import OpenPage, Server, settled, wait_for_job
from tests.ui.example import CONDITIONS, summary
from ui.charts.training import training_chart
from ui.model import comparison, drafts, history

NAME = "e_spikeformer_digits"
MODEL = summary(NAME)
QUERY = "?model=E-SpikeFormer+(SDT+v3),+digits&images=64"
PLAN = plan_from_ratios(MODEL, {g.group_id: 0.25 for g in MODEL.groups}, criterion="l2")
ENDED = re.compile("Training gained|No epoch improved")


def interval(value: float) -> Interval:
    return Interval(value=value, low=value - 0.02, high=value + 0.02)


def measured(accuracy: float, plan: PrunePlan | None = None) -> Measurement:
    drop = 98 - 100 * accuracy
    return Measurement(
        model=NAME,
        weights_hash=MODEL.weights_hash,
        conditions=CONDITIONS,
        accuracy=interval(accuracy),
        size=plan_size(MODEL, plan),
        sops=1e6,
        macs_real=1e6,
        energy_pj=1e6,
        firing={},
        plan=plan,
        baseline_accuracy=interval(0.98) if plan else None,
        drop=Interval(value=drop, low=drop - 1, high=drop + 1) if plan else None,
    )


def record(epoch: float, accuracy: float | None = None, seconds: float = 0.0) -> EpochRecord:
    return EpochRecord(
        step=int(50 * epoch),
        epoch=epoch,
        lr=1e-3,
        seconds=seconds,
        train_loss=1 / (1 + epoch) if epoch else None,
        val_loss=None if accuracy is None else 0.5,
        val_accuracy=None if accuracy is None else interval(accuracy),
    )


RECORDS = (record(0, 0.8, 1.0), record(0.5), record(1, 0.9, 31.0), record(2, 0.88, 61.0))
REPORT = FinetuneReport(
    model=NAME,
    settings=FinetuneSettings(epochs=2),
    conditions=CONDITIONS,
    teacher=NAME,
    best_epoch=1,
    epochs=tuple(r for r in RECORDS if r.val_accuracy),
)
RECOVERY = RecoveryReport(
    model=NAME,
    method="auto",
    used="bn",
    conditions=CONDITIONS,
    calib_id="",
    seed=0,
    n_fit=2,
    n_held_out=2,
    kl={"none": 0.5, "bn": 0.1},
    layers=(),
    seconds={},
    statistics_bytes=0,
    held_bytes=0,
)
JOB = Job(
    id="j",
    task="finetune",
    title="",
    state="done",
    params={
        "subject": {"model": NAME},
        "plan": PLAN.to_dict(),
        "settings": REPORT.settings.to_dict(),
        "file_name": "tuned.safetensors",
    },
    result={"report": REPORT.to_dict(), "recovery": None},
)


def test_texts_about_a_run() -> None:
    settings = FinetuneSettings(epochs=4)
    assert history.epoch_seconds([], settings) is None
    assert history.epoch_seconds([JOB], settings) == 30.5
    assert history.epoch_seconds([JOB], dataclasses.replace(settings, train_images=9)) is None
    assert history.estimate_line(settings, 30.5).startswith("About 2 min")
    assert "An estimate appears" in history.estimate_line(settings, None)
    assert "takes seconds" in history.estimate_line(None, None)

    start = REPORT.epochs[0].val_accuracy
    assert start is not None
    lines = dict(history.accuracy_lines(history.Reference(), None, start, REPORT))
    assert [*lines] == ["Before training", "Best, epoch 1"]
    assert "90.00" in lines["Best, epoch 1"]
    assert "10.00\N{NO-BREAK SPACE}pp" in history.gain_line(start, REPORT)
    assert "overlap" not in history.gain_line(start, REPORT)
    assert "overlap" in history.gain_line(interval(0.87), REPORT)
    worse = dataclasses.replace(REPORT, best_epoch=0)
    assert "No epoch improved" in history.gain_line(start, worse)
    assert "epoch 1." in history.progress_line(RECORDS)
    line = history.provenance_line(JOB, None, REPORT)
    assert f"pruned in {len(PLAN.kept)} groups" in line
    assert "distilled from e_spikeformer_digits" in line
    entry = comparison.compared_plan("A", PLAN, None, [], [JOB])
    assert (entry.tuned, entry.recovered) == (comparison.Improvement(accuracy=interval(0.9)), None)


def test_regained_accuracy() -> None:
    known = [measured(0.98), measured(0.7, PLAN)]
    reference = history.find_reference(known, PLAN, CONDITIONS.n_images)
    assert (reference.baseline, reference.pruned) == (interval(0.98), interval(0.7))
    from_job = history.find_reference([], PLAN, CONDITIONS.n_images, measured(0.7, PLAN))
    assert (from_job.baseline, from_job.pruned) == (interval(0.98), interval(0.7))

    start = interval(0.8)
    lines = history.accuracy_lines(reference, RECOVERY, start, REPORT)
    assert [name for name, _ in lines][:4] == [
        "Unpruned",
        "Pruned, before recovery",
        "After recovery",
        "Best, epoch 1",
    ]
    alone = history.accuracy_lines(reference, None, start, REPORT)
    assert [name for name, _ in alone] == ["Unpruned", "Before training", "Best, epoch 1"]
    back = history.regained_line(reference, start, interval(0.9)).replace("\N{NO-BREAK SPACE}", " ")
    assert back == "Of the **28.00 pp** that pruning cost, **20.00 pp** were regained."
    assert history.regained_line(history.Reference(), start, start) == ""
    free = history.Reference(baseline=start)
    assert history.regained_line(free, start, interval(0.9)) == ""


def test_trials_as_text() -> None:
    wanted = vary(REPORT.settings, {"lr": (0.01, 0.001)})
    reports = [
        dataclasses.replace(REPORT, settings=s, best_epoch=e)
        for s, e in zip(wanted, (0, 1), strict=True)
    ]
    assert history.trial_lines(reports[:1], wanted)[0][0] == "lr 0.01"
    lines = history.trial_lines(reports, wanted)
    assert [name for name, _ in lines] == ["lr 0.001", "lr 0.01"]  # the best first
    assert lines[0][1].endswith(", epoch 1")
    best = dataclasses.replace(REPORT, trials=4)
    assert ", the best of 4 trials" in history.provenance_line(JOB, None, best)
    assert history.estimate_line(REPORT.settings, 10.0, 3).startswith(
        f"3 trainings, of which the best is kept. About {30 * REPORT.settings.epochs:.0f} s"
    )


def test_drops_in_the_table_of_plans() -> None:
    def job(best_epoch: float, **results: Measurement) -> Job:
        report = dataclasses.replace(REPORT, best_epoch=best_epoch)
        result = {"report": report.to_dict(), "recovery": RECOVERY.to_dict()}
        return dataclasses.replace(
            JOB, result=result | {k: m.to_dict() for k, m in results.items()}
        )

    def row(*jobs: Job) -> dict[str, Any]:
        entry = comparison.compared_plan("A", PLAN, None, [measured(0.7, PLAN)], jobs)
        rows = comparison.plan_rows(MODEL, [entry]).iloc[0].to_dict()
        return {k: str(v).replace("\N{NO-BREAK SPACE}", " ") for k, v in rows.items()}

    steps = {"recovered_measurement": measured(0.8, PLAN), "file_measurement": measured(0.9, PLAN)}
    found = row(job(1, **steps))
    assert found["measured"] == "28.00 pp (27.00 to 29.00)"
    assert found["recovered"] == "18.00 pp (17.00 to 19.00)"
    assert found["tuned"] == "8.00 pp (7.00 to 9.00)"
    steps["file_measurement"] = steps["recovered_measurement"]
    assert row(job(0, **steps))["tuned"] == "no gain: 18.00 pp (17.00 to 19.00)"
    old = row(job(1))  # written by a version that did not store drops
    assert old["recovered"] == "top-1 80.00 % (78.0 to 82.0)"
    assert old["tuned"] == "top-1 90.00 % (88.0 to 92.0)"


@pytest.mark.parametrize("dark", [False, True])
def test_the_curve(dark: bool) -> None:
    reference = history.Reference(baseline=interval(0.95))
    figure = training_chart(RECORDS, reference, epochs=2, dark=dark)
    traces = {trace.name: trace for trace in figure.data}
    assert [*traces["validation accuracy"].y] == [80, 90, 88]
    assert traces["validation accuracy"].error_y.array[1] == pytest.approx(2)
    assert [*traces["unpruned"].y] == [95, 95]
    assert [*traces["before training"].y] == [80, 80]
    assert len(traces["training loss"].x) == 3
    assert len(traces["validation loss"].x) == 3


def small(page: Page, epochs: str) -> None:
    """Enter settings of a very short run."""
    page.get_by_text("More: learning rate").click()
    enter(page, "Training images", "64")
    enter(page, "Batch size", "16")
    enter(page, "Recovery images", "32")
    page.get_by_role("radio", name="Other").click()
    enter(page, "Number of epochs", epochs)


def enter(page: Page, label: str, number: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(number)
    field.press("Enter")
    settled(page)


@pytest.mark.slow
def test_recover_and_train(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(f"{server.url}/finetune{QUERY}")
    expect(page.get_by_text("Nothing is pruned yet")).to_be_visible()
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, PLAN))

    page = open_page(f"{server.url}/finetune{QUERY}")
    expect(page.get_by_text("An estimate appears after the first steps")).to_be_visible()
    small(page, "0.5")
    page.get_by_role("radio", name="0", exact=True).click()
    page.get_by_role("radio", name="None", exact=True).click()
    expect(page.get_by_text("Choose a recovery method, or at least some epochs.")).to_be_visible()
    expect(page.get_by_role("button", name="Recover", exact=True)).to_be_disabled()
    page.get_by_role("radio", name="BatchNorm", exact=True).click()
    page.get_by_role("button", name="Recover", exact=True).click()
    recovered = wait_for_job(server.store, "export")
    assert recovered.state == "done", recovered.error
    expect(page.get_by_text("KL to the unpruned model")).to_be_visible()
    expect(page.get_by_text("The best epoch was selected")).to_have_count(0)

    page.get_by_role("radio", name="None", exact=True).click()
    page.get_by_role("radio", name="Other").click()
    enter(page, "Number of epochs", "0.5")
    page.get_by_role("button", name="Fine-tune", exact=True).click()
    done = wait_for_job(server.store, "finetune")
    assert done.state == "done", done.error
    result = done.outcome
    assert isinstance(result, FinetuneResult)
    assert result.report is not None and result.report.epochs[-1].step == 2
    expect(page.get_by_text(ENDED).first).to_be_visible()
    expect(page.get_by_text("s per epoch")).to_be_visible()
    expect(page.get_by_text("The best epoch was selected").first).to_be_visible()
    settled(page)
    expect(page.locator(".js-plotly-plot")).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").first.click()
    path = tmp_path / "tuned.safetensors"
    download.value.save_as(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == result.sha256
    assert download.value.suggested_filename.endswith("-tuned.safetensors")

    page.get_by_text("Quantize this file").first.click()
    page.get_by_role("button", name="Quantize and measure").first.click()
    quantized = wait_for_job(server.store, "quantize")
    assert quantized.state == "done", quantized.error
    expect(page.get_by_text("against this network in fp32")).to_be_visible()
    expect(
        page.get_by_role("link", name=re.compile("^Download .*-tuned-int8.safetensors"))
    ).to_be_visible()


@pytest.mark.slow
def test_the_best_of_several_trials(server: Server, open_page: OpenPage) -> None:
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, PLAN))
    page = open_page(f"{server.url}/finetune{QUERY}")
    page.get_by_role("radio", name="None", exact=True).click()
    small(page, "0.5")
    for value in ("0.0001", "0.003"):
        page.get_by_role("combobox", name="Try learning rates").click()
        page.get_by_role("option", name=value, exact=True).click()
        page.keyboard.press("Escape")  # an open list hides the rest of the page
        settled(page)
    enter(page, "Seeds to try", "2")
    expect(page.get_by_text("4 trainings, of which the best is kept.")).to_be_visible()
    page.get_by_role("button", name="Fine-tune", exact=True).click()
    ended = page.get_by_text("Validation accuracy (4 of 4 trainings have a result)").first
    expect(ended).to_be_visible(timeout=1000 * PATIENCE)  # before, another test's job is the newest
    done = wait_for_job(server.store, "finetune")
    assert done.state == "done", done.error
    result = done.outcome
    assert isinstance(result, FinetuneResult) and result.report is not None
    tried = {(r.settings.lr, r.settings.seed) for r in result.trials}
    assert tried == {(lr, seed) for lr in (1e-4, 3e-3) for seed in (0, 1)}
    best = max(r.best_accuracy.value for r in result.trials)
    assert (result.report.trials, result.report.best_accuracy.value) == (4, best)
    expect(page.get_by_text("lr 0.0001, seed 1").first).to_be_visible()
    expect(page.get_by_text("The best settings and the best epoch were selected")).to_be_visible()
    expect(page.get_by_text("the best of 4 trials")).to_be_visible()


@pytest.mark.slow
def test_stop_keeps_the_best(server: Server, open_page: OpenPage) -> None:
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, PLAN))
    page = open_page(f"{server.url}/finetune{QUERY}")
    page.get_by_role("radio", name="None", exact=True).click()
    small(page, "1000")
    page.get_by_role("button", name="Fine-tune", exact=True).click()
    expect(page.get_by_text("Best so far")).to_be_visible()
    page.reload()  # the run continues, and the page shows it again
    settled(page)
    page.get_by_role("button", name="Stop, keep the best").click()
    done = wait_for_job(server.store, "finetune")
    assert done.state == "done", done.error
    assert isinstance(done.outcome, FinetuneResult)
    assert done.outcome.report is not None and done.outcome.report.stopped_early
    expect(page.get_by_text(ENDED).first).to_be_visible()
    assert not client.find_job(server.store, done.id).active
