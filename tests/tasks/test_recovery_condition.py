"""Recovery as a condition of results: of sessions, measurements, archives, jobs and lookups."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from psvit_core.data import EvalSet
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.evaluate import predict
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.jobs import client
from psvit_core.jobs.run import JobRun
from psvit_core.kernels import lif
from psvit_core.pareto import ParetoArchive, ParetoPoint, PlanOrigin
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import (
    Conditions,
    Interval,
    Measurement,
    PrunePlan,
    RecoverySettings,
    Subject,
    sweep_recovery,
)
from psvit_core.records.jobs import MeasureRequest, MeasureResult
from psvit_core.storage.store import Store
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.pareto import session_archive
from psvit_core.tasks.prune import prune_model
from psvit_core.tasks.session import Session
from tests.made import CONDITIONS
from tests.tiny import tiny_data, tiny_model

FIRST = Interval(value=2.0, low=1.0, high=4.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lif, "use_compiled", lambda: False)  # compiling takes seconds


class TinySession(Session):
    """A session whose calibration images are synthetic, or missing."""

    with_calib = True

    def calib(self, n_images: int, seed: int) -> EvalSet:
        if not self.with_calib:
            raise DataError("There is no training split.")
        return dataclasses.replace(tiny_data("sdt_v1", 8), split="calib")


def session_of(store: Store, recovery: str) -> TinySession:
    model = tiny_model("sdt_v1").eval()
    model.name = "sdt_v1_digits"  # provides the model card
    subject = Subject(batch=3, recovery=recovery)
    return TinySession(subject, store, _model=model, _data=tiny_data("sdt_v1", 6))


def half_of(session: Session) -> PrunePlan:
    """Return a plan that removes half of every inner group."""
    model = session.model
    summary = summarize(model, {"l2": rank(model, "l2")})
    ratios = {g.group_id: 0.5 for g in summary.groups if not g.is_stream}
    return plan_from_ratios(summary, ratios, criterion="l2")


def quiet(m: Measurement) -> Measurement:
    """Return a measurement without its warnings, which are not stored."""
    return dataclasses.replace(m, warnings=())


def test_a_measurement_under_recovery_contains_the_one_without(tmp_path: Path) -> None:
    session = session_of(Store(tmp_path), "lsq")
    plan = half_of(session)
    told: list[Measurement] = []
    found = quiet(evaluate(session, plan, pruned=told.append))
    alone = quiet(evaluate(session.without_recovery(), plan))
    assert found.conditions.recovery == found.recovered_by == "lsq"
    assert alone.conditions.recovery == "none" and alone.plain == alone
    assert found.plain == alone and told == [alone]
    small, _ = prune_model(session, plan, RecoverySettings(method="lsq"))
    logits = predict(small, session.data, session.run).logits
    right = float((logits.argmax(axis=1) == np.array(session.data.labels)).mean())
    assert found.accuracy.value == right
    assert found.kl != alone.kl
    again = Measurement.from_dict(found.to_dict())
    assert again == found and again.under("lsq") == again and again.under("none") == alone
    assert again.under("auto") is None
    assert again.under("auto", asked="auto") == again  # asked for, and not possible


def test_nothing_is_measured_twice(tmp_path: Path) -> None:
    session = session_of(Store(tmp_path), "lsq")
    plan = half_of(session)
    first = evaluate(session, plan)
    ticks: list[int] = []
    assert evaluate(session_of(Store(tmp_path), "lsq"), plan, lambda: ticks.append(1)) == first
    assert ticks == []


def test_auto_needs_calibration_images(tmp_path: Path) -> None:
    session = session_of(Store(tmp_path), "auto")
    session.with_calib = False
    plan = half_of(session)
    found = evaluate(session, plan)
    assert found.conditions.recovery == "none" and found.unrecovered is None
    warning = session.warnings[0]
    assert "without recovery" in warning and "no training split" in warning
    asked = session_of(Store(tmp_path), "bn")
    asked.with_calib = False
    with pytest.raises(DataError, match="no training split"):
        evaluate(asked, plan)
    with pytest.raises(UnknownNameError, match="recovery"):
        evaluate(session_of(Store(tmp_path), "magic"), plan)


def test_the_unpruned_model_is_not_recovered(tmp_path: Path) -> None:
    session = session_of(Store(tmp_path), "auto")
    assert evaluate(session).conditions.recovery == "none"


def test_predictions_are_frozen_by_recovery(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = half_of(session_of(store, "none"))
    recovered = evaluate(session_of(store, "lsq"), plan, predicted=FIRST)
    assert recovered.predicted == FIRST
    assert recovered.plain is not None and recovered.plain.predicted is None
    assert evaluate(session_of(store, "none"), plan).predicted is None


def test_the_archive_has_both(tmp_path: Path) -> None:
    session = session_of(Store(tmp_path), "auto")
    plan = half_of(session)
    found = quiet(evaluate(session, plan))
    archive = session_archive(session)
    (plain,), (recovered,) = archive.under("none").points, archive.under("auto").points
    assert (plain.measurement.conditions.recovery, plain.plain) == ("none", True)
    assert recovered.measurement == found and recovered.recovery == "auto"
    assert not recovered.plain and recovered.point_id != plain.point_id
    assert archive.under("bn").points == ()
    assert archive.plain() == archive.under("none")


def test_older_recovered_points_are_told_by_their_origin() -> None:
    def point(**origin: str) -> ParetoPoint:
        plan = PrunePlan(model="m", weights_hash="ab", criterion="l2", kept={"g": (0,)})
        return ParetoPoint(
            measurement=dataclasses.replace(_measurement(), plan=plan),
            made=(PlanOrigin(**origin),),  # type: ignore[arg-type]
        )

    old = point(recovery="auto (lsq), seed 3", weights="cd")
    tuned = point(recovery="lsq", finetuning="1 epoch", weights="ef")
    archive = ParetoArchive(
        model="m",
        weights_hash="ab",
        data="d",
        split="val",
        transform="t",
        T=1,
        precision="float32",
        n_images=1,
        points=(point(), old, tuned),
    )
    assert [p.recovery for p in archive.points] == ["none", "auto", "lsq"]
    assert archive.under("auto").points == (old,)
    assert archive.under("lsq").points == ()  # it was trained as well


def _measurement() -> Measurement:
    from tests.pareto.test_pareto import measurement

    return measurement(0, 0.5, 10)


def test_documents_without_the_field_mean_none() -> None:
    plain = CONDITIONS.to_dict()
    assert "recovery" not in plain
    assert Conditions.from_dict(plain).recovery == "none"
    recovered = dataclasses.replace(CONDITIONS, recovery="auto")
    assert Conditions.from_dict(recovered.to_dict()) == recovered
    old = Subject().to_dict()
    del old["recovery"]
    assert Subject.from_dict(old).recovery == "none"


def test_a_job_tells_the_drop_as_pruned_while_it_recovers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    session = session_of(store, "lsq")
    plan = half_of(session)
    subject = session.subject.to_dict()
    params = {"subject": subject, **MeasureRequest(plan=plan).to_dict()}
    job = client.save(
        store, client.Job(id="a", task="measure", title="t", params=params, state="running")
    )
    seen: list[MeasureResult] = []

    def look(_: client.Job) -> None:
        found = client.Job.from_dict(store.get("job/a")).outcome
        assert isinstance(found, MeasureResult)
        seen.append(found)

    result = JobRun(store, job, lambda _: session, look).run()
    assert isinstance(result, MeasureResult)
    assert result.measurement is not None and result.pruned is None
    assert seen[0].pruned is None  # the unpruned model runs first
    assert seen[-1].pruned == result.measurement.plain
    assert result.pruned_at is not None


@pytest.mark.parametrize(
    ("method", "cells"),
    [("none", "none"), ("bn", "none"), ("lsq", "lsq"), ("auto", "lsq"), ("stages_bn", "lsq")],
)
def test_recovery_of_a_sweep(method: str, cells: str) -> None:
    assert sweep_recovery(method) == cells
