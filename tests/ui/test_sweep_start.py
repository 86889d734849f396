"""Starting a sweep from the app: what is measured first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from psvit_core.jobs.tasks import SweepSettings
from psvit_core.zoo.cards import ModelCard, model_card
from ui import panels_sweep


@dataclass
class Recorder:
    """Stands for a workspace; notes what is asked of it."""

    card: ModelCard | None
    asked: list[str] = field(default_factory=list)

    def measure(self, plan: Any) -> None:
        assert plan is None
        self.asked.append("baseline")

    def start_sweep(self, settings: SweepSettings) -> None:
        self.asked.append("sweep")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sdt_v1_8_512", ["baseline", "sweep"]), ("sdt_v1_digits", ["sweep"])],
)
def test_published_models_measure_their_baseline_first(
    name: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.state.choose", lambda key, value: None)
    workspace = Recorder(model_card(name))
    panels_sweep._start(workspace, SweepSettings())  # type: ignore[arg-type]
    assert workspace.asked == expected
