"""A power cut during a sweep: every result that was written is used again, and the table is equal.

As in ``test_power_cuts``: the changes of one sweep are recorded, and it goes on after cuts.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from psvit_core.records import SensitivityTable
from psvit_core.runtime import Run
from psvit_core.sensitivity.buffer import ResultBuffer
from psvit_core.sensitivity.sweep import sweep
from psvit_core.storage import keys
from psvit_core.storage.leftovers import tidy
from psvit_core.storage.predictions import Outcome
from psvit_core.storage.store import Store
from tests.faults.disk import WAYS, Change, Disk, read_changes
from tests.faults.shim import CAN_WATCH, run_watched
from tests.faults.test_power_cuts import SEED, cuts_of
from tests.tiny import tiny_data, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_WATCH, reason="no C compiler")]
N_CUTS = 6
N_ALL = 16 * 6  # images of cells

_PROGRAM = """
import os, sys
from pathlib import Path
from psvit_core.sensitivity import buffer
from psvit_core.storage.store import Store
from tests.faults.test_power_cut_of_sweeps import run_sweep
base = Path(sys.argv[1])
said = os.open(base / "said", os.O_CREAT | os.O_WRONLY)
plain = buffer.ResultBuffer.write
buffer._FIRST_WRITE_SECONDS = buffer._WORK_PER_WRITE = 0.0  # write after every group

def write(self):
    n = sum(len(part) for parts in self._unwritten.values() for part in parts)
    plain(self)
    os.write(said, b"." * n)

buffer.ResultBuffer.write = write
run_sweep(Store(base / "cache"))
"""


def run_sweep(store: Store) -> SensitivityTable:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6)
    return sweep(model, data, ratios=(0.25, 0.5), store=store, run=Run(batch=4))


@pytest.fixture(autouse=True)
def machine_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "boot", lambda: "after the power cut")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Change]]:
    base = tmp_path_factory.mktemp("power") / "base"
    base.mkdir()
    run_watched(_PROGRAM, base, str(base), log=base.parent / "log")
    return base, read_changes(base.parent / "log")


def n_written(changes: list[Change]) -> int:
    return sum(len(c.data) for c in changes if c.kind == "write" and c.path.endswith("/said"))


@pytest.mark.parametrize("way", WAYS)
def test_a_sweep_goes_on_after_a_power_cut(
    recorded: tuple[Path, list[Change]],
    tmp_path: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, changes = recorded
    assert n_written(changes) == N_ALL
    whole = run_sweep(Store(tmp_path / "whole"))
    computed: list[int] = []
    plain = ResultBuffer.add

    def add(self: ResultBuffer, key: str, outcome: Outcome) -> None:
        computed.append(len(outcome))
        plain(self, key, outcome)

    monkeypatch.setattr(ResultBuffer, "add", add)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # this part needs no syncs
    disk, at, random = Disk(base), 0, Random(SEED)
    for cut in cuts_of(changes, N_CUTS):
        for change in changes[at:cut]:
            disk.apply(change)
        at = cut
        folder = disk.after_power_cut(way, tmp_path / str(cut), random)
        store = Store(folder / "cache")
        tidy(store)
        computed.clear()
        assert run_sweep(store) == whole, (way, cut)
        written = n_written(changes[:cut])
        assert sum(computed) <= N_ALL - written, (way, cut)
        store.close()
