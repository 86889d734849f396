"""The container file, read as text: it is not built here."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from psvit_core.cli.arguments import make_parser
from tests.project.test_packaging import SOURCES

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """(keyword, arguments) of each instruction, without comments and line ends."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(keyword, " ".join(rest.split())) for keyword, rest in split]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(i for i, (keyword, _) in enumerate(found) if keyword == "FROM")
    return found[start:]


def value(keyword: str) -> str:
    (found,) = [rest for name, rest in last_stage() if name == keyword]
    return found


def copied() -> list[str]:
    rests = [rest for keyword, rest in instructions() if keyword == "COPY"]
    return [path for rest in rests if "--from" not in rest for path in rest.split()[:-1]]


def ignore_lines() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_what_is_copied_exists_and_makes_the_wheel() -> None:
    assert [path for path in copied() if not (ROOT / path).exists()] == []
    assert sorted(copied()) == sorted(SOURCES)  # the packaging's tests build a wheel of these


def test_only_what_is_copied_reaches_the_build() -> None:
    lines = ignore_lines()
    assert lines[0] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())
    assert ".streamlit/secrets.toml" in lines


def test_it_does_not_run_as_root() -> None:
    keywords = [keyword for keyword, _ in last_stage()]
    assert value("USER") == "psvit"
    assert keywords.index("USER") < keywords.index("ENTRYPOINT")
    made = " ".join(rest for keyword, rest in last_stage() if keyword == "RUN")
    assert re.search(r"useradd .*--uid [1-9]\d* psvit", made)


def test_health_is_asked_for_where_no_token_is_needed() -> None:
    check = value("HEALTHCHECK")
    command = json.loads(check[check.index("CMD") + 4 :])
    assert command[:2] == ["python", "-c"]
    ast.parse(command[2])
    port = value("EXPOSE")
    assert f"http://127.0.0.1:{port}/_stcore/health" in command[2]


def test_the_store_is_in_the_volume_and_no_token_in_the_image() -> None:
    settings = dict(part.split("=", 1) for part in value("ENV").split())
    assert settings["PSVIT_TOKEN"] == "auto"  # made at each start
    for name in ("PSVIT_CACHE", "PSVIT_DATA"):
        assert Path(value("VOLUME")) in Path(settings[name]).parents
    assert not any(keyword == "ARG" and "TOKEN" in rest for keyword, rest in instructions())


def test_its_command_is_one_of_the_program() -> None:
    assert json.loads(value("ENTRYPOINT")) == ["psvit"]
    options = make_parser().parse_args(json.loads(value("CMD")))
    assert options.streamlit == ["--server.address", "0.0.0.0", "--server.headless", "true"]
