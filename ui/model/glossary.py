"""The glossary on screen; the documentation, ``docs/definitions.md``, is its only source."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "docs" / "definitions.md"  # an installed app has it, too
_ENTRY = re.compile(r"^\*\*(?P<term>[^*]+)\*\*\n:(?P<text>   .*\n(?:(?:    .*)?\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Term:
    """One term with its definition."""

    name: str
    text: str  # markdown


def read_glossary(text: str) -> list[Term]:
    """Return the terms of a page of definitions, in its order.

    Args:
        text: Markdown with a definition list.
    """
    return [
        Term(found["term"], textwrap.dedent(f" {found['text']}").strip())
        for found in _ENTRY.finditer(text if text.endswith("\n") else f"{text}\n")
    ]


def matching(terms: Sequence[Term], words: str) -> list[Term]:
    """Return the terms that contain a text, those with it in their name first."""
    wanted = words.strip().lower()
    named = [term for term in terms if wanted in term.name.lower()]
    return named + [t for t in terms if t not in named and wanted in t.text.lower()]
