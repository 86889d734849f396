"""The result of a run: accuracy before and after, the file, its origin."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from psvit_core.files import is_file
from psvit_core.jobs.client import Job
from psvit_core.records import Interval, Measurement, ModelSummary
from psvit_core.records.jobs import FinetuneRequest, FinetuneResult
from psvit_core.workspace import Workspace
from ui.model import comparison, consent, formats, history, loaders, state
from ui.model.foreign import in_markdown
from ui.model.measured import measured_plans
from ui.panels.graph import graph_button, graph_state
from ui.panels.quantized import quantized_panel
from ui.panels.widgets import download_link, facts_table, show_warnings


def reference_of(workspace: Workspace, summary: ModelSummary, job: Job) -> history.Reference:
    """Return the accuracies to compare a run with: the unpruned and the pruned network."""
    plan = job.plan
    if plan is None:  # an already pruned file: the job measured the file itself
        found = comparison.job_measurement(job, "file")
        return history.Reference(baseline=found.baseline_accuracy if found else None)
    measured = [past.measurement for past in measured_plans(workspace, summary)]
    unpruned: Measurement | None = loaders.measurement(workspace, None)
    return history.find_reference(
        [*([unpruned] if unpruned else []), *measured],
        plan,
        workspace.subject.limit,
        comparison.job_measurement(job, "pruned"),
    )


def result_panel(workspace: Workspace, summary: ModelSummary, job: Job, *, key: str) -> None:
    """Draw the accuracies before and after, the file, and how it was made."""
    report, recovery = comparison.finetune_report(job), comparison.recovery_report(job)
    written = comparison.job_measurement(job, "file")
    start: Interval | None
    start = report.epochs[0].val_accuracy if report else written.accuracy if written else None
    reference = reference_of(workspace, summary, job)
    facts_table(history.accuracy_lines(reference, recovery, start, report))
    now = report.best_accuracy if report else start
    if back := history.regained_line(reference, start, now):
        st.markdown(back)
    if report and start:
        st.markdown(history.gain_line(start, report))
    trials_table(job)
    show_warnings(job.outcome.warnings if isinstance(job.outcome, FinetuneResult) else ())
    what = "settings and the best epoch were" if report and report.trials > 1 else "epoch was"
    chosen = f" The best {what} selected on these images: use the test split for a final judgement."
    st.caption(
        f"Top-1 on {formats.images(workspace.subject.limit)} of the validation split, with 95 % "
        f"intervals.{chosen if report else ''}"
    )
    _file_row(workspace, summary, job, key=key)
    st.caption(in_markdown(history.provenance_line(job, recovery, report)))


def trials_table(job: Job) -> None:
    """Draw the trials that have ended, the best first; nothing if only one was wanted."""
    request, outcome = job.request, job.outcome
    if not isinstance(request, FinetuneRequest) or not isinstance(outcome, FinetuneResult):
        return
    if outcome.trials:
        ended = f"{len(outcome.trials)} of {len(request.trials)} trainings have a result"
        head = ("**Tried**", f"**Validation accuracy ({ended})**")
        facts_table([head, *history.trial_lines(outcome.trials, request.trials)])


def _file_row(workspace: Workspace, summary: ModelSummary, job: Job, *, key: str) -> None:
    written = job.written
    if written is None:
        return
    path = Path(written.path)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key=key):
        if not is_file(path):
            st.markdown(f"{in_markdown(path.name)} no longer exists. Train again to write it.")
            return
        download_link(workspace.store, job, path)
        graph = graph_button(workspace, summary, path, key=key)
        st.markdown(f"**{in_markdown(path.name)}**  \n{written.bytes:,} bytes", width="content")
        st.button(
            "Open here",
            key=f"{key}-open",
            on_click=_open,
            args=(str(path),),
            help="Opens this network in the app, to measure, sweep or prune it again.",
        )
    if graph is not None:
        graph_state(workspace, graph, key=f"{key}-graph-job")
    st.caption("SHA-256")
    st.code(written.sha256, language=None, wrap_lines=True)
    with st.expander("Quantize this file", key=f"{key}-bits"):
        quantized_panel(workspace, summary, path, key=f"{key}-quantize")


def _open(path: str) -> None:
    consent.give(path)
    state.put(state.MODEL, loaders.OPEN_FILE)
    state.put(state.FILE, path)
    state.put(state.ARGUMENTS, "")
    state.put(state.ENTRY, "")


def earlier_panel(
    workspace: Workspace, summary: ModelSummary, jobs: list[Job], *, key: str
) -> None:
    """Draw the results of earlier runs, each in an expander."""
    for job in jobs:
        name = Path(job.written.path).name if job.written else job.title
        title = f"{in_markdown(name)}, {formats.time_ago(job.ended or job.created)}"
        with st.expander(title, key=f"{key}-{job.id}"):
            result_panel(workspace, summary, job, key=f"{key}-{job.id}-file")
