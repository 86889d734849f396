"""What every page says of jobs: the work that goes on, and what has just ended."""

from __future__ import annotations

import time

import pytest

from psvit_core.records import Subject
from tests.made import make_job
from ui.model import formats
from ui.shell.status import ended_words, is_worth_telling, pace_line, work_line

SUBJECT = {"subject": Subject(model="sdt_v1_digits").to_dict()}


def test_the_navigation_says_how_long_it_takes() -> None:
    now = time.time()
    job = make_job(
        task="sweep", state="running", done=1600, total=4000, fresh=2001, paced=now - 100
    )
    # 20 images a second, and 2,400 are left.
    assert work_line([job, make_job()]).replace(formats.NBSP, " ") == "sweep 40 % · 2 min, 1 more"
    assert pace_line([job]).replace(formats.NBSP, " ") == "20 images/s, about 2 min left"
    assert work_line([make_job(task="finetune")]) == "training waits"
    assert pace_line([make_job(task="finetune")]) == ""
    assert work_line([]) == pace_line([]) == ""


@pytest.mark.parametrize(
    ("task", "state", "seconds", "told"),
    [
        ("sweep", "done", 1, True),
        ("finetune", "failed", 1, True),
        ("plan", "interrupted", 1, True),
        ("sweep", "cancelled", 300, False),  # whoever did it knows
        ("measure", "done", 1, False),  # somebody looks at it
        ("measure", "done", 60, True),
        ("export", "failed", 60, True),
    ],
)
def test_what_is_told(task: str, state: str, seconds: int, told: bool) -> None:
    job = make_job(task=task, state=state, started=100.0, ended=100.0 + seconds)
    assert is_worth_telling(job) is told


def test_the_words() -> None:
    job = make_job(
        task="finetune", state="failed", started=0.1, ended=180.1, error="x" * 500, params=SUBJECT
    )
    title, text = ended_words(job)
    assert title == f"Training failed after 3{formats.NBSP}min"
    assert text.startswith("Spike-driven Transformer")
    assert text.endswith("x…") and len(text) < 240
