"""The source text of the package's definitions, without what only the package needs.

Texts are cut from the files, so comments and layout stay. Left out are checks that raise an error
of the package (they passed when the model was built), recording for graphs, and notes to linters.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ERRORS = "psvit_core.errors"
_RECORDING = {"has_torch_function", "has_torch_function_unary"}
_RAISES = re.compile(r'\n\n +Raises:\n.*?"""', re.DOTALL)  # the last section of a docstring
_LINTERS = re.compile(r"\s+# (?:type: ignore|noqa|pragma)\b.*$")

#: What can stand in a class or at the top of a module, and has a name.
Statement = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Imported:
    """What an import binds to a name: a module, or a name in it."""

    module: str
    name: str = ""

    def line(self, alias: str) -> str:
        """Return the import statement."""
        renamed = f" as {alias}"
        if not self.name:
            return f"import {self.module}{renamed if alias != self.module else ''}"
        return f"from {self.module} import {self.name}{renamed if alias != self.name else ''}"


class Source:
    """A module's parsed source.

    Args:
        module: Dotted name.

    Attributes:
        definitions: Its named statements.
        imports: Imported names.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).read_text(encoding="utf-8")
        self.lines = text.splitlines()
        tree = ast.parse(text)
        self.definitions = dict(named(tree.body))
        self.imports = {
            alias.asname or alias.name: found
            for node in tree.body
            for alias, found in _imported(node)
        }

    def text(self, node: Statement) -> str:
        """Return a statement's source with the comments directly above it."""
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        while start > 1 and self.lines[start - 2].lstrip().startswith("#"):
            start -= 1
        assert node.end_lineno is not None
        gone = {
            number
            for left_out in self.left_out(node)
            for number in range(left_out.lineno, (left_out.end_lineno or 0) + 1)
        }
        lines = [
            _LINTERS.sub("", self.lines[number - 1])
            for number in range(start, node.end_lineno + 1)
            if number not in gone
        ]
        text = "\n".join(lines)
        return _RAISES.sub('"""', text, count=1) if self._checks_nothing(node) else text

    def _checks_nothing(self, node: Statement) -> bool:
        """Return whether checks whose errors the docstring names are left out."""
        return any(isinstance(n, ast.If) and _raises(n) for n in self.left_out(node))

    def left_out(self, node: ast.AST) -> list[ast.stmt]:
        """Return the statements inside a definition that are left out."""
        if not isinstance(node, ast.FunctionDef):
            return []
        found = [n for n in ast.walk(node) if isinstance(n, ast.If) and self._is_left_out(n)]
        skipped = {id(inner) for n in found for inner in ast.walk(n)}
        loaded = {
            n.id
            for n in ast.walk(node)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and id(n) not in skipped
        }
        unread = [n for n in node.body if _is_unread(n, loaded)]
        return [*found, *unread]

    def _is_left_out(self, node: ast.If) -> bool:
        if node.orelse or len(node.body) != 1:
            return False
        [body] = node.body
        if isinstance(body, ast.Return):
            return isinstance(node.test, ast.Call) and _name(node.test.func) in _RECORDING
        error = body.exc if _raises(node) else None  # type: ignore[attr-defined]
        found = self.imports.get(_name(error.func)) if isinstance(error, ast.Call) else None
        return found is not None and found.module == _ERRORS

    def kept(self, node: ast.AST) -> Iterator[ast.AST]:
        """Return all nodes of a statement but those that are left out, in source order."""
        gone = {id(n) for n in self.left_out(node)}
        yield from _walk(node, gone)


@cache
def source(module: str) -> Source:
    """Return a module's source, read once."""
    return Source(module)


def named(statements: list[ast.stmt]) -> Iterator[tuple[str, Statement]]:
    """Return the statements that define one name, with it."""
    for node in statements:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node
        elif (
            isinstance(node, ast.Assign)
            and len(node.targets) == 1
            and isinstance(node.targets[0], ast.Name)
        ):
            yield node.targets[0].id, node


def _walk(node: ast.AST, gone: set[int]) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if id(child) not in gone:
            yield from _walk(child, gone)


def _imported(node: ast.stmt) -> Iterator[tuple[ast.alias, Imported]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias, Imported(alias.name)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            yield alias, Imported(node.module, alias.name)


def _is_unread(node: ast.stmt, loaded: set[str]) -> bool:
    """Return whether a statement only sets a variable that nothing reads."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return False
    name = _name(node.targets[0])
    return bool(name) and name not in loaded


def _raises(node: ast.If) -> bool:
    return isinstance(node.body[0], ast.Raise)


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""
