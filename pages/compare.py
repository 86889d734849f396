"""Kept plans side by side: what they remove, cost and win back, and how two of them differ."""

import streamlit as st

import ui
from ui import kept
from ui.panels_compare import (
    choices,
    classes_panel,
    difference_panel,
    entries_of,
    keep_panel,
    plan_panel,
    plans_table,
)
from ui.panels_job import job_panel, live

page = ui.boot()
store, summary = page.store, page.summary
plans = kept.kept_plans(store, summary)
entries = entries_of(page.workspace, summary, plans)
pick = (f"compare-a/{summary.weights_hash}", f"compare-b/{summary.weights_hash}")

keep_panel(store, summary, plans, key="keep")
plans_table(summary, entries, key="plans", pick=pick)
if not plans:
    st.info(
        "No plan is kept yet. Keep the current one, change it on the Tune page, and both stand "
        "here side by side; what is kept outlives a reload."
    )
first, second = choices(summary, entries, pick, key="choices")
a, b = entries[first], entries[second]
plan_panel(page.workspace, summary, a, next((k for k in plans if k.id == first), None), key="plan")
running = next((j for j in page.workspace.jobs("measure") if j.active), None)
if running is not None:
    job_id = running.id
    live(lambda: job_panel(store, job_id, key="measuring", noun="Measuring"), active=True)
elif (last := next(iter(page.workspace.jobs("measure")), None)) and last.state == "failed":
    job_panel(store, last.id, key="measuring", noun="Measuring")

left, right = st.columns([3, 2], gap="large")
with left:
    st.subheader("Where they differ", anchor=False)
    difference_panel(summary, a, b, dark=page.dark, key="difference")
with right:
    st.subheader("Which classes lose", anchor=False)
    classes_panel([a] if first == second else [a, b], dark=page.dark, key="classes")
