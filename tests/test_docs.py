"""The README is true: its Python runs, its commands parse, its names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from psvit_core.cli.arguments import make_parser
from psvit_core.importance import CRITERIA
from psvit_core.planners import POLICIES
from psvit_core.zoo.cards import list_models, model_card
from psvit_core.zoo.registry import FAMILIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - the README's own code
    assert (tmp_path / "pruned.safetensors").exists()


def test_commands_parse() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line)[3:] for line in lines if line.startswith("python -m psvit_core")]
    names = {
        "models", "groups", "evaluate", "sweep", "plan", "prune", "finetune", "pareto",
        "compare", "link", "open-link", "inspect", "check-data", "jobs",
    }  # fmt: skip
    assert {c[0] for c in commands} == names
    for command in commands:
        make_parser().parse_args(command)


def test_everything_registered_is_named() -> None:
    shipped = [name for name in list_models() if model_card(name).weights]
    for name in (*FAMILIES, *CRITERIA, *POLICIES, *shipped):
        assert f"`{name}`" in README, name


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
