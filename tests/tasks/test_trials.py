"""Several trainings with different settings, and the choice of the best."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from psvit_core.cluster.settings import EngineSettings
from psvit_core.errors import CancelledError, JobError, RecordError, UnknownNameError
from psvit_core.finetune import STATE_FILE, finetune
from psvit_core.records import FinetuneReport, FinetuneSettings, Subject, read_curve
from psvit_core.runtime import Run
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session
from psvit_core.tasks.trial_runs import (
    TrainingInputs,
    TrialCallbacks,
    ended_trials,
    run_trials,
)
from psvit_core.tasks.trials import MOST_TRIALS, parse_values, trial_text, vary, without_equals
from psvit_core.zoo.checkpoint import weights_hash
from tests.finetune.test_finetune import pruned, train_set
from tests.tiny import tiny_data

BASE = FinetuneSettings(epochs=1, batch=4, augment="none", autocast="off")


def test_all_combinations_are_tried_once() -> None:
    trials = vary(BASE, {"lr": (0.1, 0.01, 0.1), "seed": (0, 1)})
    assert [(t.lr, t.seed) for t in trials] == [(0.1, 0), (0.1, 1), (0.01, 0), (0.01, 1)]
    assert {t.epochs for t in trials} == {1}
    assert vary(BASE, {}) == (BASE,)
    assert [trial_text(t, trials) for t in trials][:2] == ["lr 0.1, seed 0", "lr 0.1, seed 1"]
    assert trial_text(BASE, (BASE,)) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.001,3e-4", ("lr", (0.001, 3e-4))),
        ("patience=1, 2", ("patience", (1, 2))),
        ("label-smoothing=0", ("label_smoothing", (0.0,))),
        ("augment=flip,none", ("augment", ("flip", "none"))),
    ],
)
def test_values_are_read_by_the_type_of_their_setting(text: str, expected: Any) -> None:
    assert parse_values(text) == expected
    assert [type(v) for v in parse_values(text)[1]] == [type(v) for v in expected[1]]


@pytest.mark.parametrize("text", ["teacher=none", "train_images=5", "learning=1", ""])
def test_only_settings_that_compare_alike_can_be_tried(text: str) -> None:
    with pytest.raises(UnknownNameError, match="setting to try"):
        parse_values(text)
    with pytest.raises(UnknownNameError, match="setting to try"):
        vary(BASE, {text.partition("=")[0]: (1,)})


@pytest.mark.parametrize(("text", "kind"), [("seed=0.5", "whole"), ("lr=", "numbers"), ("lr", "")])
def test_values_that_are_none(text: str, kind: str) -> None:
    with pytest.raises(JobError, match=f"{kind}.*separated by commas"):
        parse_values(text)


@pytest.mark.parametrize("seeds", [(), range(MOST_TRIALS + 1)])
def test_the_number_of_trials_is_bounded(seeds: Any) -> None:
    with pytest.raises(JobError, match=f"at most {MOST_TRIALS} combinations.*got {len(seeds)}"):
        vary(BASE, {"seed": seeds})


# ---- runs ----------------------------------------------------------------------------------------


def inputs_of(name: str = "sdt_v1") -> TrainingInputs:
    original, small = pruned(name)
    return TrainingInputs(
        small=small, teacher=original, train=train_set(name), val=tiny_data(name, 6)
    )


def session_of(
    store: Store, inputs: TrainingInputs, engine: EngineSettings | None = None
) -> Session:
    inputs.small.name = "sdt_v1_digits"  # provides the model card
    subject, engine = Subject(batch=3), engine or EngineSettings()
    return Session(subject, store, engine=engine, _model=inputs.small, _data=inputs.val)


class Seen:
    """What the callbacks of ``run_trials`` were called with."""

    def __init__(self, stop_after: int | None = None, kill_after: int | None = None) -> None:
        self.curves: list[Path] = []
        self.reports: list[FinetuneReport] = []
        self.steps: list[tuple[int, int, str]] = []
        self._stop_after, self._kill_after = stop_after, kill_after

    def tick(self) -> None:
        if self._kill_after is not None and len(self.steps) >= self._kill_after:
            raise CancelledError("killed")

    @property
    def callbacks(self) -> TrialCallbacks:
        return TrialCallbacks(
            started=self.curves.append,
            progress=lambda *step: self.steps.append(step),
            tick=self.tick,
            stop=lambda: self._stop_after is not None and len(self.steps) >= self._stop_after,
            ended=self.reports.append,
        )


def scores_of(report: FinetuneReport) -> tuple[float, float]:
    return report.best_accuracy.value, report.best_epoch


def test_the_best_of_all_trials_is_kept(tmp_path: Path) -> None:
    inputs, seen = inputs_of(), Seen()
    trials = vary(BASE, {"lr": (0.5, 1e-3), "seed": (0, 1)})
    session = session_of(Store(tmp_path), inputs)
    found = run_trials(session, inputs, trials, seen.callbacks)
    alone = [
        finetune(
            inputs.small,
            inputs.train,
            inputs.val,
            teacher=inputs.teacher,
            settings=settings,
            run=Run(batch=3),
        )
        for settings in trials
    ]

    assert [*map(scores_of, found.reports)] == [scores_of(a.report) for a in alone]
    assert seen.reports == list(found.reports) and len(set(seen.curves)) == 4
    best = max(alone, key=lambda a: (a.report.best_accuracy.value, -_loss(a.report)))
    report = found.best.report
    assert (report.settings, report.trials) == (best.report.settings, 4)
    for model in (found.best.model, found.best.last):
        assert model.provenance["finetunes"] == [report.to_dict()]
    assert [step[:2] for step in seen.steps] == [(n, 16) for n in range(1, 17)]
    assert seen.steps[0][2].startswith("lr 0.5, seed 0: epoch")
    assert sorted(path.name for path in found.files if path.is_file()) == [
        *4 * ["report.json"],  # a state is large: only the best one's is kept
        STATE_FILE,
    ]

    again = Seen()
    assert run_trials(session, inputs, trials, again.callbacks).best.report == report
    assert again.steps == []  # nothing is trained twice
    assert sorted(map(scores_of, again.reports)) == sorted(map(scores_of, seen.reports))


def _loss(report: FinetuneReport) -> float:
    best = next(r for r in report.epochs if r.epoch == report.best_epoch)
    assert best.val_loss is not None
    return best.val_loss


def test_reports_without_a_state_count_only_beside_a_better_one(tmp_path: Path) -> None:
    inputs = inputs_of()
    trials = vary(BASE, {"lr": (1e-3, 0.5), "seed": (0, 1)})
    session = session_of(Store(tmp_path), inputs)
    best = run_trials(session, inputs, trials, Seen().callbacks).best.report.settings
    others = tuple(trial for trial in trials if trial != best)
    seen = Seen()
    found = run_trials(session, inputs, others, seen.callbacks)
    elsewhere = session_of(Store(tmp_path / "other"), inputs)
    expected = run_trials(elsewhere, inputs, others, Seen().callbacks)
    assert [*map(scores_of, found.reports)] == [*map(scores_of, expected.reports)]
    assert weights_hash(found.best.model) == weights_hash(expected.best.model)
    assert len(seen.steps) == 12  # of three trainings: the model of each is needed if it is best


def test_a_report_without_its_best_epoch_is_damaged(tmp_path: Path) -> None:
    inputs = inputs_of()
    trained = run_trials(session_of(Store(tmp_path), inputs), inputs, (BASE,), Seen().callbacks)
    folder = tmp_path / "k"
    folder.mkdir()
    (folder / STATE_FILE).touch()
    report = trained.best.report
    report.save(folder / "report.json")
    assert ended_trials([folder]) == {folder: report}
    for bad in ({"best_epoch": 7.0}, {"epochs": ()}):
        changed = dataclasses.replace(report, **bad)
        changed.save(folder / "report.json")
        assert ended_trials([folder]) == {}
        with pytest.raises(RecordError, match="no validation accuracy of its best epoch"):
            _ = changed.best_accuracy


def test_stop_loses_nothing_that_had_ended(tmp_path: Path) -> None:
    inputs, trials = inputs_of(), vary(BASE, {"seed": (0, 1, 2)})
    session = session_of(Store(tmp_path), inputs)
    with pytest.raises(CancelledError):
        run_trials(session, inputs, trials, Seen(kill_after=10).callbacks)
    found = run_trials(session, inputs, trials, Seen(stop_after=0).callbacks)
    assert [len(r.epochs) for r in found.reports[:2]] == [2, 2]  # before training, and after one
    assert found.best.report.best_accuracy.value == max(
        r.best_accuracy.value for r in found.reports
    )


def test_a_kill_between_report_and_state_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, trials = inputs_of(), vary(BASE, {"seed": (0, 1)})
    session = session_of(Store(tmp_path), inputs)

    unlink = Path.unlink

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self.name == STATE_FILE and self.exists():
            raise CancelledError("killed")
        unlink(self, missing_ok)

    with monkeypatch.context() as patched, pytest.raises(CancelledError):
        patched.setattr(Path, "unlink", killed)
        run_trials(session, inputs, trials, Seen().callbacks)
    seen = Seen()
    assert len(run_trials(session, inputs, trials, seen.callbacks).reports) == 2
    assert seen.steps == []


def test_a_damaged_report_is_no_reason_to_fail(tmp_path: Path) -> None:
    inputs, trials = inputs_of(), vary(BASE, {"lr": (0.5, 1e-3)})
    session = session_of(Store(tmp_path), inputs)
    found = run_trials(session, inputs, trials, Seen().callbacks)
    [report] = [
        path
        for path in found.files
        if path.name == "report.json" and not path.with_name(STATE_FILE).exists()
    ]
    report.write_bytes(report.read_bytes()[:-9])
    seen = Seen()
    again = run_trials(session, inputs, trials, seen.callbacks)
    assert again.best.report == found.best.report and len(seen.steps) == 4
    assert run_trials(session, inputs, trials, Seen().callbacks, resume=False).reports


def test_trials_that_would_train_the_same_network_run_once() -> None:
    trials = vary(BASE, {"alpha": (0.0, 0.5, 1.0), "temperature": (1.0, 2.0)})
    assert len(without_equals(trials, has_teacher=True)) == 5  # no temperature with weight 0
    assert without_equals(trials, has_teacher=False) == trials[:1]


def test_a_single_training_says_nothing_of_trials(tmp_path: Path) -> None:
    inputs, seen = inputs_of(), Seen()
    found = run_trials(session_of(Store(tmp_path), inputs), inputs, (BASE,), seen.callbacks)
    assert found.best.report.trials == 1 and found.best.report == found.reports[0]
    assert seen.steps[0][2].startswith("epoch")


def test_a_killed_run_goes_on_with_the_trial_it_was_in(tmp_path: Path) -> None:
    inputs, trials = inputs_of(), vary(BASE, {"seed": (0, 1, 2)})
    session = session_of(Store(tmp_path), inputs)
    with pytest.raises(CancelledError):
        run_trials(session, inputs, trials, Seen(kill_after=6).callbacks)
    seen = Seen()
    found = run_trials(session, inputs, trials, seen.callbacks)
    assert [r.settings.seed for r in found.reports] == [0, 1, 2]
    assert seen.steps[0][:2] == (5, 12)  # the first trial had ended


def test_stop_keeps_the_best_so_far_and_begins_no_other(tmp_path: Path) -> None:
    inputs, seen = inputs_of(), Seen(stop_after=5)
    trials = vary(dataclasses.replace(BASE, epochs=2), {"seed": (0, 1, 2)})
    found = run_trials(session_of(Store(tmp_path), inputs), inputs, trials, seen.callbacks)
    assert [r.settings.seed for r in found.reports] == [0]
    assert found.reports[0].stopped_early and found.best.report.trials == 1


def diverging(tmp_path: Path, lrs: tuple[float, ...], engine: EngineSettings | None = None) -> Any:
    """Run trials of which those with the learning rate 1e30 end with an infinite loss."""
    inputs, seen = inputs_of(), Seen()
    warned: list[str] = []
    session = session_of(Store(tmp_path), inputs, engine)
    session.warn = warned.append
    trials = vary(dataclasses.replace(BASE, clip=0.0), {"lr": lrs})
    return run_trials(session, inputs, trials, seen.callbacks), warned


def test_a_trial_that_diverges_is_left_out(tmp_path: Path) -> None:
    found, warned = diverging(tmp_path, (1e30, 1e-3))
    assert [r.settings.lr for r in found.reports] == [1e-3]
    assert found.best.report.trials == 1
    (text,) = warned
    assert text.startswith("A training was left out (lr 1e+30): The loss became")


def test_if_all_trials_diverge_the_reason_is_said(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="The loss became"):
        diverging(tmp_path, (1e30, 1e31))


def test_the_curve_is_that_of_the_best_trial(tmp_path: Path) -> None:
    inputs, seen = inputs_of(), Seen()
    trials = vary(BASE, {"lr": (1e-3, 0.5, 0.9)})
    found = run_trials(session_of(Store(tmp_path), inputs), inputs, trials, seen.callbacks)
    judged = [r for r in read_curve(found.curve) if r.val_accuracy is not None]
    assert tuple(judged) == found.best.report.epochs


def test_models_with_code_of_their_own_train_here(tmp_path: Path) -> None:
    inputs, seen = inputs_of(), Seen()
    warned: list[str] = []
    session = session_of(Store(tmp_path), inputs, EngineSettings(name="ray"))
    session.subject = dataclasses.replace(session.subject, plugin="mine.py")
    session.warn = warned.append
    assert run_trials(session, inputs, (BASE,), seen.callbacks).reports
    assert "do not have the code of mine.py" in warned[0]
