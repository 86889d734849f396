"""A prediction made before a measurement is kept with it and never rewritten."""

from __future__ import annotations

from pathlib import Path

from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import Interval, Measurement, Subject
from psvit_core.storage.frozen import freeze_prediction
from psvit_core.storage.store import Store
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.session import Session

FIRST = Interval(value=2.0, low=1.0, high=4.0)
LATER = Interval(value=9.0, low=8.0, high=10.0)


def test_the_first_prediction_stays_with_every_measurement(tmp_path: Path) -> None:
    store = Store(tmp_path)
    session = Session(Subject(limit=8), store)
    summary = summarize(session.model, {"l2": rank(session.model, "l2")})
    group = summary.groups[-1].group_id
    plan = plan_from_ratios(summary, {group: 0.5}, criterion="l2")
    other = plan_from_ratios(summary, {group: 0.25}, criterion="l2")
    found = evaluate(session, plan, predicted=FIRST)
    assert found.predicted == FIRST
    assert evaluate(session, plan, predicted=LATER).predicted == FIRST
    assert evaluate(session, plan).predicted == FIRST
    more = Session(Subject(limit=9), store)
    assert evaluate(more, plan, predicted=LATER).predicted == FIRST
    assert evaluate(session, other).predicted is None
    document = found.to_dict()
    assert Measurement.from_dict(document) == found
    del document["predicted"]  # of an older version
    assert Measurement.from_dict(document).predicted is None
    assert freeze_prediction(store, plan, [1], LATER) == LATER  # other time steps
