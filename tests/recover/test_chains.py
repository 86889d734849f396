"""Candidates of ``auto`` that run at once: results as one by one, and they stop together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest
import torch

from psvit_core import recover as recovery
from psvit_core.callbacks import Tick, keep_going
from psvit_core.errors import CancelledError
from psvit_core.evaluate import place
from psvit_core.recover import recover
from psvit_core.recover.chains import run_parts
from psvit_core.recover.teacher import Teacher
from psvit_core.runtime import Run
from tests.recover.test_recover import calib, pair

RUN = Run(batch=3)


@pytest.fixture(params=[1, 2, 8])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: request.param)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("name", ["sdt_v1", "sdt_v3"])
def test_the_results_are_those_of_one_after_the_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, plan, small = pair(name)
    together, one = recover(small, original, plan, calib(name), run=RUN)
    monkeypatch.setattr(Teacher, "is_shared", lambda *_: False)
    alone, other = recover(small, original, plan, calib(name), run=RUN)
    assert (one.kl, one.used, one.layers) == (other.kl, other.used, other.layers)
    assert list(one.kl) == list(other.kl)
    assert one.seconds.keys() == other.seconds.keys()
    assert (one.statistics_bytes, one.held_bytes) == (other.statistics_bytes, other.held_bytes)
    expected = alone.state_dict()
    for key, tensor in together.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("ticks", [1, 3, 6])
def test_a_tick_that_raises_stops_all_parts(ticks: int) -> None:
    """The tick stays in the caller's thread, and no thread is left behind."""
    here, before, seen = threading.get_ident(), threading.active_count(), 0

    def tick() -> None:
        nonlocal seen
        assert threading.get_ident() == here
        seen += 1
        if seen == ticks:
            raise CancelledError("enough")

    def endless(tick: Tick) -> None:
        while True:
            tick()

    with pytest.raises(CancelledError, match="enough"):
        run_parts([endless] * 3, tick)
    assert threading.active_count() == before


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_part_that_fails_stops_the_others(at: int) -> None:
    before = threading.active_count()

    def endless(tick: Tick) -> None:
        while True:
            tick()

    def ends(tick: Tick) -> None:
        tick()

    def fails(tick: Tick) -> None:
        tick()
        raise ValueError("no solution")

    parts = [ends, ends, endless] if at < 2 else [ends, ends, ends]
    parts[at] = fails
    with pytest.raises(ValueError, match="no solution"):
        run_parts(parts, keep_going)
    assert threading.active_count() == before


@pytest.mark.usefixtures("cores")
def test_a_part_is_continued_after_those_that_wait() -> None:
    begun: list[str] = []

    def part(name: str, following: Callable[[Tick], object] | None = None) -> Callable[..., object]:
        def run(tick: Tick) -> object:
            begun.append(name)
            return following

        return run

    last = part("third")
    run_parts([part("first", part("second", last)), part("other"), part("another")], keep_going)
    assert sorted(begun) == ["another", "first", "other", "second", "third"]
    assert begun.index("another") < begun.index("second") < begun.index("third")


@pytest.mark.usefixtures("cores")
def test_a_continued_part_that_fails_stops_the_others() -> None:
    before = threading.active_count()
    failing = threading.Event()

    def waits(tick: Tick) -> None:
        while True:
            tick()

    def fails(tick: Tick) -> None:
        failing.set()
        raise ValueError("no solution")

    def first(tick: Tick) -> Callable[[Tick], None]:
        return fails

    def other(tick: Tick) -> None:
        if os.cpu_count() != 1:  # alone, it would keep the other from starting
            waits(tick)

    with pytest.raises(ValueError, match="no solution"):
        run_parts([first, other], keep_going)
    assert failing.is_set()
    assert threading.active_count() == before


def test_parts_wait_while_the_tick_runs() -> None:
    """A tick may run another job, which goes first: a part ends its step and waits."""
    steps = ticks = most = 0

    def tick() -> None:
        nonlocal ticks, most
        before = steps
        time.sleep(0.02)  # time enough for many steps
        most = max(most, steps - before)
        ticks += 1

    def part(tick: Tick) -> None:
        nonlocal steps
        while ticks < 3:
            tick()
            steps += 1

    run_parts([part], tick)
    assert ticks >= 3
    assert most <= 1


def test_cancelling_a_recovery_leaves_no_thread() -> None:
    original, plan, small = pair("sdt_v1")
    before = threading.active_count()

    def tick() -> None:
        if threading.active_count() > before:  # while methods are tried
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        recover(small, original, plan, calib("sdt_v1"), run=RUN, tick=tick)
    assert threading.active_count() == before


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("function", ["refit_readers", "reestimate_norms", "refit_stages"])
def test_a_step_that_fails_stops_the_recovery(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, plan, small = pair("sdt_v1")
    before = threading.active_count()

    def fails(*args: object, **options: object) -> None:
        raise ValueError("no solution")

    monkeypatch.setattr(recovery, function, fails)
    with pytest.raises(ValueError, match="no solution"):
        recover(small, original, plan, calib("sdt_v1"), run=RUN)
    assert threading.active_count() == before


@pytest.mark.parametrize("cores", [1, 8], indirect=True)
def test_each_thread_has_one_model(cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    original, plan, small = pair("sdt_v1")
    copies = 0
    copied = recovery._RecoveryRun.copied

    def counted(run: recovery._RecoveryRun) -> object:
        nonlocal copies
        copies += 1
        return copied(run)

    monkeypatch.setattr(recovery._RecoveryRun, "copied", counted)
    recover(small, original, plan, calib("sdt_v1"), run=RUN)
    assert copies <= min(2, os.cpu_count() or 1)


@pytest.mark.parametrize("name", ["sdt_v1", "sdt_v2", "sdt_v3"])
def test_steps_run_at_once_where_the_images_of_two_fit_into_memory(name: str) -> None:
    original, plan, small = pair(name)
    data = calib(name)
    fit, held_out = recovery._split(data)
    teacher = Teacher(place(original, RUN), fit, held_out, RUN)
    _, report = recover(small, original, plan, data, run=RUN)
    # The report counts the unpruned model's output too, which is kept anyway.
    assert 0 < report.held_bytes <= 1.5 * teacher.halted_bytes
    assert teacher.value_bytes <= 2 * teacher.halted_bytes
    assert teacher.is_shared(2 * teacher.halted_bytes, keep_going)
    assert not teacher.is_shared(2 * teacher.halted_bytes - 1, keep_going)
