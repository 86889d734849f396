"""The report's page: it needs nothing else, escapes names, and shows the store's numbers."""

from __future__ import annotations

import csv
import dataclasses
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from psvit_core.cli.arguments import make_parser
from psvit_core.errors import CheckpointError, InvalidPlanError, OutputError
from psvit_core.jobs.client import Job
from psvit_core.pareto import PlanOrigin, add_point
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import (
    EpochRecord,
    FinetuneReport,
    FinetuneSettings,
    Interval,
    Measurement,
    ModelSummary,
    PrunePlan,
    Subject,
)
from psvit_core.report import RunReport, collect, write_files, write_page
from psvit_core.report.commands import commands, short_path
from psvit_core.report.page import render
from psvit_core.storage.shipped import DemoStore
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.zoo.cards import shipped_summary
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.pruned import save_pruned

DAY = date(2026, 1, 2)
NASTY = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
NBSP = "\N{NO-BREAK SPACE}"


def summary() -> ModelSummary:
    found = shipped_summary("sdt_v1_digits")
    assert found is not None
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DemoStore]:
    store = DemoStore(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture(scope="module")
def report(shipped_results: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunReport]:
    """Return the demo's report, from a store that no test writes to."""
    store = DemoStore(tmp_path_factory.mktemp("demo"))
    yield collect(store, Subject(), summary())
    store.close()


class Page(HTMLParser):
    """Tags with their attributes, the rows of all tables, and the terms of all lists."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.facts: dict[str, str] = {}
        self.styles = ""
        self._path: list[str] = []
        self._term = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self._path.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "dt":
            self._term = ""

    def handle_endtag(self, tag: str) -> None:
        assert self._path.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        here = self._path[-1] if self._path else ""
        if here in ("td", "th"):
            self.rows[-1][-1] += data.replace(NBSP, " ")
        if here == "dt":
            self._term += data
        if here == "dd":
            self.facts[self._term] = self.facts.get(self._term, "") + data.replace(NBSP, " ")
        if here == "style":
            self.styles += data

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == name)


def test_nothing_is_loaded_from_elsewhere(report: RunReport) -> None:
    text = render(report, written=DAY)
    page = Page(text)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object"} == set()
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert {"src", "href", "xlink:href", "action", "data"}.isdisjoint(attributes)
    assert not re.search(r"url\((?!#)|@import|https?:", page.styles)
    assert "http" not in re.sub(r'http-equiv="', "", text)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert text.isascii() or '<meta charset="utf-8">' in text
    assert text.lstrip().startswith("<!doctype html>")


def shipped_point(store: Store) -> dict[str, Any]:
    """Return the smallest stored plan under auto that saves 80 % by prime, as plain JSON."""
    return next(
        value
        for key in store.keys("pareto/")
        if (value := store.get(key))["made"][0]["policy"] == "prime"
        and value["made"][0]["memory_saving"] == 0.8
        and value["measurement"]["conditions"].get("recovery") == "auto"
        and value["measurement"]["weights_hash"] == summary().weights_hash
    )


def test_numbers_are_those_of_the_store(store: DemoStore, report: RunReport) -> None:
    found = shipped_point(store)["measurement"]
    before, page = found["unrecovered"], Page(render(report, written=DAY))
    assert page.row("Quantity")[1:] == ["Unpruned", "Pruned", "Recovered by auto (stages)"]
    assert page.row("Weights, bytes (float32)")[2:] == [f"{found['size']['bytes']:,}"] * 2
    assert page.row("Parameters")[3] == f"{found['size']['params']:,}"

    def percent(value: dict[str, float]) -> str:
        low, middle, high = (100 * value[name] for name in ("low", "value", "high"))
        return f"{middle:.2f} % [{low:.2f}, {high:.2f}]"

    def points(value: dict[str, float]) -> str:
        text = f"{value['value']:+.2f} pp [{value['low']:+.2f}, {value['high']:+.2f}]"
        return text.replace("-", "\N{MINUS SIGN}")

    base = store.get(f"baseline/{summary().weights_hash}")
    assert page.row("Accuracy [95 %]")[1:] == [
        percent(base["accuracy"]),
        percent(before["accuracy"]),
        percent(found["accuracy"]),
    ]
    lost = page.row("Accuracy lost, paired [95 %]")
    assert lost[1:] == ["–", points(before["drop"]), points(found["drop"])]
    frozen = page.row("Predicted loss, frozen before the measurement")
    assert frozen[1:] == ["–", "no prediction", points(found["predicted"])]
    assert page.row("SOPs, one image")[1:] == [f"{m['sops']:,.0f}" for m in (base, before, found)]
    assert page.row("Latency, one image (median)")[1:] == ["not measured"] * 3
    assert page.facts["Images"] == str(found["conditions"]["n_images"]) == "750"
    assert page.facts["Weights hash"] == found["weights_hash"]
    kept = {group: len(units) for group, units in found["plan"]["kept"].items()}
    shown = [int(row[2]) for row in page.rows if len(row) == 5 and row[3].endswith(" %")]
    assert shown == [kept.get(g.group_id, g.n_units) for g in summary().groups]


def test_every_cell_of_the_sweep_is_drawn_and_listed(report: RunReport, tmp_path: Path) -> None:
    files = {path.name: path for path in write_files(report, tmp_path / "files")}
    assert report.table is not None
    assert set(files) == {
        *("heatmap.svg", "front.svg", "sweep.csv", "front.csv", "plan.csv", "plan.json"),
    }
    tree = ET.parse(files["heatmap.svg"])
    assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg"
    tips = [t.text or "" for t in tree.iter("{http://www.w3.org/2000/svg}title")]
    with files["sweep.csv"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report.table.rows) == 16 * 9
    for row, cell in zip(rows, report.table.rows, strict=True):
        assert (row["group"], float(row["prune_ratio"])) == (cell.group_id, cell.prune_ratio)
        assert float(row["drop_pp"]) == cell.drop.value
        drop, ratio = f"{cell.drop.value:+.2f} pp", f"{100 * cell.prune_ratio:g} %:"
        label = summary().by_id[cell.group_id].label
        assert any(label in tip and ratio in tip and drop in tip for tip in tips)
    for name in ("heatmap.svg", "front.svg"):
        text = files[name].read_text(encoding="utf-8")
        assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "prefers-color-scheme:dark" in text
    assert PrunePlan.load(files["plan.json"]) == report.plan


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path / "empty")
    found = collect(store, Subject(), summary())
    text = render(found, written=DAY)
    page = Page(text)
    [picture] = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert "xmlns" not in picture  # the network alone, which needs no measurement
    assert page.facts["Accuracy [95 %]"] == "not measured"
    assert page.row("Accuracy [95 %]") == ["Accuracy [95 %]", "not measured"]
    assert found.subject.recovery == "none"
    assert found.missing == (
        "accuracy of the unpruned network",
        *("sensitivity", "front", "plan", "test split", "fine-tuning"),
    )
    plan = plan_from_ratios(summary(), {"block.0.mlp.hidden": 0.5}, criterion="l2")
    text = render(collect(store, Subject(), summary(), plan=plan), written=DAY)
    assert "128 of 256" in text  # in the picture
    page = Page(text)
    assert page.row("Accuracy lost, paired [95 %]")[2] == "not measured"
    assert page.row("Quantity")[1:] == ["Unpruned", "Plan"]
    assert page.row("MLP hidden")[1:4] == ["256", "128", "50.0 %"]


def test_names_of_strangers_are_escaped(store: DemoStore, report: RunReport) -> None:
    model = dataclasses.replace(
        summary(),
        model=NASTY,
        groups=tuple(dataclasses.replace(g, title=NASTY) for g in summary().groups),
    )
    ratios = {g.group_id: 0.5 for g in summary().groups}
    plan = plan_from_ratios(summary(), ratios, criterion="l2")
    plan = dataclasses.replace(plan, policy=NASTY, note=NASTY, criterion=NASTY)
    subject = Subject(model=NASTY, data=f"folder:{NASTY}", checkpoint=f"/home/me/{NASTY}")
    found = collect(store, subject, model, plan=plan)
    demo = report
    assert demo.table is not None and demo.archive is not None
    table = dataclasses.replace(demo.table, summary=model, criterion=NASTY)
    point = dataclasses.replace(
        demo.archive.points[0],
        made=(dataclasses.replace(demo.archive.points[0].made[0], policy=NASTY),),
    )
    archive = dataclasses.replace(demo.archive, points=(point, *demo.archive.points))
    found = dataclasses.replace(found, table=table, archive=archive, origin=point)
    text = render(found, written=DAY)
    assert {tag for tag, _ in Page(text).tags} & {"script", "img"} == set()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "/home/me" not in text
    for path in write_files(found, store.folder / "files"):
        if path.suffix == ".svg":
            tags = {e.tag.rpartition("}")[2] for e in ET.parse(path).iter()}
            assert tags & {"script", "img"} == set()


# ---- training, recovery, the test split ----------------------------------------------------------


def training(best: float = 1.0) -> FinetuneReport:
    epochs = tuple(
        EpochRecord(
            step=25 * at,
            epoch=float(at),
            lr=1e-3,
            seconds=9.0 * at,
            train_loss=1 / at if at else None,
            val_accuracy=Interval(value=a, low=a - 0.02, high=a + 0.01),
        )
        for at, a in enumerate((0.9111, 0.9522, 0.9433))
    )
    store_conditions = trained_conditions()
    return FinetuneReport(
        model="sdt_v1_digits",
        settings=FinetuneSettings(epochs=2, lr=5e-4),
        conditions=store_conditions,
        teacher="/home/me/teacher.safetensors",
        best_epoch=best,
        epochs=epochs,
    )


def trained_conditions() -> Any:
    from tests.made import CONDITIONS

    return dataclasses.replace(CONDITIONS, data="folder:/home/me/digits", split="train")


def finished(plan: PrunePlan, tuned: FinetuneReport) -> Job:
    result = {"path": "/home/me/a b.safetensors", "bytes": 12345, "sha256": "f" * 64}
    params = {
        "plan": plan.to_dict(),
        "settings": tuned.settings.to_dict(),
        "file_name": "a b.safetensors",
        "subject": Subject().to_dict(),
    }
    job = Job(id="1", task="finetune", title="", params=params, state="done")
    return dataclasses.replace(job, result={**result, "report": tuned.to_dict()})


def test_a_training_is_shown_with_its_curve(store: DemoStore, tmp_path: Path) -> None:
    plan = plan_from_ratios(summary(), {"block.0.mlp.hidden": 0.5}, criterion="l2")
    found = collect(store, Subject(), summary(), jobs=[finished(plan, training())])
    assert found.plan == plan  # of the newest checkpoint
    text = render(found, written=DAY)
    page = Page(text)
    assert page.facts["Validation accuracy before"] == "91.11 % [89.11, 92.11]"
    assert page.facts["Best, after 1 epochs"] == "95.22 % [93.22, 96.22]"
    assert page.facts["Teacher"] == "teacher.safetensors"
    assert page.row("a b.safetensors")[1] == "12,345 bytes"
    assert "epoch 2: 94.33 % (92.33 to 95.33)" in text
    assert "/home/me" not in text
    assert "--epochs 2" in text and "--lr 0.0005" in text
    write_files(found, tmp_path / "files")
    with (tmp_path / "files" / "curve.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in rows] == [0.9111, 0.9522, 0.9433]
    assert rows[0]["train_loss"] == ""


def test_a_training_with_numbers_of_a_stranger_is_no_fault(store: DemoStore) -> None:
    plan = plan_from_ratios(summary(), {"block.0.mlp.hidden": 0.5}, criterion="l2")
    bad = dataclasses.replace(training(), best_epoch=7.0, epochs=())
    text = render(collect(store, Subject(), summary(), jobs=[finished(plan, bad)]), written=DAY)
    assert Page(text).facts["Best, after 7 epochs"] == "not measured"


def test_the_test_split_is_shown_if_it_was_asked_for(store: DemoStore, report: RunReport) -> None:
    assert "nobody asked for this plan on the test split" in render(report, written=DAY)
    assert report.plan is not None
    measured = next(
        p.measurement
        for p in (report.archive.points if report.archive else ())
        if p.plan.kept == report.plan.kept
    )
    conditions = dataclasses.replace(measured.conditions, split="test")
    tested: Measurement = dataclasses.replace(
        measured, conditions=conditions, accuracy=Interval(value=0.9712, low=0.95, high=0.98)
    )
    origin = PlanOrigin(policy="prime", weights="1")
    add_point(store, tested, origin, weights_hash=summary().weights_hash)
    again = collect(store, Subject(), summary(), plan=report.plan)
    text = render(again, written=DAY)
    assert "nobody asked" not in text
    assert Page(text).row("Recovered by auto (stages)")[2] == "97.12 % [95.00, 98.00]"
    assert [s.measurement.accuracy for s in again.stages] == [
        s.measurement.accuracy for s in report.stages
    ]


def test_numbers_on_other_images_are_not_mixed(store: DemoStore, report: RunReport) -> None:
    """The unpruned accuracy beside a plan is that on the plan's own images."""
    assert report.archive is not None and report.plan is not None
    first = report.archive.points[0].measurement
    more = dataclasses.replace(first.conditions, n_images=4000, images="f" * 32)
    base = Interval(value=0.9911, low=0.98, high=0.995)
    measured = dataclasses.replace(first, conditions=more, baseline_accuracy=base)
    add_point(store, measured, PlanOrigin(policy="prime", weights="1"))
    found = collect(store, Subject(), summary(), plan=report.archive.points[0].plan)
    assert found.unpruned.accuracy == base
    assert found.unpruned.sops is None  # known on other images only
    page = Page(render(found, written=DAY))
    assert page.row("Accuracy [95 %]")[1] == "99.11 % [98.00, 99.50]"
    assert page.row("SOPs, one image")[1] == "not measured"
    assert page.facts["Images"] == "4,000"
    assert "750 images" in page.facts["Conditions"]  # of the sweep


def test_a_pruned_file_tells_of_its_plan(store: DemoStore, tmp_path: Path) -> None:
    model = load_model("sdt_v1_digits")
    first = plan_from_ratios(summary(), {"block.0.mlp.hidden": 0.5}, criterion="l2")
    path = save_pruned(apply_plan(model, first), tmp_path / "small.safetensors")
    found = collect(store, Subject(), summary(), pruned=path)
    assert found.plan is not None and found.plan.kept == first.kept
    page = Page(render(found, written=DAY))
    assert page.row("small.safetensors")[1] == f"{path.stat().st_size:,} bytes"
    assert page.row("small.safetensors")[2] == "not measured"
    other = plan_from_ratios(summary(), {"block.0.mlp.hidden": 0.25}, criterion="l2")
    with pytest.raises(InvalidPlanError, match="another plan"):
        collect(store, Subject(), summary(), pruned=path, plan=other)
    strange = shipped_summary("meta_spikeformer_digits")
    assert strange is not None
    with pytest.raises(InvalidPlanError, match="weights"):
        collect(store, Subject(model="meta_spikeformer_digits"), strange, pruned=path)
    with pytest.raises(CheckpointError):
        collect(store, Subject(), summary(), pruned=tmp_path / "none.safetensors")


def test_commands_can_be_typed(store: DemoStore, report: RunReport) -> None:
    plan = plan_from_ratios(summary(), {"block.0.mlp.hidden": 0.5}, criterion="l2")
    trained = collect(store, Subject(limit=64), summary(), jobs=[finished(plan, training())])
    own = Subject(model="/x/my net.pth", data="folder:/x/y", arguments={"batch_coupled": False})
    of_file = dataclasses.replace(report, subject=dataclasses.replace(own, recovery="auto"))
    names = []
    for shown in (report, trained, of_file):
        for _, line in commands(shown):
            words = shlex.split(line)
            assert words[0] == "psvit"
            make_parser().parse_args(words[1:])
            names.append(words[1])
    assert {"sweep", "pareto", "plan", "evaluate", "prune", "finetune", "report"} == set(names)
    assert short_path("/home/me/x.pth") == "x.pth"
    assert short_path("folder:/home/me/images") == "folder:images"
    assert short_path("digits") == "digits"


def test_a_page_is_an_html_file(report: RunReport, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.html"):
        write_page(report, tmp_path / "report.pdf")
    with pytest.raises(OutputError, match="does not exist"):
        write_page(report, tmp_path / "no" / "report.html")
    with pytest.raises(OutputError, match="Cannot make the folder"):
        write_files(report, tmp_path / "no" / "files")
    path = write_page(report, tmp_path / "report.html")
    assert path.stat().st_size < 200_000
