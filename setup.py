"""Builds the wheel: the package, and the app in one private folder of it.

Everything else is declared in ``pyproject.toml``. The app (``app.py``, ``pages``, ``ui`` and its
Streamlit settings) lies next to ``psvit_core`` in the repository. The wheel has it in
``psvit_core/_app``, so that no top-level module called ``ui`` or ``pages`` gets installed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
APP = ("app.py", "pages", "ui", ".streamlit", "docs/definitions.md")  # the glossary is read from it
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.pyc", "secrets.toml")


class BuildWithApp(build_py):  # type: ignore[misc]  # setuptools ships no types
    """Copies the package, then the app into ``psvit_core/_app``."""

    def run(self) -> None:
        """Build afresh: files of an earlier build must not reach the wheel."""
        if self.editable_mode:  # the app runs from the checkout
            super().run()
            return
        target = Path(self.build_lib) / "psvit_core"
        shutil.rmtree(target, ignore_errors=True)
        super().run()
        for name in APP:
            source, copy = ROOT / name, target / "_app" / name
            if source.is_dir():
                shutil.copytree(source, copy, ignore=LEFT_BEHIND)
            else:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)


setup(cmdclass={"build_py": BuildWithApp})
