"""The house rules that a reader cannot see at a glance: who imports whom, and what stays light.

The order of ``LAYERS`` is the one of the layout: a module imports only modules that stand before
it. Files of one sub-package may import each other.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import psvit_core

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "psvit_core"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("files", "stats", "records", "store", "size", "outcomes", "plans", "share"),
    ("native", "fused", "neurons", "runtime", "tape"),
    ("data", "zoo"),
    ("groups", "metrics", "importance"),
    ("surgery", "evaluate"),
    ("sensitivity", "planners", "recover", "finetune"),
    ("export", "custom"),
    ("pareto", "demo", "jobs", "workspace", "cli", "__main__"),
)
ORDER = [unit for layer in LAYERS for unit in layer]
SCREEN = {"streamlit", "plotly"}
HEAVY = {"torch", "torchvision", "spikingjelly", "timm"}
TORCH_FREE = (
    "psvit_core",
    "psvit_core.errors",
    "psvit_core.files",
    "psvit_core.stats",
    "psvit_core.records",
    "psvit_core.size",
    "psvit_core.store",
    "psvit_core.outcomes",
    "psvit_core.plans",
    "psvit_core.share",
    "psvit_core.planners",
    "psvit_core.workspace",
    "psvit_core.zoo.cards",
    "psvit_core.pareto",
    "psvit_core.demo",
    "psvit_core.jobs.engine",
    "psvit_core.jobs.planning",
    "psvit_core.jobs.tasks",
    "psvit_core.jobs.improved",
    "psvit_core.jobs.tuning",
    "psvit_core.jobs.fronts",
    "psvit_core.jobs.opening",
)
MAX_PAGE_LINES = 120


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(tree: ast.AST, *, on_import: bool) -> Iterator[ast.AST]:
    """All nodes; with ``on_import`` only those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if on_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if on_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from statements(node, on_import=on_import)


def imports(source: str, module: str, *, package: bool, on_import: bool = False) -> set[str]:
    """Dotted names that ``source`` imports; ``from a import b`` gives ``a.b``."""
    found: set[str] = set()
    for node in statements(ast.parse(source), on_import=on_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + package]
                base = ".".join([*above, base] if base else above)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def unit(name: str) -> str | None:
    """``records`` for ``psvit_core.records.PrunePlan``; None outside psvit_core and for itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "psvit_core" and len(parts) > 1 else None


def layering_faults(source: str, module: str, *, package: bool) -> list[str]:
    """What is wrong with the imports of one module of psvit_core, in words."""
    own = unit(module)
    if own not in ORDER:
        return [f"{module} is in no layer: add {own!r} to LAYERS (and to the layout it mirrors)"]
    faults = []
    for name in sorted(imports(source, module, package=package)):
        if name.split(".")[0] in SCREEN:
            faults.append(f"{module} imports {name}: the core knows no screen")
        other = unit(name)
        if other is None or other == own:
            continue
        if other not in ORDER:
            faults.append(f"{module} imports {name}: {other!r} is in no layer")
        elif ORDER.index(other) > ORDER.index(own):
            faults.append(f"{module} imports {name}, which stands above it")
    return faults


def sources(*globs: str) -> Iterator[tuple[str, str, bool]]:
    """(module, source, is a package) of the project's files."""
    for glob in globs:
        for path in sorted(ROOT.glob(glob)):
            text = path.read_text(encoding="utf-8")
            yield module_name(path), text, path.name == "__init__.py"


def heavy_imports(start: set[str], core: dict[str, tuple[str, bool]]) -> set[str]:
    """Heavy packages that importing ``start`` loads, also through modules of psvit_core."""
    todo, seen = set(start), set()
    while todo:
        name = todo.pop()
        seen.add(name)
        parents = {name.rsplit(".", i)[0] for i in range(name.count(".") + 1)}
        for module in parents & set(core):
            text, package = core[module]
            todo |= imports(text, module, package=package, on_import=True) - seen
    return {name.split(".")[0] for name in seen} & HEAVY


def test_core_imports_only_what_stands_below() -> None:
    checked = [s for s in sources("psvit_core/**/*.py") if s[0] != "psvit_core"]
    assert len(checked) > 10
    faults = [
        f for name, text, package in checked for f in layering_faults(text, name, package=package)
    ]
    assert not faults, "\n".join(faults)


def test_public_names_are_there() -> None:
    missing = [name for name in psvit_core.__all__ if not hasattr(psvit_core, name)]
    assert not missing
    assert set(psvit_core.__all__) <= set(dir(psvit_core))


def test_screens_import_no_torch() -> None:
    core = {name: (text, package) for name, text, package in sources("psvit_core/**/*.py")}
    for name, text, package in sources("app.py", "pages/*.py", "ui/**/*.py"):
        heavy = heavy_imports(imports(text, name, package=package), core)
        assert not heavy, f"{name} loads {sorted(heavy)}; models live in workers"


def test_data_loads_slow_packages_when_needed() -> None:
    slow = {"timm", "torchvision", "scipy", "mlxtend"}
    checked = list(sources("psvit_core/data/*.py"))
    assert len(checked) > 5
    for name, text, package in checked:
        found = {i.split(".")[0] for i in imports(text, name, package=package, on_import=True)}
        assert not found & slow, name


def test_pages_are_short() -> None:
    for path in sorted((ROOT / "pages").glob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines < MAX_PAGE_LINES, f"{path.name} has {lines} lines; move panels to ui/"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_import_is_light_and_silent(module: str) -> None:
    program = (
        f"import json, sys, {module}\n"
        f"assert {module}.__file__, 'a folder without __init__.py'\n"
        f"print(json.dumps(sorted({HEAVY | SCREEN!r} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"import {module} fails:\n{done.stderr}"
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1, f"import {module} prints: {done.stdout}"
    assert json.loads(done.stdout) == [], f"import {module} loads heavy packages"


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("psvit_core.records", "from psvit_core.store import Store", "above"),
        ("psvit_core.records", "def f():\n    from psvit_core import zoo", "above"),
        ("psvit_core.size", "from . import surgery", "above"),
        ("psvit_core.zoo.sdt", "from ..groups import find_groups", "above"),
        ("psvit_core.planners.prime", "import psvit_core.jobs.worker", "above"),
        ("psvit_core.metrics.sops", "import plotly.express as px", "no screen"),
        ("psvit_core.cli", "from psvit_core import load_model", "no layer"),
        ("psvit_core.novel", "", "add 'novel' to LAYERS"),
    ],
)
def test_checker_finds_faults(module: str, source: str, fault: str) -> None:
    [found] = layering_faults(source, module, package=False)
    assert fault in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("psvit_core.store", "from psvit_core.records import PrunePlan"),
        ("psvit_core.zoo.sdt", "from psvit_core.zoo.base import GroupSpec\nfrom . import base"),
        ("psvit_core.neurons", "import torch\nfrom psvit_core import fused"),
        ("psvit_core.workspace", "import psvit_core\nfrom psvit_core.jobs import client"),
    ],
)
def test_checker_accepts_the_layout(module: str, source: str) -> None:
    assert layering_faults(source, module, package=False) == []


def test_checker_follows_the_core_to_torch() -> None:
    core = {
        "psvit_core": ("", True),
        "psvit_core.a": ("from psvit_core.b import thing", False),
        "psvit_core.b": ("import torch.nn", False),
        "psvit_core.c": ("def f():\n    import torch", False),
        "psvit_core.d": ("if TYPE_CHECKING:\n    import torch\nimport timm", False),
    }
    assert heavy_imports({"psvit_core.a.thing"}, core) == {"torch"}
    assert heavy_imports({"psvit_core.c"}, core) == set()
    assert heavy_imports({"psvit_core.d"}, core) == {"timm"}
    assert heavy_imports({"ui.state", "timm"}, core) == {"timm"}
