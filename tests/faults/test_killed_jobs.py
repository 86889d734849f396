"""Jobs of every kind, killed or without space at a seeded change of their files, end alike.

``runs.py`` runs them. A killed job is interrupted with its reason, or still waits if it was killed
before its work began; resumed, it has the result of an undisturbed one, once, and repeats at most
the unit of work that was lost.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.faults.runs import KINDS
from tests.faults.shim import CAN_WATCH, run_watched

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_WATCH, reason="no C compiler")]
#: What may be computed again: images of a group's cells, a plan, a recovery, steps of an epoch.
_UNIT = {"image": 10, "plan": 1, "recovery": 1, "step": 3}
Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    base = tmp_path_factory.mktemp("runs")
    program = (
        "import json, sys; from pathlib import Path; from tests.faults.runs import main; "
        "print(json.dumps(main(Path(sys.argv[1]))))"
    )
    done = run_watched(program, base, str(base))
    runs: dict[str, Found] = json.loads(done.stdout.splitlines()[-1])
    return runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_job_is_resumed_and_ends_alike(kind: str, found: dict[str, Found]) -> None:
    whole = found[kind]["whole"]
    assert whole["state"] == "done" and whole["left"] == []
    for killed in found[kind]["killed"]:
        assert killed["before"] in ("interrupted", "queued", "done"), killed
        if killed["before"] == "interrupted":
            assert killed["reason"], killed
        ends_alike(whole, killed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_on_a_disk_that_becomes_full_ends_alike(kind: str, found: dict[str, Found]) -> None:
    whole = found[kind]["whole"]
    for filled in found[kind]["full"]:
        first = filled["first"]
        assert first["state"] in ("done", "failed", "queued"), first
        assert (
            first["state"] != "failed"
            or "No space" in first["error"]
            or ("disk is full" in first["error"])
        ), first
        ends_alike(whole, filled)


def ends_alike(whole: Found, again: Found) -> None:
    """Check the end of a job that was disturbed and resumed."""
    assert again["state"] == "done", again
    assert again["result"] == whole["result"], again["at"]
    assert again["jobs"] == whole["jobs"] and again["left"] == [], again
    for unit, most in _UNIT.items():
        repeated = again["count"].get(unit, 0) - whole["count"].get(unit, 0)
        assert 0 <= repeated <= most, (again["at"], unit, repeated)
