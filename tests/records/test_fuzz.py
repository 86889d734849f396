"""Random changes of plans, tables, links and headers are read or refused, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psvit_core.errors import CheckpointError, InvalidPlanError, RecordError
from psvit_core.plan.link import read_share
from psvit_core.records import PrunePlan, SensitivityTable
from psvit_core.zoo.file_kind import checkpoint_kind
from psvit_core.zoo.header import read_header
from tests.made import hand_made

FILE = (Path(__file__).parents[1] / "zoo" / "files" / "pruned_format_2.safetensors").read_bytes()
START = 8 + int.from_bytes(FILE[:8], "little")  # of the tensors: the header lies before them
PLAN = PrunePlan(model="toy", weights_hash="ab" * 16, criterion="l2", kept={"block.0": (0, 2, 3)})
DOCUMENTS: dict[type[Any], dict[str, Any]] = {
    PrunePlan: PLAN.to_dict(),
    SensitivityTable: hand_made({"a": 1.0}).to_dict(),
}
#: Of each test, the same ones in every run, as tests/conftest.py says. ``make hostile`` has more.
EXAMPLES = int(os.environ.get("PSVIT_FUZZ", "30"))
PLACES = st.floats(0, 1, exclude_max=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
PATCHES = st.lists(st.tuples(PLACES, st.binary(max_size=4)), min_size=1, max_size=4)


def leaves(data: Any) -> list[tuple[Any, Any]]:
    """Return every value inside a document, as the container and the key in it."""
    keys = list(data) if isinstance(data, dict) else range(len(data))
    found = [(data, key) for key in keys]
    inner = [data[key] for key in keys if isinstance(data[key], dict | list)]
    return found + [leaf for value in inner for leaf in leaves(value)]


def patched(content: bytes, patches: list[tuple[float, bytes]], until: int) -> bytes:
    """Return content with some bytes before a place replaced; an empty patch cuts it there."""
    for place, new in patches:
        at = int(place * until)
        content = content[:at] + new + content[at + len(new) :] if new else content[:at]
    return content


@pytest.mark.parametrize("record", list(DOCUMENTS))
@settings(max_examples=EXAMPLES)
@given(place=PLACES, value=JSON)
def test_other_values_in_a_document(record: type[Any], place: float, value: Any) -> None:
    data = json.loads(json.dumps(DOCUMENTS[record]))
    found = leaves(data)
    inside, key = found[int(place * len(found))]
    inside[key] = value
    try:
        read = record.from_dict(data)
    except RecordError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    else:
        assert isinstance(read, record)


@pytest.mark.parametrize("record", list(DOCUMENTS))
@settings(max_examples=EXAMPLES)
@given(patches=PATCHES)
def test_other_bytes_in_a_document(
    record: type[Any], patches: list[tuple[float, bytes]], tmp_path_factory: Any
) -> None:
    content = json.dumps(DOCUMENTS[record]).encode()
    file = tmp_path_factory.getbasetemp() / f"fuzzed-{record.__name__}.json"
    file.write_bytes(patched(content, patches, len(content)))
    try:
        assert isinstance(record.load(file), record)
    except RecordError as error:
        assert len(str(error)) < 2000


@settings(max_examples=EXAMPLES)
@given(patches=PATCHES)
def test_other_bytes_in_the_header_of_a_pruned_file(
    patches: list[tuple[float, bytes]], tmp_path_factory: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    file.write_bytes(patched(FILE, patches, START))
    try:
        assert read_header(file)["arguments"]
    except CheckpointError as error:
        assert len(str(error)) < 2000


@settings(max_examples=EXAMPLES)
@given(
    content=st.binary(max_size=300),
    head=st.sampled_from([b"", b"PK\3\4", b"\x80\2", b"{", FILE[:300]]),
)
def test_files_of_random_bytes(content: bytes, head: bytes, tmp_path_factory: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.pth"
    file.write_bytes(head + content)
    try:
        assert checkpoint_kind(file)
    except CheckpointError as error:
        assert len(str(error)) < 2000


@settings(max_examples=EXAMPLES)
@given(text=st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{1,200}", fullmatch=True))
def test_links_of_random_text(text: str) -> None:
    with pytest.raises(InvalidPlanError):
        read_share(text)
