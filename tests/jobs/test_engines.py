"""Where jobs run: chosen once for a store, unless the environment decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psvit_core.cli import main
from psvit_core.cluster.settings import EngineSettings
from psvit_core.errors import ClusterError
from psvit_core.jobs import client, run
from psvit_core.jobs.client import Job
from psvit_core.jobs.engines import choose_engine, engine_of_jobs, engine_text, is_fixed
from psvit_core.records.jobs import SummaryRequest
from psvit_core.storage.store import Store
from tests.pareto.test_pareto import tiny_engine

RAY = EngineSettings(name="ray", address="head:6379", gpus=0.5, workers=3)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PSVIT_ENGINE", "PSVIT_RAY_ADDRESS", "PSVIT_RAY_GPUS", "PSVIT_RAY_WORKERS"):
        monkeypatch.delenv(name, raising=False)


def test_a_choice_holds_for_the_store(tmp_path: Path) -> None:
    assert engine_of_jobs(Store(tmp_path)) == EngineSettings()
    choose_engine(Store(tmp_path), RAY)
    assert engine_of_jobs(Store(tmp_path)) == RAY
    assert engine_of_jobs(Store(tmp_path / "other")) == EngineSettings()
    choose_engine(Store(tmp_path), EngineSettings())
    assert engine_of_jobs(Store(tmp_path)) == EngineSettings()


def test_the_environment_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    choose_engine(store, RAY)
    monkeypatch.setenv("PSVIT_ENGINE", "local")
    assert is_fixed() and engine_of_jobs(store) == EngineSettings()
    with pytest.raises(ClusterError, match=r"PSVIT_ENGINE.*decides where jobs run: 'local'"):
        choose_engine(store, EngineSettings())


@pytest.mark.parametrize("stored", [{"name": "spark"}, {"nodes": 3}, [1], "ray", {"workers": 0}])
def test_a_choice_that_cannot_be_read(stored: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("settings/engine", stored)
    with pytest.raises(ClusterError, match="Choose again"):
        engine_of_jobs(store)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (EngineSettings(), "this machine"),
        (EngineSettings(name="ray"), "Ray on this machine"),
        (RAY, "the Ray cluster head:6379"),
    ],
)
def test_an_engine_in_words(settings: EngineSettings, text: str) -> None:
    assert engine_text(settings) == text


def test_a_job_takes_the_engine_when_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = Store(tmp_path), []

    def summary(session: Any) -> Any:
        seen.append(session.engine)
        raise ClusterError("enough")

    monkeypatch.setattr(run, "summarize_model", summary)
    params = {"subject": {"model": "sdt_v1_digits"}, **SummaryRequest().to_dict()}
    job = Job(id="a", task="summary", title="t", params=params, created=1.0)
    client.save(store, job)
    session = tiny_engine(store)
    for chosen in (RAY, EngineSettings()):
        choose_engine(store, chosen)
        with pytest.raises(ClusterError, match="enough"):
            run.JobRun(store, job, lambda _: session, lambda _: None).run()
    assert seen == [RAY, EngineSettings()]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))

    def says(*words: str) -> str:
        assert main(["jobs", "engine", *words]) == 0
        return capsys.readouterr().out.strip()

    assert says() == "jobs run on this machine"
    assert says("--ray-address", "head:6379", "--ray-gpus", "0.5") == (
        "jobs run on the Ray cluster head:6379"
    )
    assert '"gpus": 0.5' in says("--json")
    assert says("--ray-workers", "4") == "jobs run on the Ray cluster head:6379"
    assert main(["jobs", "list", "--engine", "ray"]) == 2
    assert "options of psvit jobs engine" in capsys.readouterr().err
    assert says("--engine", "local") == "jobs run on this machine"
    assert main(["jobs", "engine", "--engine", "spark"]) == 2
    assert "Unknown engine 'spark'" in capsys.readouterr().err
    monkeypatch.setenv("PSVIT_ENGINE", "ray")
    assert says() == "jobs run on Ray on this machine"
    assert main(["jobs", "engine", "--engine", "local"]) == 2
    assert "decides where jobs run" in capsys.readouterr().err
