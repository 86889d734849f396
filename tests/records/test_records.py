"""Records: JSON round trips, rejection of invalid documents, and the rounding rule."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psvit_core import records
from psvit_core.errors import InvalidPlanError, InvalidRatioError, OutputError, RecordError
from psvit_core.records import (
    POLICIES,
    RECOVERIES,
    SCOPES,
    ChannelGroup,
    Interval,
    Measurement,
    ModelSummary,
    ParetoSettings,
    PrunePlan,
    Record,
    SensitivityTable,
    check_kept,
    check_ratio,
    n_pruned,
)

RECORDS: list[type[Record]] = sorted(
    (
        r
        for r in vars(records).values()
        if isinstance(r, type) and issubclass(r, Record) and r is not Record
    ),
    key=lambda r: r.__name__,
)
DOCUMENTS = [r for r in RECORDS if r.document]


FRACTIONS = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=2).map(tuple)


def some_of(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), min_size=1, max_size=2).map(tuple)


#: Fields of records that validate their values.
VALID: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    ParetoSettings: {
        "policies": some_of(POLICIES),
        "scopes": some_of(SCOPES),
        "recoveries": some_of(RECOVERIES),
        "savings": FRACTIONS,
        "max_drops": FRACTIONS,
        "round_to": st.integers(1, 64),
    },
    Measurement: {"unrecovered": st.none()},  # a measurement itself
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated field type of a record."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([st.none() if a is type(None) else values(a) for a in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values(arguments[1]), max_size=2)
    if isinstance(hint, type) and issubclass(hint, Record):
        return instances(hint)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=5),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        Any: st.one_of(st.booleans(), st.integers(), st.text(max_size=5), st.just([1, 2])),
    }
    return simple[hint]


def instances(record: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(record)
    own = VALID.get(record, {})
    names = [f.name for f in dataclasses.fields(record)]
    return st.builds(record, **{n: own[n] if n in own else values(hints[n]) for n in names})


def group(
    n_units: int = 12, heads: int | None = None, group_id: str = "block.0.qk"
) -> ChannelGroup:
    return ChannelGroup(
        group_id=group_id,
        kind="qk",
        n_units=n_units,
        heads=heads,
        writers=(("block.0.q.weight", 0),),
        readers=(("block.0.proj.weight", 1),),
        block="Block 1",
        title="attention q, k",
    )


@pytest.mark.parametrize(
    ("block", "group_id", "place"),
    [
        ("Stage 2", "stage1.stream", "Stage 1"),
        ("Stage 2, layer 2", "layers.1.2.hidden", "Stage 1, layer 2"),
        ("Stage 1", "stage1.stream", "Stage 1"),
        ("Block 5", "block.4.mlp.hidden", "Block 4"),
        ("Block 3.1", "block3.0.attn.qk", "Block 3.0"),
        ("Block 2.2", "stage2.1.mlp.hidden", "Block 2.1"),
        ("Block 4", "block.4.mlp.hidden", "Block 4"),  # already that of the id
        ("Stage 1", "stage1.stream", "Stage 1"),
        ("All blocks", "stream", "All blocks"),
        ("Block 7", "layers.one", "Block 7"),
    ],
)
def test_blocks_are_shown_with_the_number_of_the_id(block: str, group_id: str, place: str) -> None:
    found = dataclasses.replace(group(group_id=group_id), block=block)
    assert found.place == place
    assert found.label == f"{place} · attention q, k"
    assert found.to_dict()["block"] == block  # stored results stay what they are


@pytest.fixture
def plan() -> PrunePlan:
    return PrunePlan(
        model="toy", weights_hash="ab" * 16, criterion="l2", kept={"block.0.qk": (0, 2, 3)}
    )


def test_all_documents_are_known() -> None:
    assert {Measurement, ModelSummary, PrunePlan, SensitivityTable} <= set(DOCUMENTS)
    assert len({r.document for r in DOCUMENTS}) == len(DOCUMENTS)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
@given(data=st.data())
def test_round_trip_through_json(record: type[Any], data: st.DataObject) -> None:
    before = data.draw(instances(record))
    text = json.dumps(before.to_dict())
    after = record.from_dict(json.loads(text))
    assert after == before
    assert type(after) is record
    assert json.dumps(after.to_dict()) == text


@pytest.mark.parametrize("record", DOCUMENTS, ids=lambda r: r.__name__)
@given(data=st.data())
def test_damaged_documents_are_rejected(record: type[Any], data: st.DataObject) -> None:
    good = json.loads(json.dumps(data.draw(instances(record)).to_dict()))
    assert good["document"] == record.document
    required = [f.name for f in dataclasses.fields(record) if is_required(f)]
    for damage in damages(good, required):
        with pytest.raises(RecordError):
            record.from_dict(damage)


def is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def damages(good: dict[str, Any], required: list[str]) -> Iterator[dict[str, Any]]:
    yield {**good, "a_field_of_tomorrow": 1}
    yield {**good, "document": "another"}
    yield {**good, "version": good["version"] + 1}
    yield {**good, "version": None}
    yield {k: v for k, v in good.items() if k != "document"}
    yield {k: v for k, v in good.items() if k != "version"}
    for name in required:
        yield {k: v for k, v in good.items() if k != name}
    for name in set(good) - {"document", "version"}:
        yield {**good, name: ["no", {"such": "value"}, 0]}


@pytest.mark.parametrize("document", [None, 3, "plan", [], [{"document": "prune_plan"}], {}, True])
@pytest.mark.parametrize("record", DOCUMENTS, ids=lambda r: r.__name__)
def test_other_documents_are_rejected(record: type[Any], document: object) -> None:
    with pytest.raises(RecordError):
        record.from_dict(document)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kept", {"block.0.qk": 3}),
        ("kept", {"block.0.qk": "012"}),
        ("kept", {"block.0.qk": [0, 1.5]}),
        ("kept", {"block.0.qk": [0, None]}),
        ("kept", {"block.0.qk": [False, True]}),
        ("kept", ["block.0.qk"]),
        ("kept", None),
        ("model", None),
        ("model", 7),
        ("criterion", ["l2"]),
    ],
)
def test_wrong_field_types_are_rejected(plan: PrunePlan, field: str, value: object) -> None:
    with pytest.raises(RecordError):
        PrunePlan.from_dict({**plan.to_dict(), field: value})


def test_documents_do_not_read_each_other(plan: PrunePlan) -> None:
    with pytest.raises(RecordError, match=r"'measurement'.*'prune_plan'"):
        Measurement.from_dict(plan.to_dict())


def test_whole_numbers_read_as_floats() -> None:
    interval = Interval.from_dict({"value": 1, "low": 0, "high": 1})
    assert [type(v) for v in (interval.value, interval.low, interval.high)] == [float] * 3


def test_file_round_trip(tmp_path: Path, plan: PrunePlan) -> None:
    path = plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(path) == plan
    assert json.loads(path.read_text(encoding="utf-8"))["document"] == "prune_plan"


@pytest.mark.parametrize(
    "content",
    [b"", b"plan", b'{"document": "prune_plan"', b"\xff\xfe\x00\x01", b"[]", b"[" * 100_000],
    ids=["empty", "words", "cut", "binary", "a list", "too deep"],
)
def test_bad_files_are_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(RecordError):
        PrunePlan.load(tmp_path / "plan.json")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"none\.json"):
        PrunePlan.load(tmp_path / "none.json")
    with pytest.raises(RecordError, match="Cannot read"):
        PrunePlan.load(tmp_path)


def test_save_into_a_missing_folder(tmp_path: Path, plan: PrunePlan) -> None:
    with pytest.raises(OutputError):
        plan.save(tmp_path / "none" / "plan.json")


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_records_are_frozen(record: type[Any]) -> None:
    assert record.__dataclass_params__.frozen


# --- the rounding rule


@pytest.mark.parametrize(
    ("prune_ratio", "n_units", "heads", "round_to", "expected"),
    [
        (0.0, 10, None, 1, 0),
        (0.25, 10, None, 1, 2),  # down
        (0.09, 10, None, 1, 0),
        (0.3, 10, None, 1, 3),
        (0.29, 100, None, 1, 29),  # 0.29 x 100 = 28.999999999999996
        (0.57, 100, None, 1, 57),  # 0.57 x 100 = 56.99999999999999
        (0.99, 4, None, 1, 3),
        (0.99, 1, None, 1, 0),  # one unit remains
        (0.999, 64, None, 1, 63),
        (0.5, 12, 4, 1, 4),  # 6, down to a multiple of the heads
        (0.2, 12, 4, 1, 0),
        (0.9, 12, 4, 1, 8),  # one unit per head remains
        (0.99, 4, 4, 1, 0),
        (0.5, 12, 1, 1, 6),
        (0.3, 64, None, 8, 16),  # removes 19, keeps 45, rounded up to 48
        (0.3, 20, None, 8, 4),  # keeps 14, rounded up to 16
        (0.1, 20, None, 8, 0),  # keeps 18, rounded up to 24: more than 20, not pruned
        (0.99, 20, None, 8, 12),  # keeps 1, rounded up to 8
        (0.5, 6, None, 8, 0),  # narrower than 8: not pruned
        (0.6, 48, 12, 8, 24),  # lcm(8, 12) = 24
        (0.4, 48, 12, 8, 0),
        (0.5, 64, 4, 8, 32),
        (0.25, 64, None, 1, 16),
    ],
)
def test_rounding_rule(
    prune_ratio: float, n_units: int, heads: int | None, round_to: int, expected: int
) -> None:
    assert n_pruned(prune_ratio, n_units, heads, round_to) == expected


RATIOS = st.floats(0, 1, exclude_max=True)
GROUPS = st.tuples(st.integers(1, 16), st.integers(1, 100), st.booleans()).map(
    lambda drawn: (drawn[0] * drawn[1], drawn[0] if drawn[2] else None)
)  # (n_units, heads), n_units a multiple of heads


@given(RATIOS, GROUPS, st.integers(1, 32))
def test_rounding_gives_a_valid_width(
    prune_ratio: float, n_units_heads: tuple[int, int | None], round_to: int
) -> None:
    n_units, heads = n_units_heads
    step = heads or 1
    removed = n_pruned(prune_ratio, n_units, heads, round_to)
    assert 0 <= removed <= n_units - step
    assert removed % step == 0
    assert removed <= prune_ratio * n_units + 1e-6
    assert removed == 0 or (n_units - removed) % math.lcm(round_to, step) == 0


@given(RATIOS, RATIOS, GROUPS, st.integers(1, 32))
def test_rounding_is_monotone(
    one: float, other: float, n_units_heads: tuple[int, int | None], round_to: int
) -> None:
    low, high = sorted((one, other))
    assert n_pruned(low, *n_units_heads, round_to) <= n_pruned(high, *n_units_heads, round_to)


@given(RATIOS, GROUPS)
def test_rounding_loses_less_than_one_step(
    prune_ratio: float, n_units_heads: tuple[int, int | None]
) -> None:
    n_units, heads = n_units_heads
    step = heads or 1
    requested = min(prune_ratio * n_units, n_units - step)
    assert n_pruned(prune_ratio, n_units, heads) > requested - step


@pytest.mark.parametrize("ratio", [1, 1.0, 1.5, -0.1, math.nan, math.inf, -math.inf, "0.5", None])
def test_ratio_outside_its_range(ratio: Any) -> None:
    with pytest.raises(InvalidRatioError, match="fraction removed"):
        check_ratio(ratio)
    with pytest.raises(InvalidRatioError):
        n_pruned(ratio, 10)


# --- valid selections of units


@pytest.mark.parametrize(
    ("kept", "heads"),
    [
        (tuple(range(12)), None),
        ((0,), None),
        ((11,), None),
        ((0, 5, 7), None),
        ((0, 3, 6, 9), 4),
        ((2, 4, 7, 11), 4),
        (tuple(range(12)), 4),
    ],
)
def test_valid_kept_units(kept: tuple[int, ...], heads: int | None) -> None:
    check_kept(group(12, heads), kept)


@pytest.mark.parametrize(
    ("kept", "heads", "message"),
    [
        ((), None, "at least one"),
        ((3, 1), None, "sorted"),
        ((1, 1, 2), None, "distinct"),
        ((-1, 2), None, "in this range"),
        ((2, 12), None, r"units 0\.\.11"),
        ((0, 1, 2), 4, "every head must keep the same number"),
        ((0, 1, 3, 4, 6, 7, 9), 4, r"got \[1, 2\]"),
    ],
)
def test_invalid_kept_units(kept: tuple[int, ...], heads: int | None, message: str) -> None:
    with pytest.raises(InvalidPlanError, match=message):
        check_kept(group(12, heads), kept)


def test_plan_check(plan: PrunePlan) -> None:
    plan.check((group(), group(group_id="other")), "ab" * 16)
    with pytest.raises(InvalidPlanError, match="abababababab, not for weights cdcd"):
        plan.check((group(),), "cd" * 16)
    with pytest.raises(InvalidPlanError, match=r"no channel group 'block\.0\.qk'"):
        plan.check((group(group_id="other"),), "ab" * 16)
    with pytest.raises(InvalidPlanError, match=r"units 0\.\.2"):
        plan.check((group(n_units=3),), "ab" * 16)
