"""YAML files of users: plain data with lines, and what is refused before it is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psvit_core.documents import MAX_BYTES, MAX_DEPTH, Document, read_yaml
from psvit_core.errors import ConfigError


def read(tmp_path: Path, text: str) -> Document:
    path = tmp_path / "file.yaml"
    path.write_bytes(text.encode())
    return read_yaml(path)


def test_values_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = """
numbers: [1, -2, 1e-3, .5, 2., 1_000]
words: [off, yes, "true", true, null, ~, 2001-01-01, 0x1F]
empty:
text: >
  two
  lines
1: {'a': "1"}
"""
    assert read(tmp_path, text).data == {
        "numbers": [1, -2, 0.001, 0.5, 2.0, "1_000"],
        "words": ["off", "yes", "true", True, None, None, "2001-01-01", "0x1F"],
        "empty": None,
        "text": "two lines\n",
        "1": {"a": "1"},
    }


def test_json_is_read(tmp_path: Path) -> None:
    data = {"a": [1, 2.5, {"b": None, "c": True}], "d": "ü\n"}
    assert read(tmp_path, json.dumps(data, indent=1)).data == data


def test_lines_are_those_of_keys_and_elements(tmp_path: Path) -> None:
    found = read(tmp_path, "a: 1\nb:\n  - x\n  - c: 2\n    d: 3\n")
    assert found.line_of(("b", 1, "d")) == 5
    assert found.line_of(("b", 0)) == 3
    assert found.line_of(("b", "none")) == 2
    assert found.line_of(("none",)) == 1
    assert str(found.error(("b", 0), "Wrong.")).endswith("file.yaml, line 3: b.0: Wrong.")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 4, "b.c is given a second time, first in line 3"),
        ("a: &x [1]\nb: 2\n", 1, "anchor or alias"),
        ("a: 1\nb: *x\n", 2, "anchor or alias"),
        ("a: !!python/object/apply:os.system [x]\n", 1, "a tag"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a:\n\tb: 1\n", 2, "not YAML"),
        ("a: [1\nb: 2\n", 2, "not YAML"),
        ("a: 1\nb: \x01\n", 2, "a character that YAML does not allow"),
        ("[1, 2]: 3\n", 1, "as a key"),
        ("? {a: 1}\n: 3\n", 1, "as a key"),
    ],
)
def test_refusals_name_the_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"file\.yaml, line {line}: .*{message}") as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 60_000,
        "- " * 30_000,
        "{a: " * 15_000,
        "a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        "a" * (MAX_BYTES + 1),
        "&a " * 20_000,
        "{" * 60_000,
        "? " * 30_000,
    ],
    ids=["lists", "dashes", "mappings", "aliases", "large", "anchors", "keys", "questions"],
)
def test_hostile_files_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        read(tmp_path, text)


def test_the_allowed_depth_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "[" * MAX_DEPTH + "]" * MAX_DEPTH).data == [[[[[[[[]]]]]]]]
    assert read(tmp_path, "a: " + "9" * 60_000).data["a"] == "9" * 60_000  # never converted


def test_unreadable_files_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="directory"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xfc\n")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
