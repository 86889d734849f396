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
from psvit_core.records import Subject
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


@pytest.fixture
def engines_of_runs(monkeypatch: pytest.MonkeyPatch) -> list[EngineSettings]:
    """Return a list that gets the engine of each job that is run, which then fails."""
    seen: list[EngineSettings] = []

    def summary(session: Any) -> Any:
        seen.append(session.engine)
        raise ClusterError("enough")

    monkeypatch.setattr(run, "summarize_model", summary)
    monkeypatch.setattr(client, "ensure_worker", lambda *_, **__: None)
    return seen


def run_job(store: Store, job: Job) -> None:
    session = tiny_engine(store)
    with pytest.raises(ClusterError, match="enough"):
        run.JobRun(store, job, lambda _: session, lambda _: None).run()


def submitted(store: Store) -> Job:
    return client.submit(store, "t", Subject(model="sdt_v1_digits"), SummaryRequest())


def test_a_job_takes_the_engine_when_it_starts(
    tmp_path: Path, engines_of_runs: list[EngineSettings]
) -> None:
    store = Store(tmp_path)
    job = submitted(store)
    for chosen in (RAY, EngineSettings()):
        choose_engine(store, chosen)
        run_job(store, job)
    assert engines_of_runs == [RAY, EngineSettings()]


def test_who_asks_for_a_job_decides_and_not_who_started_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines_of_runs: list[EngineSettings]
) -> None:
    store = Store(tmp_path)
    monkeypatch.setenv("PSVIT_ENGINE", "ray")
    monkeypatch.setenv("PSVIT_RAY_WORKERS", "3")
    job = submitted(store)
    monkeypatch.delenv("PSVIT_ENGINE")  # of a worker that another program has started
    run_job(store, job)
    client.cancel(store, job.id)
    again = client.resume(store, job.id)
    monkeypatch.setenv("PSVIT_ENGINE", "ray")
    run_job(store, again)
    assert engines_of_runs == [EngineSettings(name="ray", workers=3), EngineSettings()]


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
    assert "only psvit jobs engine does" in capsys.readouterr().err
    assert says("--engine", "local") == "jobs run on this machine"
    assert main(["jobs", "engine", "--engine", "spark"]) == 2
    assert "Unknown engine 'spark'" in capsys.readouterr().err
    monkeypatch.setenv("PSVIT_ENGINE", "ray")
    assert says() == "jobs run on Ray on this machine"
    assert main(["jobs", "engine", "--engine", "local"]) == 2
    assert "decides where jobs run" in capsys.readouterr().err
