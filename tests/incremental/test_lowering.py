"""Lowering without the compiled code: the operation sets, and torch in place of programs."""

from __future__ import annotations

from typing import Any

import pytest

from psvit_core.incremental import lowering, ops
from psvit_core.incremental.fusion import convolve
from psvit_core.incremental.program import ProgramRunner
from psvit_core.kernels.ops import UnsupportedError
from psvit_core.sensitivity.sweep import sweep
from tests.tiny import tiny_data, tiny_model

RATIOS = (0.25, 0.75)


def test_torch_runs_what_has_no_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6)
    wanted = sweep(model, data, ratios=RATIOS)

    def refuse(*_: Any) -> Any:
        raise UnsupportedError("anything")

    monkeypatch.setattr(ProgramRunner, "run", refuse)
    got = sweep(model, data, ratios=RATIOS)
    assert [r.accuracy for r in got.rows] == [r.accuracy for r in wanted.rows]
    assert [r.size for r in got.rows] == [r.size for r in wanted.rows]


def test_operation_sets_name_every_lowering() -> None:
    assert set(lowering._BY_CALL) - {convolve} == ops.LOWERED_CALLS
    assert set(lowering._BY_NAME) == ops.LOWERED_NAMES
