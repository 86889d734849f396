"""Weights in fewer bits on screen: plans on the Overview page, quantizing on the Export page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open
from streamlit.testing.v1 import AppTest

from psvit_core.jobs import client
from psvit_core.pareto import ParetoArchive, ParetoPoint, PlanOrigin, add_point, add_quantized
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import memory_saving
from psvit_core.records import Interval, Measurement, PrunePlan, Subject
from psvit_core.records.jobs import QuantizeRequest, QuantizeResult
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests import made
from tests.patience import PATIENCE
from tests.ui.test_graphs import put_export
from tests.ui.test_recovery import FEW, HALF, MODEL, NAME, PLAIN, recovered_of
from tests.ui.test_report import export_page
from tests.zoo.test_quantized import FILES
from ui.charts.front import front_chart
from ui.model import front_rows, fronts, loaders, provenance
from ui.model.foreign import in_markdown
from ui.model.fronts import Overview
from ui.model.stored_weights import with_weights
from ui.panels.quantized import accuracy_text

ROOT = Path(__file__).parents[2]
SUMMARY = made.TABLE.summary
LESS = Interval(value=0.95, low=0.93, high=0.97)


def plan_of(ratio: float) -> PrunePlan:
    """Return a plan for one of the four groups of 20 units, each read by 50 weights."""
    plan = plan_from_ratios(SUMMARY, {"robust": ratio}, criterion="l2")
    return dataclasses.replace(plan, policy="optimal")


def point_of(plan: PrunePlan, n_bytes: int = 0, weights: str = "float32") -> ParetoPoint:
    """Return a measured plan; with quantized weights, one that lost accuracy."""
    m = made.measured_as(made.TABLE)(plan)
    saving = memory_saving(SUMMARY, plan)
    m = dataclasses.replace(m, baseline_accuracy=made.exactly(0.98), memory_saving=saving)
    if weights != "float32":
        conditions = dataclasses.replace(m.conditions, weights=weights)
        size = dataclasses.replace(m.size, bytes=n_bytes)
        m = dataclasses.replace(m, conditions=conditions, size=size, accuracy=LESS)
    return ParetoPoint(measurement=m, made=(PlanOrigin(policy="optimal"),))


def view_of(*points: ParetoPoint) -> Overview:
    archive = ParetoArchive(
        model="made",
        weights_hash="0",
        data="made",
        split="val",
        transform="none",
        T=4,
        precision="float32",
        n_images=100,
        points=points,
    )
    return fronts.overview(SUMMARY, archive, None, [], [])


def test_bytes_are_counted_by_hand_and_accuracies_stay_those_of_fp32() -> None:
    view = view_of(point_of(plan_of(0.5)), point_of(plan_of(0.9)))
    # 20 or fewer rows of 50 weights, four groups; int8 has a scale of 4 bytes a row.
    for weights, half, most, whole in (
        ("float16", 2 * 50 * 70, 2 * 50 * 62, 2 * 50 * 80),
        ("int8", (50 + 4) * 70, (50 + 4) * 62, (50 + 4) * 80),
    ):
        found = with_weights(view, weights)
        assert [p.values["bytes"] for p in found.measured] == [half, most]
        assert found.unpruned["bytes"] == 4 * 50 * 80 and found.unpruned_stored == whole
        assert [p.accuracy for p in found.measured] == [p.accuracy for p in view.measured]
        assert all(p.is_assumed for p in found.measured)
        assert [f.value for f in found.front("bytes")] == [most]  # equally accurate, and smaller
    assert with_weights(view, "float32") is view
    assert found.measured[0].title == "Optimal, saves 12.5\xa0%; 76.4\xa0% in int8"

    figure = front_chart(found, "bytes")
    marks = {trace.name: trace for trace in figure.data}
    assert set(marks["Optimal"].marker.symbol) == {"circle-open"}
    assert marks["Unpruned in fp32"].x[0] == pytest.approx(0.016)
    assert marks["Unpruned in int8"].marker.symbol == "star-open"
    assert "accuracy measured in fp32" in figure.data[-1].text[0]
    assert "0.00\xa0MB in int8, exact" in figure.data[-1].text[0]
    assert figure.layout.xaxis.title.text == "Weights in int8, MB"
    table = front_rows.table_rows(found, "bytes")
    assert list(table["weights"]) == ["int8"] * 2
    assert list(table["accuracy_with"]) == ["fp32"] * 2
    assert list(table["bytes_MB"]) == pytest.approx([0.00378, 0.003348])


def test_a_network_measured_with_such_weights_takes_its_plans_place() -> None:
    half = plan_of(0.5)
    view = view_of(point_of(half), point_of(plan_of(0.9)))
    quantized = [
        point_of(half, 3780, "int8"),
        point_of(half, 7000, "bfloat16"),
        point_of(dataclasses.replace(half, kept={}), 4320, "int8"),
    ]
    found = with_weights(view, "int8", quantized)
    filled = [p for p in found.measured if not p.is_assumed]
    assert [(p.accuracy, p.values["bytes"]) for p in filled] == [(LESS, 3780)]
    assert len(found.measured) == 2 and found.unpruned_measured == LESS
    assert found.find(half) == filled[0] and filled[0].policies == ("optimal",)
    assert [found.points[f.point.point_id].is_assumed for f in found.front("bytes")] == [
        True,
        False,
    ]
    figure = front_chart(found, "bytes", selected=filled[0])
    marks = {trace.name: trace for trace in figure.data}
    assert sorted(marks["Optimal"].marker.symbol) == ["circle", "circle-open"]
    assert marks["Unpruned in int8"].marker.symbol == "star"
    assert marks["Unpruned in int8"].y[0] == pytest.approx(95)
    assert marks["Front, hollow: accuracy of fp32"].line.dash == "dash"
    clicks = figure.data[-1]
    texts = dict(zip(clicks.customdata, clicks.text, strict=True))
    assert "accuracy measured in int8" in texts[filled[0].id]
    halves = with_weights(view, "float16", quantized)
    assert halves.measured[-1].title.endswith("56.2\xa0% in bf16")
    assert set(front_rows.table_rows(halves, "bytes")["accuracy_with"]) == {"bf16", "fp32"}


def int8_of(measured: Measurement, drop: float = 1.5) -> Measurement:
    conditions = dataclasses.replace(measured.conditions, weights="int8")
    lost = Interval(value=drop, low=drop - 1, high=drop + 1)
    return dataclasses.replace(measured, conditions=conditions, drop=lost, unrecovered=None)


def test_the_store_keeps_them_beside_the_archive(tmp_path: Path) -> None:
    """Under their recovery, on their images, and not among the plans in float32."""
    store = Store(tmp_path)
    gained = recovered_of(PLAIN, 0.4)
    for m, weights in ((PLAIN, ""), (FEW, ""), (gained, "cd" * 32)):
        add_point(store, m, PlanOrigin(policy="optimal", weights=weights))
    other = dataclasses.replace(PLAIN.conditions, n_images=64, weights="int8")
    for m, origin in (
        (int8_of(PLAIN), PlanOrigin()),
        (dataclasses.replace(int8_of(PLAIN), conditions=other), PlanOrigin()),
        (int8_of(gained), PlanOrigin(weights="ef" * 32, recovery="auto")),
        (int8_of(gained), PlanOrigin(weights="ab" * 32, recovery="auto", finetuning="1 epoch")),
    ):
        add_quantized(store, m, origin)
        add_quantized(store, m, origin)
    for recovery, wanted in (("none", int8_of(PLAIN)), ("auto", int8_of(gained))):
        workspace = Workspace(Subject(model=NAME, recovery=recovery), store)
        archive = workspace.archive()
        assert archive is not None
        assert {p.stored_weights for p in archive.points} == {"float32"}
        assert [p.measurement for p in workspace.quantized(archive)] == [wanted]
        assert [p.measurement for p in workspace.quantized()] == [wanted]
    few = Workspace(Subject(model=NAME, limit=64), store)
    assert [p.measurement.conditions.n_images for p in few.quantized()] == [64]
    assert Workspace(Subject(model="e_spikeformer_digits"), store).quantized() == ()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Iterator[Store]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    yield Store(tmp_path)
    loaders.open_store.clear()


def test_the_overview_shows_them_by_the_choice_in_the_url(store: Store) -> None:
    for m in (PLAIN, FEW):
        add_point(store, m, PlanOrigin(policy="optimal"))
    add_quantized(store, int8_of(PLAIN), PlanOrigin(policy="optimal"))
    page = str(ROOT / "pages" / "overview.py")
    app = AppTest.from_file(page, default_timeout=PATIENCE)
    app.query_params["weights"] = "int8"
    app.run()
    assert not app.exception
    tiles = {m.label: m.value for m in app.metric}
    assert "Weights in int8" in tiles
    assert any("1 network measured in int8 on these images" in c.value for c in app.caption)
    assert any("Bytes are exact" in c.value for c in app.caption)


def test_a_file_is_quantized_on_the_export_page(store: Store) -> None:
    path = put_export(store)
    app = export_page()
    app.button_group(key="file-job1-quantize-kind").set_value("float16")
    app.button(key="file-job1-quantize-start").click().run()
    assert not app.exception
    [job] = [job for job in client.list_jobs(store) if job.task == "quantize"]
    wanted = QuantizeRequest(path=str(path), file_name="small-fp16.safetensors", kind="float16")
    assert job.request == wanted and job.active

    client.save(store, dataclasses.replace(job, state="failed", error="no *such* weight"))
    assert any("Quantization failed." in error.value for error in export_page().error)

    file = store.place("exports", job.id, "small-fp16.safetensors")
    file.write_bytes(b"22")
    result = QuantizeResult(
        path=str(file),
        bytes=2,
        sha256="e" * 64,
        kind="float16",
        weights_bytes=700,
        float32_bytes=1400,
        memory_saving=0.75,
        file_measurement=dataclasses.replace(int8_of(PLAIN), plan=HALF),
        against_float32=int8_of(PLAIN, 0.2),
    )
    client.save(store, dataclasses.replace(job, state="done", result=result.to_dict()))
    app = export_page()
    shown = " ".join(m.value for m in app.markdown)
    assert "its weights take 700 bytes instead of 1,400, **75.0\xa0% less than the" in shown
    text = accuracy_text(result)
    assert "drop 1.50\xa0pp (0.50 to 2.50) against the unpruned network in fp32" in text
    assert "0.20\xa0pp (\N{MINUS SIGN}0.80 to 1.20) against this network in fp32, within" in text
    assert in_markdown(text) in shown
    assert app.button(key=f"file-job1-quantize-{job.id}-graph") is not None
    missing = QuantizeResult(path="x", warnings=("Not measured: no images.",))
    assert accuracy_text(missing) == "Not measured: no images."


def test_a_files_header_tells_its_weights() -> None:
    first, third = (str(FILES / f"pruned_format_{n}.safetensors") for n in (1, 3))
    with safe_open(third, framework="np") as file:
        assert '"weights": "int8"' in (file.metadata() or {})["psvit"]
    assert provenance.stored_weights(third) == "int8"
    assert provenance.stored_weights(first) == "float32"
    assert provenance.stored_weights(NAME) == provenance.stored_weights("/no/file") == "float32"
    assert MODEL.model == NAME
