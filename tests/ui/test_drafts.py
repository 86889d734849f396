"""Drafts and their storage, text formats, download tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from psvit_core.errors import InvalidPlanError, InvalidRatioError, RecordError
from psvit_core.jobs import client
from psvit_core.plan.build import default_criterion, plan_from_ratios
from psvit_core.records import Interval, PrunePlan
from psvit_core.storage.store import Store
from tests.ui.example import summary
from ui.model import drafts, formats, saved_plans
from ui.model.foreign import in_markdown
from ui.shell import downloads

MODEL = summary()
BEST = default_criterion(MODEL.rankings)
QK, MLP = "block3.0.attn.qk", "block3.0.mlp.hidden"


def test_changes_give_the_engine_s_plan() -> None:
    draft = drafts.with_ratio(drafts.empty_draft(MODEL), MODEL, QK, 0.5)
    draft = drafts.with_ratio(draft, MODEL, MLP, 0.25)
    plan = plan_from_ratios(MODEL, {QK: 0.5, MLP: 0.25}, criterion=BEST)
    assert draft.plan.kept == plan.kept
    assert drafts.removed_units(draft, MODEL)[QK] == 24


def test_requested_and_reached_ratios_differ() -> None:
    draft = drafts.with_ratio(drafts.empty_draft(MODEL), MODEL, QK, 0.75)  # 48 units in 8 heads
    assert drafts.removed_units(draft, MODEL)[QK] == 32
    assert drafts.ratio_percent(draft, QK) == 75
    nothing = drafts.with_ratio(drafts.empty_draft(MODEL), MODEL, QK, 0.1)
    assert nothing.empty
    assert drafts.ratio_percent(nothing, QK) == 10


def test_back_to_zero_is_empty() -> None:
    draft = drafts.with_ratio(drafts.empty_draft(MODEL), MODEL, QK, 0.5)
    draft = drafts.with_ratio(draft, MODEL, QK, 0.0)
    assert draft.empty
    assert draft.asked == {}


def test_other_groups_keep_their_units() -> None:
    kept = tuple(range(1, 193, 2))  # no ranking chooses these
    plan = plan_from_ratios(MODEL, {}, criterion=BEST)
    odd = drafts.draft_of(MODEL, type(plan)(**{**vars(plan), "kept": {MLP: kept}}))
    assert drafts.with_ratio(odd, MODEL, QK, 0.5).plan.kept[MLP] == kept


def test_an_empty_draft_takes_the_criterion_of_the_sweep() -> None:
    draft = drafts.with_ratio(drafts.empty_draft(MODEL), MODEL, QK, 0.5, "l1")
    assert draft.plan.criterion == "l1"
    assert drafts.with_ratio(draft, MODEL, MLP, 0.5, "l2").plan.criterion == "l1"


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_wrong_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(InvalidRatioError):
        drafts.with_ratio(drafts.empty_draft(MODEL), MODEL, QK, ratio)


def test_plan_files() -> None:
    draft = drafts.with_ratio(drafts.empty_draft(MODEL), MODEL, QK, 0.5)
    text = json.dumps(draft.plan.to_dict())
    assert drafts.read_plan(MODEL, text).plan == draft.plan
    with pytest.raises(InvalidPlanError, match=r"other|not for weights"):
        drafts.read_plan(summary("sdt_v1_digits"), text)
    for broken in ("{", "[]", '{"document": "measurement"}'):
        with pytest.raises(RecordError):
            drafts.read_plan(MODEL, broken)


def test_drafts_are_stored_by_weights(tmp_path: Path) -> None:
    store = Store(tmp_path)
    draft = drafts.with_ratio(drafts.empty_draft(MODEL), MODEL, QK, 0.3)
    assert drafts.load_draft(store, MODEL) is None
    drafts.save_draft(store, MODEL, draft)
    assert drafts.load_draft(store, MODEL) == draft
    assert drafts.load_draft(store, summary("sdt_v1_digits")) is None
    store.put(f"draft/{MODEL.weights_hash}", {"document": "of another version"})
    assert drafts.load_draft(store, MODEL) is None


@pytest.mark.parametrize(
    ("formatted", "expected"),
    [
        (formats.percent(0.254), "25.4 %"),
        (formats.percent(-0.254), "\N{MINUS SIGN}25.4 %"),
        (formats.percent(-0.00001), "0.0 %"),
        (formats.ratio(0.5), "50 %"),
        (formats.ratio(1 / 3), "33.3 %"),
        (
            formats.drop(Interval(value=0.4, low=-1.3, high=2.4)),
            "0.40 pp (\N{MINUS SIGN}1.30 to 2.40)",
        ),
        (formats.accuracy(Interval(value=0.984, low=0.96, high=0.994)), "98.40 % (96.0 to 99.4)"),
        (formats.short_count(7_803_648), "7.80 M"),
        (formats.short_count(999), "999"),
        (formats.time_left(None), ""),
        (formats.time_left(12.3), "about 12 s left"),
        (formats.time_left(200), "about 3 min left"),
        (formats.time_ago(0, now=600), "10 min ago"),
        (formats.rough_duration(12), "less than a minute"),
        (formats.rough_duration(720), "about 12 min"),
        (formats.shorten("a" * 30, 5), "aaaa…"),
        (in_markdown("a*b"), r"a\*b"),
    ],
)
def test_formats(formatted: str, expected: str) -> None:
    assert formatted.replace("\N{NO-BREAK SPACE}", " ") == expected


def export_job(store: Store, path: Path, job_id: str, state: str = "done") -> client.Job:
    job = client.Job(
        id=job_id, task="export", title="", params={}, state=state, result={"path": str(path)}
    )
    return client.save(store, job)


def test_tokens_find_finished_exports_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    file = store.place("exports", "a", "small.safetensors")
    file.write_bytes(b"weights")
    job = export_job(store, file, "aaaaaaaaaaaa")
    token = downloads.file_token(store, job)
    assert downloads.find_file(store, token) == file
    assert token == downloads.file_token(Store(tmp_path / "store"), job), (
        "the token changed on a restart"
    )
    assert downloads.find_file(store, job.id) is None
    assert downloads.find_file(store, "") is None

    outside = tmp_path / "secret"
    outside.write_bytes(b"not from the store")
    assert (
        downloads.find_file(store, downloads.file_token(store, export_job(store, outside, "b")))
        is None
    )
    failed = export_job(store, file, "c", state="failed")
    assert downloads.find_file(store, downloads.file_token(store, failed)) is None
    code = store.place("exports", "a", "small.py")
    code.write_text("")
    both = replace(job, result={"path": str(file), "code": str(code)})
    downloads.remove_file(store, both)
    assert not file.exists()
    assert not code.exists()
    assert downloads.find_file(store, token) is None


def test_drafts_rank_by_the_best_available_criterion() -> None:
    assert BEST == "reconstruction"  # shipped summaries have a ranking by images
    by_norm = replace(MODEL, rankings={"l1": MODEL.rankings["l1"]})  # as after a sweep by l1
    assert drafts.empty_draft(by_norm).plan.criterion == "l1"
    begun = drafts.with_ratio(drafts.empty_draft(MODEL), MODEL, QK, 0.5)
    assert drafts.with_ratio(begun, by_norm, MLP, 0.5).plan.criterion == "l1"


def test_the_draft_of_another_tab_is_not_lost() -> None:
    empty = drafts.empty_draft(MODEL)
    mine, theirs = (drafts.with_ratio(empty, MODEL, group, 0.5) for group in (QK, MLP))
    assert drafts.lost_draft(theirs, None, mine) == theirs  # none was stored when this tab started
    assert drafts.lost_draft(theirs, empty, mine) == theirs
    assert drafts.lost_draft(theirs, theirs, mine) is None  # this tab has seen it: undo restores it
    assert drafts.lost_draft(theirs, empty, theirs) is None
    assert drafts.lost_draft(empty, mine, theirs) is None
    assert drafts.lost_draft(None, mine, theirs) is None


def test_one_plan_is_saved_per_other_tab(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plans = [plan_from_ratios(MODEL, {QK: r}, criterion=BEST) for r in (0.25, 0.5, 0.75)]

    def keep(plan: PrunePlan, tab: str) -> saved_plans.SavedPlan:
        return saved_plans.save_plan(store, MODEL, plan, "From another tab", tab)

    first = keep(plans[0], "a")
    assert keep(plans[1], "a") == replace(first, plan=plans[1])
    assert len(saved_plans.list_plans(store, MODEL)) == 1
    assert keep(plans[0], "b").name == "From another tab 2"
    saved_plans.rename_plan(store, MODEL, saved_plans.list_plans(store, MODEL)[0], "Half")
    keep(plans[2], "a")  # the renamed plan stays
    assert {k.name: k.plan for k in saved_plans.list_plans(store, MODEL)} == {
        "Half": plans[1],
        "From another tab 2": plans[0],
        "From another tab": plans[2],
    }
