"""Write ``docs/faults.md``: faults of processes, disks and clocks, and what becomes of the work.

Run by ``make faults``. Every row names tests of the suite; they are run, and each passed case is
one fault that had the outcome which the row states.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.case_table import Cases, Row, collected, count, files, run

PAGE = ROOT / "docs" / "faults.md"
_HEAD = """\
# Faults

What becomes of work when a process is killed, a disk is full, a file is damaged, the power goes or
the clock is set. `make faults` runs these tests of the suite and writes this page. A case is a test
that passed; it has up to four kills, or up to 100 power cuts.

## What a fault costs

**A killed process** costs at most the unit of work that was not written yet:

| killed during | may be computed again |
|---|---|
| a sweep | the cells of the group in work, on the images in work |
| planning, a Pareto front | the plan in work, or its recovery |
| recovery, export, quantizing | the measurement in work, and the recovery before it |
| fine-tuning, training | steps after the last saved state; the recovery before fine-tuning |

A sweep's results are written as soon as writing takes less than a twentieth of the time since the
last write. A training's state is saved after each epoch, and every five minutes within one.

The other faults cost:

- **Power cut**: the same. How far a running job is, drafts of the last moments and the list of
  running processes may be lost; plans, queued jobs, ends of jobs, measurements and files may not.
- **Damaged index**: the jobs and saved plans that it contained. Results in files are used again.
- **Full disk**: nothing. What could not be kept is said.
"""
_TABLE = """
| fault | outcome | cases | tests |
|---|---|---:|---|
"""
_TAIL = """
## How it is tested

- Killed jobs and power cuts are tested from below the program: a small library
  (`tests/faults/shim.c`, `LD_PRELOAD`) sees every change of a file, also those of SQLite. It kills
  the process before a chosen change, refuses space from a chosen change on, or records all of them.
  It needs Linux and a C compiler; without them, these tests are skipped by name.
- After a power cut, a disk has what was synced. What was not synced may be there or not: none of
  it, all names without their content, or an arbitrary part of both. The store is built in all
  three ways.
- A full disk is a small tmpfs in a namespace of its own where the system allows that; a limit on
  the size of files (`RLIMIT_FSIZE`) everywhere; and, for jobs of every kind, space that is refused
  from below.
- Moments are seeded numbers of changes or steps, never times; only workers of a Ray cluster are
  killed after random times, with the seed in the output. What is computed is counted: images
  of cells, plans, recoveries, steps of a training.
"""


_KILLED = (
    Row(
        "`kill -9` of the worker during a job of any kind: sweep, planning, Pareto front, "
        "recovery, fine-tuning, export, quantizing; a training and a whole run on the command line",
        "interrupted, with the reason; resumed, it ends with the result of an undisturbed one, "
        "once; only the unit in work is computed again; no zombie, lock or temporary file stays",
        (
            "faults/test_killed_jobs.py::test_a_killed_job_is_resumed_and_ends_alike",
            "faults/test_killed_workers.py::test_workers_are_killed_again_and_again",
            "faults/test_ended.py::test_a_training_whose_result_is_stored_is_not_repeated",
            "jobs/test_jobs.py::test_a_sweep_survives_a_killed_worker",
            "jobs/test_jobs.py::test_a_finetuning_survives_a_killed_worker",
            "tasks/test_train.py::test_a_killed_training_reaches_the_same_weights",
            "cli/test_run_command.py::test_a_killed_run_goes_on_and_ends_alike",
        ),
    ),
    Row(
        "`kill -9` of the worker while others of its jobs wait",
        "whoever sees them starts a worker, also at once and while the killed one's lock is held",
        (
            "jobs/test_waiting.py::test_jobs_outlive_the_worker_of_the_one_before",
            "jobs/test_waiting.py::test_the_server_starts_workers_for_jobs_that_come_later",
            "jobs/test_waiting.py::test_a_second_resume_starts_a_worker",
            "jobs/test_waiting.py::test_an_equal_submission_starts_a_worker",
            "jobs/test_waiting.py::test_a_lock_that_is_released_late",
        ),
    ),
    Row(
        "a system that starts no worker: no memory, or too many processes",
        "jobs are listed and wait, with the reason in one line; who looks for them goes on looking",
        ("jobs/test_waiting.py::test_a_system_that_starts_no_process",),
    ),
    Row(
        "`kill -9` of the app's server while its worker runs a job",
        "the worker ends the job and those that wait, then itself within seconds; the next start "
        "goes on with what waits",
        (
            "faults/test_killed_server.py::test_a_server_is_killed_while_its_worker_sweeps",
            "faults/test_ended.py::test_a_worker_ends_whose_app_was_killed_during_its_first_job",
            "jobs/test_warm.py::test_an_idle_worker_ends_after_the_app",
        ),
    ),
    Row(
        "a worker that ended, whoever killed it",
        "the reason is on the screen at the next look, within 5 seconds; no zombie",
        (
            "faults/test_ended.py::test_an_interrupted_job_says_why",
            "faults/test_ended.py::test_the_page_is_told_at_the_next_look",
            "faults/test_ended.py::test_the_jobs_page_looks_often",
            "faults/test_ended.py::test_no_zombie_stays",
        ),
    ),
    Row(
        "`kill -9` of workers of a Ray cluster at random moments of sweeps, fronts and trainings; "
        "a node that is lost",
        "the result is that of a local run; only work that was unfinished or not yet saved is "
        "repeated",
        (
            "cluster/test_killed_workers.py",
            "cluster/test_cluster.py::test_a_lost_node_costs_only_its_cells",
            "cluster/test_fronts.py::test_a_front_is_that_of_a_local_run",
            "cluster/test_trainings.py::test_trials_are_those_of_a_local_run",
            "cluster/test_trainings.py::test_lost_nodes_cost_what_was_not_saved",
            "cluster/test_trainings.py::test_a_recovery_whose_node_is_lost_is_done_again",
        ),
    ),
    Row(
        "temporary files, values without a row and locks that a killed process left",
        "removed at the next start; those of living processes stay",
        (
            "faults/test_ended.py::test_temporary_files_and_locks_are_removed_at_the_next_start",
            "faults/test_ended.py::test_a_temporary_folder_in_use_is_left_alone",
            "jobs/test_full_disk.py::test_locks_of_killed_processes_are_removed",
        ),
    ),
)

_POWER = (
    Row(
        "power cut while a store is written",
        "it opens; whatever was acknowledged is there, and nothing is half-written",
        (
            "faults/test_power_cuts.py::test_a_store_after_a_power_cut",
            "faults/test_power_cuts.py::test_a_store_after_many_power_cuts",
        ),
    ),
    Row(
        "power cut during a sweep",
        "no written result is computed again; the table is equal",
        ("faults/test_power_cut_of_sweeps.py",),
    ),
)

_FULL = (
    Row(
        "a disk that becomes full during a job of any kind, or while one begins or ends",
        "failed, with the reason; resumed, it ends like an undisturbed one",
        (
            "faults/test_killed_jobs.py::test_a_job_on_a_disk_that_becomes_full_ends_alike",
            "jobs/test_sweep_on_full_disk.py",
            "jobs/test_full_disk.py::test_the_end_of_a_job_is_saved_when_there_is_room",
            "jobs/test_full_disk.py::test_a_job_that_cannot_begin_waits",
        ),
    ),
    Row(
        "commands and pages on a full disk",
        "everything is read; one line names the disk; space can be freed from the app",
        (
            "storage/test_full_disk.py::test_commands_on_a_full_disk",
            "storage/test_full_disk.py::test_measuring_on_a_full_disk",
            "storage/test_full_disk.py::test_pages_on_a_full_disk",
            "ui/test_full_disk_browser.py",
        ),
    ),
    Row(
        "measuring a plan on a full disk",
        "the result is printed, then one line says that it could not be kept",
        ("storage/test_full_disk.py::test_a_measured_plan_on_a_full_disk",),
    ),
)

_DAMAGED = (
    Row(
        "every kind of file in a store truncated, garbled, emptied",
        "read past it, or named in one line with the way out; other results are used again",
        (
            "faults/test_garbled.py::test_a_damaged_file",
            "faults/test_garbled.py::test_damaged_lines_of_a_curve",
            "faults/test_garbled.py::test_a_marker_that_lost_its_content_is_written_again",
        ),
    ),
    Row(
        "damaged databases of a store",
        "set aside once, and said; arrays are used again, bad rows are skipped",
        (
            "storage/test_faults.py::test_damaged_databases",
            "storage/test_faults.py::test_a_damaged_index_is_set_aside_once",
            "storage/test_faults.py::test_nothing_whole_is_set_aside",
            "storage/test_faults.py::test_a_bad_row_is_skipped",
            "storage/test_faults.py::test_jobs_are_listed_beside_a_damaged_index",
            "storage/test_faults.py::test_damaged_arrays_and_values",
        ),
    ),
)

_OTHERS = (
    Row(
        "clock set forth or back by a day, or at every look",
        "running work is known as running; jobs take turns; no time is negative; tables are equal",
        (
            "faults/test_clock.py",
            "jobs/test_devices.py::test_an_idle_device_takes_what_waits_for_another",
        ),
    ),
    Row(
        "two command lines on one store",
        "no image of a cell is computed twice; both tables are equal to the one of a lone one",
        ("faults/test_together.py::test_two_command_lines",),
    ),
    Row(
        "two apps on one store",
        "equal requests at once are one job; a job is resumed once; a lock is held by one",
        (
            "faults/test_together.py::test_equal_requests_at_once_are_one_job",
            "faults/test_together.py::test_a_job_is_resumed_once",
            "faults/test_together.py::test_a_passing_lock_is_held_by_one",
        ),
    ),
    Row(
        "read-only or locked by another program",
        "refused in one line with the way out; used again afterwards",
        (
            "storage/test_faults.py::test_a_read_only_store",
            "storage/test_faults.py::test_a_store_that_becomes_read_only",
            "storage/test_faults.py::test_locked_by_another_program",
        ),
    ),
)


#: Heading of the page -> its rows.
PARTS = {
    "Killed processes": _KILLED,
    "Power cuts": _POWER,
    "Full disks": _FULL,
    "Damaged files": _DAMAGED,
    "Clocks, and others on the same store": _OTHERS,
}
ROWS = tuple(row for rows in PARTS.values() for row in rows)


def page_text(cases: Cases) -> str:
    """Return the page."""
    text = _HEAD
    for title, rows in PARTS.items():
        lines = (f"| {r.what} | {r.outcome} | {count(r, cases)} | {files(r)} |\n" for r in rows)
        text += f"\n## {title}\n{_TABLE}{''.join(lines)}"
    total = sum(count(row, cases) for row in ROWS)
    return f"{text}\nTogether {total} cases, all with the outcome named.\n{_TAIL}"


def main() -> None:
    """Run the tests and write the page.

    Raises:
        SystemExit: If a test fails or is skipped: the page states all that the suite has.
    """
    tests = [test for row in ROWS for test in row.tests]
    cases = run([f"tests/{test}" for test in tests])[0]
    if skipped := collected(tests) - cases:
        raise SystemExit(f"Skipped here, so no table was written: {', '.join(skipped)}.")
    PAGE.write_text(page_text(cases), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {sum(cases.values())} cases")


if __name__ == "__main__":
    main()
