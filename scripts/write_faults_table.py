"""Write ``docs/faults.md``: faults of processes, disks and clocks, and what becomes of the work.

Run by ``make faults``. Every row names tests of the suite; they are run, and each passed case is
one fault that had the outcome which the row states.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.case_table import Cases, Row, Times, rows_text, write_page

PAGE = ROOT / "docs" / "faults.md"
_HEAD = """\
# Faults

What becomes of work when a process is killed, a disk is full, a file is damaged, the power goes or
the clock is set. `make faults` runs these tests of the suite and writes this page. A case is a
passed test; one of power cuts is up to 100 cuts.

| fault | outcome | cases | longest, s | tests |
|---|---|---|---|---|
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
- Moments are seeded numbers of changes, never times. Cells that are computed are counted.

## What a fault may cost

- **Killed**: the group of cells in work, and what was computed since the last write. Results are
  written as soon as writing takes less than a twentieth of the time since the last write. A
  training goes on after its last epoch, or the state that it saved within it.
- **Power cut**: the same. How far a running job is, drafts of the last moments and the list of
  running processes may be lost; plans, queued jobs, ends of jobs, measurements and files may not.
- **Damaged index**: the jobs and saved plans that it contained. Results in files are used again.
- **Full disk**: nothing. What could not be kept is said.
"""


ROWS = (
    Row(
        "`kill -9` of the worker during a sweep, planning, recovery, fine-tuning, an export, a "
        "training, a whole run",
        "interrupted, with the reason; resumed, it ends like an undisturbed one; only the cell in "
        "work is computed again; nothing temporary stays",
        (
            "faults/test_killed_jobs.py::test_a_killed_job_is_resumed_and_ends_alike",
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
        "an app that is killed while its worker runs a job",
        "the worker ends the job, then itself",
        (
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
        "temporary files, values without a row and locks that a killed process left",
        "removed at the next start; those of living processes stay",
        (
            "faults/test_ended.py::test_temporary_files_and_locks_are_removed_at_the_next_start",
            "faults/test_ended.py::test_a_temporary_folder_in_use_is_left_alone",
            "jobs/test_full_disk.py::test_locks_of_killed_processes_are_removed",
        ),
    ),
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
    Row(
        "clock set forth or back by a day, or at every look",
        "running work is known as running; jobs take turns; no time is negative; tables are equal",
        ("faults/test_clock.py",),
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


def page_text(cases: Cases, longest: Times) -> str:
    """Return the page."""
    return _HEAD + rows_text(ROWS, cases, longest) + _TAIL


def main() -> None:
    """Run the tests and write the page."""
    write_page(PAGE, ROWS, page_text)


if __name__ == "__main__":
    main()
