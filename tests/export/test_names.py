"""Names of Python files that are made from names of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from psvit_core.export import check_export_path
from psvit_core.files import module_name

NAMES = ("sdt_v1_digits-saves71", "3", "class", "torch", "a.b-c", "-", "π", "json")


@pytest.mark.parametrize("stem", NAMES)
def test_the_suggested_name_is_accepted(stem: str, tmp_path: Path) -> None:
    file = tmp_path / f"{stem}.safetensors"
    file.write_bytes(b"")
    check_export_path(tmp_path / f"{module_name(file.name)}.py", file)


def test_the_suggested_name_shows_the_file() -> None:
    assert module_name("sdt_v1_digits-saves71.safetensors") == "sdt_v1_digits_saves71"
