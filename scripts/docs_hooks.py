"""Hooks of the documentation site: pages written while it is built, and a check of the result.

The command line reference is generated from the parser, so that it cannot disagree with it.
``SECURITY.md``, ``CONTRIBUTING.md`` and ``CHANGELOG.md`` become pages of the site.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Tags that make a browser load something when a page is opened.
_LOADING = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//")
_WIDTH, _USAGE = 96, "usage: "
_COPIED = {
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}

_INTRODUCTION = """\
# Command line

After `pip install .` the program is called `psvit`. In a checkout, `python -m psvit_core` is the
same. This page is generated from the parser: `psvit COMMAND --help` prints the same text.

A sweep, two plans, a pruned file and a fine-tuned one:

```sh
psvit sweep    sdt_v1_digits --data digits --ratios 0.25,0.5 --out sweep.json
psvit plan     sdt_v1_digits --data digits --sweep sweep.json --memory-saving 0.224 --out plan.json
psvit prune    sdt_v1_digits --plan plan.json --data digits --out pruned.safetensors
psvit plan     --sweep sweep.json --policy uniform --memory-saving 0.4 --out deep.json
psvit finetune sdt_v1_digits --plan deep.json --data digits --epochs 1 --out tuned.safetensors
psvit evaluate tuned.safetensors --data digits --split test
```

- Every command but `app` accepts `--json`: it prints one JSON object on stdout and nothing else.
  Progress goes to stderr.
- Exit status: 0 done, 1 failed while running, 2 bad input (one line on stderr says what to do),
  3 done, but a target was missed on the test split ([`run`](batch.md)), 130 cancelled.
- An interrupted `run`, `sweep`, `pareto`, `finetune` or `train` continues where it stopped when you
  start it again.
- `plan` without MODEL plans from the sensitivity table alone. Its result is labelled predicted.
- A pruned file is a model: you can evaluate, sweep and prune it again.

"""


def command_reference() -> str:
    """Return the command line reference as Markdown, one section per command."""
    from psvit_core.cli.arguments import make_parser

    parser = make_parser()
    subcommands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    sections = [_section(name, command) for name, command in subcommands.choices.items()]
    return _INTRODUCTION + "\n".join(sections)


def _section(name: str, command: argparse.ArgumentParser) -> str:
    command.prog = f"psvit {name}"
    command.formatter_class = partial(argparse.HelpFormatter, width=_WIDTH)
    usage = command.format_usage().removeprefix(_USAGE).replace(f"\n{' ' * len(_USAGE)}", "\n")
    lines = [f"## {name}", "", f"{_sentence(command.description or '')}", ""]
    lines += ["```text", usage.strip(), "```", "", *_arguments(command)]
    if command.epilog:
        lines += ["", command.epilog]
    return "\n".join([*lines, ""])


def _arguments(command: argparse.ArgumentParser) -> Iterator[str]:
    actions = [a for a in command._actions if not isinstance(a, argparse._HelpAction)]
    actions.sort(key=lambda action: bool(action.option_strings))
    yield from ("| argument | meaning |", "|---|---|")
    for action in actions:
        meaning = command._get_formatter()._expand_help(action) if action.help else ""
        notes = ["required"] * bool(action.required and action.option_strings)
        notes += [f"one of {', '.join(map(str, action.choices))}"] if action.choices else []
        cell = "; ".join([*[meaning] * bool(meaning), *notes]).replace("|", "\\|")
        yield f"| `{_spelling(action)}` | {cell} |"


def _spelling(action: argparse.Action) -> str:
    """Return an argument as it is typed."""
    value = action.metavar or action.dest.upper()
    name = value if isinstance(value, str) else " ".join(value)
    if not action.option_strings:
        return name
    options = ", ".join(action.option_strings)
    return options if action.nargs == 0 else f"{options} {name}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


# ---- called by mkdocs ----------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in ``docs``."""
    from mkdocs.structure.files import File

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    pages = {
        name: (ROOT / source).read_text("utf-8").replace("](docs/", "](")
        for name, source in _COPIED.items()
    }
    pages["commands.md"] = command_reference()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_post_build(config: Any) -> None:
    """Fail if a page loads anything from another host."""
    from mkdocs.exceptions import PluginError

    for page in sorted(Path(config["site_dir"]).rglob("*.html")):
        if found := _LOADING.search(page.read_text("utf-8")):
            raise PluginError(f"{page} loads from another host: {found[0]}")
