"""README and documentation are true: code runs, commands parse, links work, names exist."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

import psvit_core
from psvit_core.cli.arguments import make_parser
from psvit_core.data import SPECS, SPLITS
from psvit_core.importance import CRITERIA
from psvit_core.records import POLICIES, RECOVERIES
from psvit_core.zoo.cards import list_models, model_card
from psvit_core.zoo.registry import FAMILIES
from scripts.docs_hooks import command_reference
from tests.project.test_architecture import CORE, LAYERS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
REFERENCE = command_reference()
#: Text and the folder that its links start from.
TEXTS = {
    "README": (README, ROOT),
    "CONTRIBUTING": (CONTRIBUTING, ROOT),
    "SECURITY": (SECURITY, ROOT),
    "commands": (REFERENCE, DOCS),
    **{name: (text, DOCS) for name, text in PAGES.items()},
}
COMMANDS = {
    *("models", "groups", "evaluate", "sweep", "plan", "pareto", "prune", "finetune", "train"),
    *(
        "link",
        "open-link",
        "export",
        "run",
        "quantize",
        "fits",
        "latency",
        "report",
        "picture",
        "compare",
        "inspect",
        "check-data",
        "cache",
        "jobs",
        "app",
    ),
}
#: Pages of the site that are written while it is built.
GENERATED = {"commands.md", "security.md", "contributing.md", "changelog.md"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands_of(text: str) -> list[list[str]]:
    """Arguments of every ``psvit`` command in the shell blocks of a text."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["psvit"]]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize(
    "name", ["README", pytest.param("getting-started", marks=pytest.mark.slow), "api"]
)
def test_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(TEXTS[name][0], "python")
    assert found
    for code in found:
        exec(compile(code, name, "exec"), {})
        assert "save_pruned" not in code or (tmp_path / "pruned.safetensors").exists()


@pytest.mark.parametrize("name", TEXTS)
def test_commands_parse(name: str) -> None:
    for command in commands_of(TEXTS[name][0]):
        make_parser().parse_args(command)


def test_security_names_what_exists() -> None:
    named = re.findall(r"`((?:psvit_core|ui)/[\w/]+(?:\.py)?)`", SECURITY)
    assert len(named) >= 8
    assert [path for path in named if not (ROOT / path).exists()] == []
    settings = (ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8")
    assert 'address = "127.0.0.1"' in settings and "maxUploadSize = 2000" in settings


def test_readme_shows_the_main_commands() -> None:
    shown = [command[0] for command in commands_of(README)]
    assert shown == ["app", "sweep", "plan", "prune", "finetune", "evaluate", "pareto"]


def test_reference_has_every_command_and_option() -> None:
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", REFERENCE, flags=re.DOTALL | re.M))
    assert set(sections) == COMMANDS
    assert "`--memory-saving MEMORY_SAVING`" in sections["plan"]
    assert "`--resume, --no-resume`" in sections["finetune"]
    assert "watch: follow a job, or all that wait and run" in sections["jobs"]


def test_every_name_that_can_be_chosen_is_documented() -> None:
    shipped = [name for name in list_models() if model_card(name).weights]
    for name in (*FAMILIES, *CRITERIA, *POLICIES, *RECOVERIES, *shipped):
        assert f"`{name}`" in PAGES["models"], name
    for name in (*SPECS, *SPLITS):
        assert f"`{name}`" in PAGES["data"], name


def test_every_environment_variable_is_documented() -> None:
    sources = [ROOT / "app.py", *CORE.rglob("*.py"), *(ROOT / "ui").rglob("*.py")]
    named = {
        name
        for path in sources
        for name in re.findall(r'"(PSVIT_[A-Z]+)"', path.read_text(encoding="utf-8"))
    }
    assert named
    for name in named:
        assert f"`{name}`" in PAGES["getting-started"], name


def test_every_page_of_the_app_is_documented() -> None:
    headings = re.findall(r"^## (.+)$", PAGES["pages"], flags=re.MULTILINE)
    documented = {heading.lower().replace("-", "") for heading in headings}
    assert {path.stem for path in (ROOT / "pages").glob("*.py")} <= documented


def test_api_page_documents_the_public_names() -> None:
    documented = re.findall(r"^::: (\S+)$", PAGES["api"], flags=re.MULTILINE)
    found = {}
    for path in documented:
        module, _, name = path.rpartition(".")
        found[name] = getattr(importlib.import_module(module), name)
        assert inspect.getdoc(found[name]), path
    assert set(found) == set(psvit_core.__all__)
    assert all(getattr(psvit_core, name) is value for name, value in found.items())


def test_architecture_page_describes_the_layout() -> None:
    text = PAGES["architecture"]
    table = re.findall(r"^\| \d+ \| (.+) \|$", text, flags=re.MULTILINE)
    written = [tuple(re.findall(r"`(\w+)`", row)) for row in table]
    assert written == [tuple(u for u in layer if u != "__main__") for layer in LAYERS]
    sections = text.split("## The engine")[1]
    units = {path.stem for path in CORE.iterdir() if path.suffix == ".py"}
    units |= {path.parent.name for path in CORE.glob("*/__init__.py")}
    for unit in units - {"__init__", "__main__"}:
        assert f"`{unit}`" in sections, unit
    for path in (ROOT / "ui").glob("*/__init__.py"):
        assert f"`ui/{path.parent.name}`" in sections, path


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^  - .+: (\S+\.md)$", config, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*(f"{name}.md" for name in PAGES), *GENERATED])


@pytest.mark.parametrize("name", TEXTS)
def test_linked_files_exist(name: str) -> None:
    text, folder = TEXTS[name]
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        exists = link.startswith("http") or link in GENERATED or (folder / link).exists()
        assert exists, link


@pytest.mark.parametrize("name", TEXTS)
def test_make_targets_exist(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", TEXTS[name][0], flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("name", ["CONTRIBUTING", "architecture"])
def test_named_files_exist(name: str) -> None:
    for path in re.findall(r"`([\w./-]+/[\w./-]*)`", TEXTS[name][0]):
        found = [ROOT / path, CORE / path, CORE / f"{path}.py", ROOT / f"{path}.py"]
        made_by_the_build = path == "psvit_core/_app"
        assert any(one.exists() for one in found) or "NAME" in path or made_by_the_build, path


def test_readme_results_are_the_measured_ones() -> None:
    results = ROOT / "benchmarks" / "results" / "cifar10.json"
    stored = json.loads(results.read_text(encoding="utf-8"))
    measured = {(round(row["saving"], 3), row["policy"]): row for row in stored["rows"]}
    assert f"{stored['settings']['unpruned'][0]:.1f} % of the 10,000 test pictures right" in README
    conditions = {
        "": "pruned",
        ", recovered": "recovered",
        ", fine-tuned for an epoch": "finetuned",
    }
    found = re.findall(r"^\| (\d+\.\d) %(,.*?)? \|(.*)\|$", README, flags=re.M)
    assert len(found) == 5
    assert stored["settings"]["training"]["epochs"] == 1
    assert f"{stored['settings']['smallest']['bytes'] / 1e6:.2f} MB" in README
    for saving, condition, rest in found:
        expected = []
        for policy in ("uniform", "psvit", "prime", "optimal"):  # the order of the columns
            row = measured[round(float(saving) / 100, 3), policy]
            expected += row[conditions[condition]]
        written = [float(number) for number in re.findall(r"-?\d+\.\d", rest)]
        assert written == pytest.approx(expected, abs=0.0506)  # rounded to 0.1
