"""Results in bfloat16: conditions of their own, exact counts, and the check against float32."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from psvit_core.cli import main
from psvit_core.errors import DeviceError, InvalidPlanError, UnknownNameError
from psvit_core.evaluate import measure, predict, predict_plan
from psvit_core.finetune.precision import resolved
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.kernels import lif
from psvit_core.metrics.spikes import count_spikes
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import (
    FinetuneSettings,
    Measurement,
    PrecisionCheck,
    PrunePlan,
    SensitivityTable,
    Subject,
    SweepSettings,
)
from psvit_core.recover import recover
from psvit_core.runtime import Run
from psvit_core.sensitivity.spec import SweepSpec, load_spec, sweep_keys
from psvit_core.sensitivity.sweep import sweep
from psvit_core.storage.predictions import load_outcome
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.tasks.cautions import precision_warning
from psvit_core.tasks.plan import check_table
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.zoo.base import SpikingModel
from tests.pretend_cuda import pretended_cuda
from tests.tiny import tiny_data, tiny_model

HALF, WHOLE = Run(batch=4, precision="bfloat16"), Run(batch=4)


def plan_of(model: SpikingModel, ratio: float) -> PrunePlan:
    summary = summarize(model, {"l2": rank(model, "l2")})
    ratios = {group.group_id: ratio for group in summary.groups}
    return plan_from_ratios(summary, ratios, criterion="l2")


# ---- what is known where ---------------------------------------------------------------------


def test_which_precisions_there_are() -> None:
    assert Run(precision="bfloat16").is_reduced and not WHOLE.is_reduced
    assert HALF.exact == WHOLE and WHOLE.exact is WHOLE
    with pytest.raises(UnknownNameError, match="bfloat16"):
        Run(precision="half")
    with pytest.raises(DeviceError, match="bfloat16"):
        Run(precision="autocast")
    with pretended_cuda():
        assert Run(precision="bfloat16", device="cuda").is_reduced


def test_a_device_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_cuda():
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: False)
        with pytest.raises(DeviceError, match=r"'cuda' does not compute in bfloat16\. Use --prec"):
            Run(precision="bfloat16", device="cuda")


def test_a_run_of_float32_is_not_reduced_inside_another() -> None:
    x = torch.rand(3, 3)
    with HALF.autocast:
        assert (x @ x).dtype == torch.bfloat16
        with WHOLE.autocast:
            assert (x @ x).dtype == torch.float32


def test_training_follows_the_run() -> None:
    settings = FinetuneSettings()
    assert resolved(settings, HALF).autocast == "bfloat16"
    assert resolved(replace(settings, autocast="off"), HALF).autocast == "off"


# ---- measurements ----------------------------------------------------------------------------


def test_measurements_have_conditions_of_their_own_and_a_check(tmp_path: Path) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 7), Store(tmp_path)
    plan = plan_of(model, 0.5)
    exact = measure(model, data, plan, run=WHOLE, store=store)
    half = measure(model, data, plan, run=HALF, store=store)
    assert half.conditions == replace(exact.conditions, precision="bfloat16")
    assert exact.precision_check is None and "precision_check" not in exact.to_dict()
    assert half.kl != exact.kl  # it did run
    small = apply_plan(model, plan)
    reduced, expected = predict_plan(model, data, plan, HALF), predict(small, data, WHOLE)
    assert reduced is not None
    equal = reduced.logits.argmax(1) == expected.logits.argmax(1)
    check = half.precision_check
    assert check == PrecisionCheck(n_images=7, n_equal=int(equal.sum()))
    assert Measurement.from_dict(json.loads(json.dumps(half.to_dict()))) == half
    assert measure(model, data, plan, run=HALF, store=store) == half
    assert measure(model, data, plan, run=WHOLE, store=store) == exact
    # Built and run by torch, the network rounds elsewhere, but is the same network.
    built = predict(small, data, HALF)
    spread = abs(expected.logits).max()
    assert abs(built.logits - expected.logits).max() < 0.2 * spread
    assert abs(reduced.logits - expected.logits).max() < 0.2 * spread


@pytest.mark.parametrize("name", ["sdt_v1", "qkformer_imagenet"])
def test_a_plan_that_removes_nothing_changes_nothing(name: str) -> None:
    model, data = tiny_model(name), tiny_data(name, 7)
    found = measure(model, data, plan_of(model, 0.0), run=HALF)
    alone = measure(model, data, run=HALF)
    assert (found.kl, found.agreement) == (0.0, 1.0)
    assert found.drop is not None and found.drop.value == 0.0
    assert (alone.accuracy, alone.sops) == (found.accuracy, found.sops)
    assert alone.precision_check == found.precision_check


def test_spikes_are_counted_exactly() -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 3)
    (x,) = data.batches(3)
    fed: dict[str, Tensor] = {}
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv1d)]
    names += [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: fed.__setitem__(name, inputs[0])
        )
    with torch.no_grad(), HALF.autocast, count_spikes(model) as count:
        model(x)
    compared = 0
    for name, (per_image,) in count.reached.items():
        layer = model.get_submodule(name)
        pointwise = not isinstance(layer, nn.Conv2d) or set(layer.kernel_size) == {1}
        if name in fed and pointwise:
            spikes = fed[name].double().flatten(1).sum(1).view(-1, 3).sum(0)
            assert torch.equal(per_image, spikes)
            compared += int(spikes.max() > 256)  # bfloat16 rounds such sums
    assert compared


def test_neurons_compute_in_float32_on_both_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lif, "_fused_kernel_agrees", lambda kind: False)
    x = (3 * torch.randn(4, 50)).to(torch.bfloat16)
    wanted = lif._recurrence(x.float(), 1.0)
    assert torch.equal(lif.lif(x, 1.0).float(), wanted)
    with pretended_cuda():
        found = lif.lif(x.to("cuda"), 1.0)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found.cpu().float(), wanted)


def test_recoveries_are_fitted_in_float32() -> None:
    model = tiny_model("sdt_v1")
    calib = replace(tiny_data("sdt_v1", 8, seed=1), split="train")
    plan = plan_of(model, 0.5)
    small = apply_plan(model, plan)
    exact, report = recover(small, model, plan, calib, method="lsq", run=WHOLE)
    found, other = recover(small, model, plan, calib, method="lsq", run=HALF)
    assert other.conditions == report.conditions
    for name, tensor in exact.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


# ---- sweeps ----------------------------------------------------------------------------------


def predictions(store: Store, spec: SweepSpec, key: str) -> Any:
    outcome = load_outcome(store, key)
    assert outcome is not None
    return outcome.select(spec.ids).predictions


@pytest.mark.slow
@pytest.mark.parametrize("recovers", [False, True])
def test_a_sweep_compares_its_cells_with_float32(recovers: bool, tmp_path: Path) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6), Store(tmp_path / "a")
    calib = replace(tiny_data("sdt_v1", 8, seed=1), split="train") if recovers else None
    options: dict[str, Any] = {"ratios": (0.25, 0.5), "criterion": "l2", "recovery_images": calib}
    table = sweep(model, data, run=HALF, store=store, **options)
    assert table.conditions.precision == "bfloat16"
    (key,) = sweep_keys(store)  # the float32 part is none
    spec = load_spec(store, key)
    other = Store(tmp_path / "b")
    exact_table = sweep(model, data, run=WHOLE, store=other, **options)
    assert exact_table.precision_check is None
    exact = load_spec(other, sweep_keys(other)[0])
    assert {cell.key for cell in spec.cells()}.isdisjoint(cell.key for cell in exact.cells())
    equal = [
        (predictions(store, spec, a.key) == predictions(other, exact, b.key)).sum()
        for a, b in zip(spec.cells(), exact.cells(), strict=True)
        if a.prune_ratio == 0.5 and a.plan.kept
    ]
    unpruned = predictions(store, spec, spec.baseline_key)
    base = (unpruned == predictions(other, exact, exact.baseline_key)).sum()
    assert table.precision_check == PrecisionCheck(
        n_images=6, n_equal=int(base), n_cells=len(equal), n_equal_cells=int(sum(equal))
    )
    assert SensitivityTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    again = sweep(model, data, run=HALF, store=store, **options)
    assert again == table
    assert sum(row.kl for row in table.rows) != sum(row.kl for row in exact_table.rows)


@pytest.mark.slow
def test_a_plan_of_float32_cells_is_not_measured_in_bfloat16(tmp_path: Path) -> None:
    store = Store(tmp_path)
    subject = Subject(limit=4, batch=4, recovery="none")
    table = run_sweep(Session(subject, store), SweepSettings(ratios=(0.5,), criterion="l2"))
    with pytest.raises(InvalidPlanError, match=r"precision float32, here bfloat16 \(--precision"):
        check_table(table, Session(replace(subject, precision="bfloat16"), store))


@pytest.mark.slow
def test_a_sweep_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lif._mode, "fused", False)
    monkeypatch.setattr(lif, "_fused_kernel_agrees", lambda kind: False)
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6)
    expected = sweep(model, data, ratios=(0.5,), criterion="l2", run=HALF)
    with pretended_cuda():
        run = replace(HALF, device="cuda")
        found = sweep(model, data, ratios=(0.5,), criterion="l2", run=run)
        planned = measure(model, data, plan_of(model, 0.5), run=run)
    assert found.precision_check is not None and planned.precision_check is not None
    assert found.precision_check.n_cells == len(found.rows)
    assert found.conditions == replace(expected.conditions, device="cuda")
    kl = [row.kl for row in expected.rows]
    assert np.allclose([row.kl for row in found.rows], kl, atol=0.1 * max(kl))


# ---- what is said ----------------------------------------------------------------------------


def test_too_few_equal_predictions_come_with_a_warning() -> None:
    assert precision_warning(None, "float32") is None
    assert precision_warning(PrecisionCheck(n_images=100, n_equal=98), "bfloat16") is None
    low = PrecisionCheck(n_images=100, n_equal=97)
    assert precision_warning(low, "bfloat16") == (
        "In bfloat16, predictions equal to float32: 97 of 100 (97.00%), less than 98%. Use "
        "--precision float32, or compare only numbers of this precision with each other."
    )
    of_cells = PrecisionCheck(n_images=100, n_equal=100, n_cells=3, n_equal_cells=290)
    assert of_cells.cells == 290 / 300 and not of_cells.is_enough
    assert of_cells.text.endswith("100 of 100 (100.00%); of 3 cells: 96.67%")


@pytest.mark.slow
def test_the_command_line_says_how_many_predictions_are_equal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    options = ["evaluate", "sdt_v1_digits", "--limit", "20", "--precision", "bfloat16"]
    assert main([*options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["conditions"]["precision"] == "bfloat16"
    assert document["precision_check"]["n_images"] == 20
    assert main(options) == 0
    line = f"predictions equal to float32: {document['precision_check']['n_equal']} of 20"
    assert line in capsys.readouterr().out
