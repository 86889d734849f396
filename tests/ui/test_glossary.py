"""The glossary on screen is the page of definitions."""

from __future__ import annotations

from pathlib import Path

from ui.model.glossary import SOURCE, matching, read_glossary

TERMS = read_glossary(SOURCE.read_text(encoding="utf-8"))


def test_every_definition_is_found() -> None:
    text = (Path(__file__).parents[2] / "docs" / "definitions.md").read_text(encoding="utf-8")
    bold = [line.strip("*") for line in text.splitlines() if line.startswith("**")]
    assert [term.name for term in TERMS] == bold
    assert {"Channel group", "Prune ratio", "SOPs", "Drop", "Front, knee"} <= set(bold)
    assert all(term.text and "**" not in term.text for term in TERMS)


def test_formulas_stay_code_blocks() -> None:
    (drop,) = [term for term in TERMS if term.name == "Drop"]
    assert "\n\n    drop = 100 × (accuracy(unpruned) − accuracy(pruned))" in drop.text
    assert drop.text.startswith("Accuracy lost on the same images")


def test_terms_are_found_by_name_first() -> None:
    found = [term.name for term in matching(TERMS, " sops ")]
    assert found[0] == "SOPs" and "Energy" in found
    assert matching(TERMS, "no such word anywhere") == []
    assert matching(TERMS, "") == TERMS
