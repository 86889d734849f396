"""A sweep on a disk that becomes full: the reason is recorded, nothing is lost or doubled."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from psvit_core.cli import main
from psvit_core.jobs import client
from psvit_core.records import Subject, SweepSettings
from psvit_core.records.jobs import SweepRequest
from psvit_core.storage.store import Store
from tests.full_disk import run_on_full
from tests.made import make_job

SUBJECT = Subject(model="sdt_v1_digits", limit=40, recovery="none")
SETTINGS = SweepSettings(ratios=(0.5,))

PROGRAM = """
import json, sys, threading, time
from pathlib import Path
from psvit_core.jobs import client, run, worker
from psvit_core.sensitivity import buffer
from psvit_core.sensitivity.spec import load_spec, read_table
from psvit_core.storage.store import Store
from tests.full_disk import fill
client.ensure_worker = lambda *_, **__: None
store = Store()
disk = store.folder.parent
(disk / "filler").unlink()                # there is space
buffer._FIRST_WRITE_SECONDS, buffer._WORK_PER_WRITE = 0.0, 0.0   # write every piece
plain, seen = run.JobRun.tick, []

def tick(self):
    seen.append(1)
    if len(seen) == 4:
        fill(disk, inodes=True)
    plain(self)

run.JobRun.tick = tick
work = worker.Worker(store, "cpu")
job = client.find_job(store, "sweep")
thread = threading.Thread(target=work.run_job, args=[job])
thread.start()
states = set()
while thread.is_alive():                  # the store is read while nothing can be written
    states.add(client.find_job(Store(), "sweep").state)
    if len(seen) >= 4 and Path(disk, "filler").exists():
        time.sleep(3)
        [path.unlink() for path in disk.iterdir() if path.is_file()]
    time.sleep(0.2)
failed = client.find_job(store, "sweep")
client.resume(store, "sweep")
work.run_job(client.find_job(store, "sweep"))
done = client.find_job(store, "sweep")
table = read_table(store, load_spec(store, done.result["sweep_key"])) if done.result else None
print(json.dumps([failed.state, failed.error, done.state, done.error, sorted(states),
                  [row.to_dict() for row in table.rows] if table else []]))
"""


@pytest.mark.slow
def test_a_sweep_on_a_disk_that_becomes_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.json"
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "other"))
    command = ["sweep", SUBJECT.model, "--limit", "40", "--recover", "none", "--ratios", "0.5"]
    assert main([*command, "--out", str(whole)]) == 0
    store = Store(tmp_path / "cache")
    request = {"subject": SUBJECT.to_dict(), **SweepRequest(settings=SETTINGS).to_dict()}
    client.save(store, make_job(id="sweep", task="sweep", state="queued", params=request))
    store.close()
    done = run_on_full("bytes", tmp_path / "cache", [sys.executable, "-c", PROGRAM])
    assert done.returncode == 0, done.stderr
    first, reason, last, error, states, rows = json.loads(done.stdout.splitlines()[-1])
    assert (first, last, error) == ("failed", "done", ""), (first, reason, last, error)
    assert "No space left on device. Free some space on the disk of" in reason
    assert states and "interrupted" not in states
    assert rows == json.loads(whole.read_text())["rows"]
