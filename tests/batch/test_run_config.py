"""Configurations of ``run``: defaults of the other commands, errors with field and line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from psvit_core.batch.schema import RunConfig, load_run_config
from psvit_core.cli.arguments import make_parser
from psvit_core.errors import ConfigError
from psvit_core.records import FinetuneSettings, PlanSettings, Subject, SweepSettings
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "configs" / "run_digits.yaml"
LEAST = "out: out\nmodel: {name: sdt_v1_digits}\ntargets: {memory_saving: 0.3}\n"


def load(tmp_path: Path, text: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_run_config(path)


def test_defaults_are_those_of_the_records(tmp_path: Path) -> None:
    config = load(tmp_path, LEAST + "finetune: {}\n")
    assert config.subject() == Subject(model="sdt_v1_digits", recovery="auto")
    assert config.sweep_settings() == SweepSettings()
    assert config.plan_settings() == PlanSettings(memory_saving=0.3)
    assert config.finetune_settings() == FinetuneSettings()
    assert load(tmp_path, LEAST).finetune_settings() is None
    assert config.trial_settings() == ()
    tried = load(tmp_path, LEAST + "finetune: {epochs: 2}\ntrials: {lr: [1e-3, 1e-4]}\n")
    assert [(t.epochs, t.lr) for t in tried.trial_settings()] == [(2, 1e-3), (2, 1e-4)]


def test_fields_reach_the_settings(tmp_path: Path) -> None:
    text = """
out: ~/out
model:
  {name: a.safetensors, checkpoint: b.pth, num_heads: 8, time_steps: 2, levels: 4, family: sdt_v3}
data: {spec: "folder:~/images", split: calib, limit: 7}
compute: {device: cuda, batch: 3, workers: 2}
sweep: {ratios: [0.5, 0.25], criterion: l1, memory_budget: 1000000}
targets: {max_drop: 0.02, savings: {latency: 0.1, energy: 0.2}}
plan: {policy: prime, locked: {g: 0}, bounds: {h: [0, 0.5]}, round_to: 8}
recovery: none
exports: [onnx]
"""
    config = load(tmp_path, text)
    subject = config.subject()
    assert (subject.model, subject.checkpoint, subject.num_heads) == ("a.safetensors", "b.pth", 8)
    assert subject.arguments == {"levels": 4, "family": "sdt_v3"}
    assert subject.data == f"folder:{Path.home()}/images"
    assert (subject.split, subject.limit, subject.device, subject.batch) == ("calib", 7, "cuda", 3)
    assert config.folder == Path.home() / "out"
    assert config.sweep_settings().ratios == (0.25, 0.5)
    settings = config.plan_settings()
    assert settings.target.all_savings == {"latency": 0.1, "energy": 0.2}
    assert settings.target.max_drop == 0.02
    assert (settings.locked, settings.bounds) == ({"g": 0}, {"h": (0, 0.5)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "tset: true\n", "line 4: tset: No such field. Did you mean 'test'? Known: "),
        (LEAST + "plan:\n  polcy: x\n", "line 5: plan.polcy: No such field. Did you mean 'policy'"),
        (LEAST + "plan:\n  policy: psvitt\n", "line 5: plan.policy: Unknown policy 'psvitt'. Did "),
        (LEAST + "plan: {scope: {}}\n", "line 4: plan.scope: Must be a valid string; got {}."),
        (LEAST + "data:\n  limit: 1.5\n", "line 5: data.limit: Must be a valid integer; got 1.5"),
        (LEAST + "data:\n  limit: '5'\n", "line 5: data.limit: Must be a valid integer; got '5'"),
        (LEAST + "data: {split: test}\n", "line 4: data.split: Unknown split for planning 'test'"),
        (LEAST + "exports:\n- torch\n- onx\n", "line 6: exports.1: Unknown format 'onx'. Did you"),
        (LEAST + "sweep:\n  ratios: [0.5, 1.5]\n", "line 5: sweep.ratios: A prune ratio is"),
        (LEAST + "finetune:\n  lr: 1e-3\n  epochs: 0\n", "line 6: finetune.epochs: Fine-tuning"),
        (LEAST + "trials: {lr: [0.1]}\n", "line 4: trials: There is no training"),
        (LEAST + "finetune: {}\ntrials:\n  lr: [0.1, -1]\n", "line 6: trials.lr: Fine-tuning"),
        (LEAST + "finetune: {}\ntrials: {seed: [0.5]}\n", "line 5: trials.seed.0: Must be"),
        (LEAST + "finetune: {}\ntrials: {teacher: [x]}\n", "line 5: trials.teacher: No such"),
        (LEAST + "finetune: {}\ndata:\n  split: train\n", "line 6: data.split: Training chooses"),
        (LEAST + "plan:\n  budget_evaluations: 0\n", "line 4: plan: The budget of measured plans"),
        ("model: {}\n", "line 1: out: This field is missing. Add it."),
        ("model: {}\n", "line 1: model.name: This field is missing. Add it."),
        (LEAST.replace("0.3", "30"), "line 3: targets.memory_saving: Must be less than 1; got 30."),
        (LEAST.replace("0.3", "1e999"), "line 3: targets.memory_saving: Must be a finite number"),
        (LEAST.replace("memory_saving: 0.3", ""), "line 3: targets: Give at least one target"),
        ("- 1\n", "line 1: A configuration is a mapping"),
        ("", "line 1: A configuration is a mapping"),
        (LEAST + "version: 2\n", "line 4: version: Must be 1; got 2."),
    ],
)
def test_errors_name_field_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert f"run.yaml, {message}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_several_errors_come_in_the_order_of_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, LEAST + "".join(f"wrong_{i}: 1\n" for i in range(7)))
    text = str(refused.value)
    assert [text.index(f"wrong_{i}:") for i in range(5)] == sorted(
        text.index(f"wrong_{i}:") for i in range(5)
    )
    assert "wrong_5" not in text and text.endswith("And 2 more errors.")


def test_the_hash_is_of_the_values(tmp_path: Path) -> None:
    one = load(tmp_path, LEAST)
    assert load(tmp_path, LEAST + "# a comment\ntest: false\n").hash == one.hash
    assert load(tmp_path, LEAST + "test: true\n").hash != one.hash
    (tmp_path / "run.json").write_text(json.dumps(one.model_dump(mode="json")))
    assert load_run_config(tmp_path / "run.json") == one


def test_the_example_is_valid_and_documented() -> None:
    config = load_run_config(EXAMPLE)
    assert config.test and config.exports == ("torch", "pt2")
    assert EXAMPLE.read_text() in (ROOT / "docs" / "batch.md").read_text()


def test_every_field_is_documented() -> None:
    page = (ROOT / "docs" / "batch.md").read_text()
    for name, field in RunConfig.model_fields.items():
        assert f"`{name}`" in page, name
        for inner in getattr(field.annotation, "model_fields", {}):
            assert f"`{inner}`" in page, f"{name}.{inner}"


def test_sections_have_the_options_of_the_other_commands() -> None:
    parser = make_parser()
    options = vars(parser.parse_args(["plan", "--sweep", "s", "--out", "o"]))
    assert set(RunConfig.model_fields["plan"].annotation.model_fields) == {  # type: ignore[union-attr]
        *("policy", "scope", "round_to", "budget_evaluations", "budget_seconds"),
        *("locked", "bounds"),  # --lock and --bound
    }
    assert {"policy", "scope", "round_to", "budget_evaluations", "budget_seconds"} <= options.keys()


def test_checking_loads_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(LEAST)
    code = (
        "import sys; from psvit_core.batch.schema import load_run_config; "
        f"load_run_config({str(path)!r}); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=PATIENCE)
