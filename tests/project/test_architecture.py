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
from tests.patience import JOB

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "psvit_core"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "callbacks"),
    ("durable", "files", "image_folders", "documents", "stats", "kernels", "neurons", "runtime"),
    ("records",),
    ("plan", "data", "quantize", "zoo"),
    ("groups", "selection", "storage"),
    ("importance", "metrics", "pareto", "picture", "surgery", "estimates"),
    ("incremental", "evaluate", "planners", "custom", "export"),
    ("recover", "sensitivity", "finetune", "cluster"),
    ("tasks",),
    ("report",),
    ("batch",),
    ("jobs",),
    ("workspace", "machine_jobs", "cli", "__main__"),
)
ORDER = [unit for layer in LAYERS for unit in layer]
SCREEN = {"streamlit", "plotly"}
HEAVY = {"torch", "torchvision", "spikingjelly", "timm"}
TORCH_FREE = (
    "psvit_core",
    "psvit_core.callbacks",
    "psvit_core.cluster.settings",
    "psvit_core.durable",
    "psvit_core.errors",
    "psvit_core.files",
    "psvit_core.image_folders",
    "psvit_core.stats",
    "psvit_core.records",
    "psvit_core.metrics.devices",
    "psvit_core.plan.build",
    "psvit_core.plan.link",
    "psvit_core.plan.size",
    "psvit_core.storage.store",
    "psvit_core.storage.predictions",
    "psvit_core.storage.shipped",
    "psvit_core.planners",
    "psvit_core.workspace",
    "psvit_core.zoo.cards",
    "psvit_core.zoo.file_cards",
    "psvit_core.zoo.file_kind",
    "psvit_core.zoo.header",
    "psvit_core.zoo.sizing",
    "psvit_core.pareto",
    "psvit_core.picture",
    "psvit_core.tasks.evaluate",
    "psvit_core.tasks.finetune",
    "psvit_core.tasks.fits",
    "psvit_core.tasks.inspect",
    "psvit_core.tasks.latency",
    "psvit_core.tasks.pareto",
    "psvit_core.tasks.plan",
    "psvit_core.tasks.prune",
    "psvit_core.tasks.recover",
    "psvit_core.batch",
    "psvit_core.tasks.session",
    "psvit_core.tasks.sweep",
    "psvit_core.report",
    "psvit_core.jobs.client",
)
MAX_PAGE_LINES = 120
#: Folders of ``ui``, lowest first: each imports itself and the folders before it.
UI_ORDER = ("model", "charts", "components", "shell", "panels")
#: The parts of Streamlit that ``ui.model`` uses: state, caches and page switches. The toast reports
#: a draft that another tab has changed, wherever that is noticed.
MODEL_STREAMLIT = {"session_state", "cache_resource", "switch_page", "toast"}


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


def ui_faults(source: str, module: str, *, package: bool) -> list[str]:
    """Return the imports of one module of ``ui`` that break its order."""
    folder = module.split(".")[1]
    if folder not in UI_ORDER:
        return [f"{module}: add {folder!r} to UI_ORDER"]
    allowed = UI_ORDER[: UI_ORDER.index(folder) + 1]
    faults = []
    for name in sorted(imports(source, module, package=package)):
        parts = name.split(".")
        if parts[0] == "pages" or (parts[0] == "ui" and parts[1:2] and parts[1] not in allowed):
            faults.append(f"{module} imports {name}, which is above it")
        if parts[0] == "streamlit" and folder == "charts":
            faults.append(f"{module} imports {name}: figures know no screen")
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


@pytest.mark.slow
def test_screens_import_no_torch() -> None:
    core = {name: (text, package) for name, text, package in sources("psvit_core/**/*.py")}
    for name, text, package in sources("app.py", "pages/*.py", "ui/**/*.py"):
        heavy = heavy_imports(imports(text, name, package=package), core)
        assert not heavy, f"{name} loads {sorted(heavy)}; models live in workers"


def test_ui_imports_only_what_is_below() -> None:
    checked = [s for s in sources("ui/**/*.py") if s[0] != "ui"]
    assert {name.split(".")[1] for name, _, _ in checked} == set(UI_ORDER)
    faults = [f for name, text, package in checked for f in ui_faults(text, name, package=package)]
    assert not faults, "\n".join(faults)


def test_core_knows_no_screens() -> None:
    for name, text, package in sources("psvit_core/**/*.py"):
        top = {i.split(".")[0] for i in imports(text, name, package=package)}
        assert not top & {"ui", "pages", "app"}, name


def test_model_draws_nothing() -> None:
    used = {
        node.attr
        for _, text, _ in sources("ui/model/*.py")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "st"
    }
    assert used == MODEL_STREAMLIT


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
        timeout=JOB,
        check=False,
    )
    assert done.returncode == 0, f"import {module} fails:\n{done.stderr}"
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1, f"import {module} prints: {done.stdout}"
    assert json.loads(done.stdout) == [], f"import {module} loads heavy packages"


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("psvit_core.records", "from psvit_core.storage.store import Store", "above"),
        ("psvit_core.records", "def f():\n    from psvit_core import zoo", "above"),
        ("psvit_core.plan.size", "from .. import surgery", "above"),
        ("psvit_core.zoo.sdt", "from ..groups import find_groups", "above"),
        ("psvit_core.planners.prime", "import psvit_core.jobs.worker", "above"),
        ("psvit_core.metrics.sops", "import plotly.express as px", "no screen"),
        ("psvit_core.cli", "from psvit_core import load_model", "no layer"),
        ("psvit_core.novel", "", "add 'novel' to LAYERS"),
        ("ui.model.fronts", "from ui.charts.palette import LIGHT", "above"),
        ("ui.charts.front", "from ui.panels import plan", "above"),
        ("ui.charts.front", "import streamlit as st", "no screen"),
        ("ui.components.equalizer.edits", "from ui.shell import links", "above"),
        ("ui.shell.header", "def f():\n    from ui.panels.job import job_panel", "above"),
        ("ui.panels.tune.page", "import pages.tune", "above"),
        ("ui.widgets.slider", "", "UI_ORDER"),
    ],
)
def test_checker_finds_faults(module: str, source: str, fault: str) -> None:
    faults = ui_faults if module.startswith("ui.") else layering_faults
    [found] = faults(source, module, package=False)
    assert fault in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("psvit_core.storage.store", "from psvit_core.records import PrunePlan"),
        ("psvit_core.zoo.sdt", "from psvit_core.zoo.base import GroupSpec\nfrom . import base"),
        ("psvit_core.neurons", "import torch\nfrom psvit_core.kernels import lif"),
        ("psvit_core.workspace", "import psvit_core\nfrom psvit_core.jobs import client"),
    ],
)
def test_checker_accepts_the_layout(module: str, source: str) -> None:
    assert layering_faults(source, module, package=False) == []


def test_checker_accepts_the_order_of_ui() -> None:
    source = "import streamlit as st\nfrom ui.model import state\nfrom ui.charts import front"
    assert ui_faults(source, "ui.panels.tune.page", package=False) == []
    assert ui_faults("from ui.model import state", "ui.model.sweeps", package=False) == []


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
    assert heavy_imports({"ui.model.state", "timm"}, core) == {"timm"}
