"""The final judgement of a plan: once, on the test split, which chose nothing."""

from __future__ import annotations

import dataclasses

import streamlit as st

from psvit_core.records import PrunePlan
from psvit_core.workspace import Workspace
from ui.model import formats, loaders, open_files
from ui.panels.job import follow_job
from ui.panels.widgets import action_button

_HELP = (
    "Measures the plan on all images of the test split, which no sweep and no planner has seen. A "
    "plan is judged once: whoever chooses among plans by the test split needs another test."
)


def judgement_panel(workspace: Workspace, plan: PrunePlan, *, key: str) -> None:
    """Draw a plan's result on the test split, or the button that judges it."""
    subject = dataclasses.replace(workspace.subject, split="test", limit=None)
    final = Workspace(subject, workspace.store)
    found, job = final.measurement(plan), loaders.plan_job(final, "measure", plan)
    if found is not None and found.drop is not None:
        when = f" {formats.time_ago(job.ended)}" if job is not None and job.ended else ""
        st.markdown(
            f":material/gavel: Judged once on the test split{when}: drop "
            f"**{formats.drop(found.drop)}**, accuracy {formats.accuracy(found.accuracy)} on "
            f"{found.conditions.n_images:,} images. Plans are still chosen by the validation split."
        )
    elif job is not None and job.state != "done":
        follow_job(workspace.store, job, key=f"{key}-job")
    elif plan.kept:
        action_button(
            "Judge on the test split",
            _judge,
            final,
            plan,
            key=f"{key}-start",
            icon=":material/gavel:",
            disabled=not open_files.current_data(workspace),
            help=_HELP,
        )


def _judge(final: Workspace, plan: PrunePlan) -> None:
    final.measure(plan)
