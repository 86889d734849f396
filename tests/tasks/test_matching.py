"""Which subjects define the same model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from psvit_core.records import Subject
from psvit_core.tasks.matching import same_model_fields

SUBJECT = Subject(model="own.pth", data="digits", arguments={"family": "sdt_v1"})


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "other.pth"},
        {"checkpoint": "weights.pth"},
        {"plugin": "mine.py"},
        {"image_size": 64},
        {"num_heads": 2},
        {"time_steps": 2},
        {"ema": True},
        {"entry": "student"},
        {"arguments": {"family": "statten"}},
    ],
    ids=str,
)
def test_what_defines_the_model(changed: dict[str, Any]) -> None:
    assert not same_model_fields(SUBJECT, dataclasses.replace(SUBJECT, **changed))


@pytest.mark.parametrize(
    "changed",
    [{"data": "folder:x"}, {"split": "test"}, {"limit": 9}, {"batch": 2}, {"workers": 3}],
    ids=str,
)
def test_images_and_the_run_do_not_define_the_model(changed: dict[str, Any]) -> None:
    assert same_model_fields(SUBJECT, dataclasses.replace(SUBJECT, **changed))
