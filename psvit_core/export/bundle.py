"""One text with everything that a network's class needs, found by following names.

Starting from how the class adds its modules and runs them, every name and every method that this
code uses is looked up in the package's own modules, until nothing is missing. Channel groups,
reading of files, counting and native kernels are never reached.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from psvit_core.errors import ModelError
from psvit_core.export.source import Imported, Source, Statement, named, source
from psvit_core.zoo.base import SpikingModel

#: Modules that define the neurons of an export.
TORCH_NEURONS = "psvit_core.export.torch_neurons"
SPIKINGJELLY_NEURONS = "psvit_core.export.spikingjelly_neurons"

_PACKAGE = "psvit_core"
_STANDALONE = "psvit_core.export.standalone"
_ALWAYS = {"__init__", "forward", "backward"}  # what torch calls
_NETWORK_CLASS = "Network"
#: Functions that every export has.
_ENTRIES = ("build", "load", "normalise", "main")


@dataclass(frozen=True)
class Member:
    """A statement, and the module whose names it uses."""

    home: Source
    node: Statement


@dataclass
class Definition:
    """A definition of an export.

    Attributes:
        name: Its name.
        home: The module whose names the bases and decorators use.
        members: Itself, or the members of a class.
        bases: Of a class.
        decorators: Of a class.
        docstring: Of a class, with its quotes.
        is_class: Whether it is one.
    """

    name: str
    home: Source
    members: dict[str, Member]
    bases: list[ast.expr] = field(default_factory=list)
    decorators: list[ast.expr] = field(default_factory=list)
    docstring: str = ""
    is_class: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether it is an assignment."""
        return not self.is_class and not any(
            isinstance(member.node, ast.FunctionDef) for member in self.members.values()
        )

    @property
    def is_record(self) -> bool:
        """Whether it is a dataclass, all of whose fields are kept."""
        return any("dataclass" in ast.unparse(d) for d in self.decorators)

    def kept(self, attributes: set[str]) -> dict[str, Member]:
        """Return the members that are used, given the names of all attributes that code reads."""
        return {
            name: member
            for name, member in self.members.items()
            if not self.is_class or self._is_kept(name, member.node, attributes)
        }

    def _is_kept(self, name: str, node: Statement, attributes: set[str]) -> bool:
        if isinstance(node, ast.AnnAssign) and node.value is None:
            return self.is_record
        return self.is_record or name in _ALWAYS or name in attributes


class Bundle:
    """Collects the definitions of a network.

    Args:
        family: The network's class.
        neurons: Module that defines the neurons.
        given: Constants that the caller writes.
    """

    def __init__(self, family: type[SpikingModel], neurons: str, given: Collection[str]) -> None:
        self.neurons = neurons
        self.given = frozenset(given)
        self.network = family.__name__
        self.attributes: set[str] = {"_build"}
        self.definitions: dict[str, Definition] = {self.network: flattened(family)}
        self._collect()

    def _collect(self) -> None:
        """Add what the definitions need, until nothing is missing."""
        standalone = source(_STANDALONE)
        for name in _ENTRIES:
            self.definitions[name] = _definition(standalone, name)
        size = -1
        while size != (size := len(self.definitions) + len(self.attributes)):
            for definition in list(self.definitions.values()):
                for home, node in self._nodes(definition):
                    if isinstance(node, ast.Attribute):
                        self.attributes.add(node.attr)
                    elif isinstance(node, ast.Name):
                        self._add(home, node.id)

    def _add(self, home: Source, name: str) -> None:
        found = self.find(home, name)
        if not isinstance(found, Source):
            return
        if name in self.definitions:
            if self.definitions[name].home is not found:
                raise ModelError(
                    f"{self.network} cannot be exported: {name} is defined by "
                    f"{self.definitions[name].home.module} and by {found.module}."
                )
            return
        self.definitions[name] = _definition(found, name)

    def find(self, home: Source, name: str) -> Source | Imported | None:
        """Return where a name of a module is defined; None if it is built in or given."""
        if name in self.given or name in (_NETWORK_CLASS, self.network):
            return None
        imported = home.imports.get(name)
        if imported is None:
            return home if name in home.definitions else None
        if imported.module.split(".")[0] != _PACKAGE:
            return imported
        if imported.module == "psvit_core.neurons":
            neurons = source(self.neurons)
            return neurons if name in neurons.definitions else source(TORCH_NEURONS)
        assert imported.name == name, f"{home.module} renames {imported.name}: exports cannot"
        return self.find(source(imported.module), name)

    def _nodes(self, definition: Definition) -> Iterator[tuple[Source, ast.AST]]:
        """Return all nodes that stay in a definition, with the module whose names they use."""
        for node in (*self.bases(definition), *definition.decorators):
            for inner in ast.walk(node):
                yield definition.home, inner
        for member in definition.kept(self.attributes).values():
            for inner in member.home.kept(member.node):
                yield member.home, inner

    def bases(self, definition: Definition) -> list[ast.expr]:
        """Return a class's bases; one without members of its own is replaced by its first base."""
        bases = []
        for base in definition.bases:
            found = self.find(definition.home, ast.unparse(base))
            if isinstance(found, Source):
                parent = _definition(found, ast.unparse(base))
                if not parent.kept(self.attributes):
                    bases += self.bases(parent)[:1]
                    continue
            bases.append(base)
        return bases

    def ordered(self) -> list[Definition]:
        """Return the definitions, each after those that it uses; the network and its uses last."""
        done: dict[str, Definition] = {}

        def visit(name: str, path: frozenset[str]) -> None:
            if name in done or name in path or name not in self.definitions:
                return
            definition = self.definitions[name]
            for home, node in self._nodes(definition):
                if isinstance(node, ast.Name) and isinstance(self.find(home, node.id), Source):
                    visit(node.id, path | {name})
            done[name] = definition

        for name in (self.network, *_ENTRIES):
            visit(name, frozenset())
        return list(done.values())

    def imports(self) -> str:
        """Return the import statements of everything that is not defined here."""
        found = {
            (node.id, imported)
            for definition in self.definitions.values()
            for home, node in self._nodes(definition)
            if isinstance(node, ast.Name)
            and isinstance(imported := self.find(home, node.id), Imported)
        }
        return import_block(found)

    def text(self) -> str:
        """Return the source of all definitions, each after those that it uses."""
        ordered = self.ordered()
        text = self._text(ordered[0])
        for before, definition in itertools.pairwise(ordered):
            constants = before.is_constant and definition.is_constant
            text += ("\n" if constants else "\n\n\n") + self._text(definition)
        return text

    def _text(self, definition: Definition) -> str:
        """Return a definition's source."""
        if not definition.is_class:
            [member] = definition.members.values()
            return self._renamed(member.home.text(member.node))
        bases = ", ".join(ast.unparse(base) for base in self.bases(definition))
        head = [f"@{ast.unparse(d)}" for d in definition.decorators]
        head.append(f"class {definition.name}({bases}):" if bases else f"class {definition.name}:")
        body = [definition.docstring] if definition.docstring else []
        previous: Statement | None = None
        for member in definition.kept(self.attributes).values():
            if body and (previous is None or isinstance(member.node, ast.FunctionDef)):
                body.append("")
            previous = member.node
            body.append(member.home.text(member.node))
        return "\n".join([*head, *(body or ["    pass"])])

    def _renamed(self, text: str) -> str:
        return text.replace(f"-> {_NETWORK_CLASS}:", f"-> {self.network}:").replace(
            f"{_NETWORK_CLASS}()", f"{self.network}()"
        )


def flattened(family: type[SpikingModel]) -> Definition:
    """Return a family's class as one definition without the base classes of the package."""
    members: dict[str, Member] = {}
    standalone = source(_STANDALONE)
    own = [c for c in family.__mro__ if issubclass(c, SpikingModel) and c is not SpikingModel]
    for cls in own:
        home = source(cls.__module__)
        for member, node in _members(home, cls.__name__):
            if member != "__init__":
                members.setdefault(member, Member(home, node))
    for member, node in _members(standalone, _NETWORK_CLASS):
        members.setdefault(member, Member(standalone, node))
    values = [n for n in members if not isinstance(members[n].node, ast.FunctionDef)]
    first = [*values, "__init__", "_build"]
    order = [*first, *(n for n in members if n not in (*first, "forward")), "forward"]
    home = source(family.__module__)
    return Definition(
        name=family.__name__,
        home=home,
        members={name: members[name] for name in order},
        bases=[ast.parse("nn.Module", mode="eval").body],
        docstring=_first_paragraph(_class(home, family.__name__)),
        is_class=True,
    )


def _definition(home: Source, name: str) -> Definition:
    node = home.definitions[name]
    if not isinstance(node, ast.ClassDef):
        return Definition(name, home, {name: Member(home, node)})
    has_text = ast.get_docstring(node) is not None
    return Definition(
        name=name,
        home=home,
        members={member: Member(home, inner) for member, inner in _members(home, name)},
        bases=node.bases,
        decorators=node.decorator_list,
        docstring=_lines(home, node.body[0]) if has_text else "",
        is_class=True,
    )


def _members(home: Source, name: str) -> Iterator[tuple[str, Statement]]:
    yield from named(_class(home, name).body)


def _class(home: Source, name: str) -> ast.ClassDef:
    node = home.definitions[name]
    assert isinstance(node, ast.ClassDef)
    return node


def _lines(home: Source, node: ast.stmt) -> str:
    return "\n".join(home.lines[node.lineno - 1 : node.end_lineno])


def _first_paragraph(node: ast.ClassDef) -> str:
    text = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", "\n    ")
    return f'    """{text}"""'


def import_block(found: Collection[tuple[str, Imported]]) -> str:
    """Return import statements, sorted: the standard library, then other packages.

    Args:
        found: Names and what they stand for.
    """
    plain: dict[str, set[str]] = {}  # module -> names that are imported under their own name
    lines: dict[bool, list[tuple[bool, str, str]]] = {True: [], False: []}
    for alias, imported in found:
        if imported.name == alias:
            plain.setdefault(imported.module, set()).add(alias)
        else:
            lines[_is_standard(imported.module)].append(
                (bool(imported.name), imported.module, imported.line(alias))
            )
    for module, names in plain.items():
        text = f"from {module} import {', '.join(sorted(names))}"
        lines[_is_standard(module)].append((True, module, text))
    sections = ["from __future__ import annotations"]
    sections += ["\n".join(line for *_, line in sorted(lines[kind])) for kind in (True, False)]
    return "\n\n".join(filter(None, sections))


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names
