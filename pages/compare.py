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
    measuring_panel,
    plan_panel,
    plans_table,
)

page = ui.boot()
store, summary = page.store, page.summary
plans = kept.kept_plans(store, summary)
entries = entries_of(page.workspace, summary, plans)
pick = (f"compare-a/{summary.weights_hash}", f"compare-b/{summary.weights_hash}")

keep_panel(store, summary, plans, key="keep")
if not entries:
    st.info(
        "No plan yet. Make one on the Tune page, keep it here, make another: both then stand side "
        "by side, with what they save and cost. What is kept outlives a reload.",
        icon=":material/compare_arrows:",
    )
    st.stop()
plans_table(summary, entries, key="plans", pick=pick)
first, second = choices(summary, entries, pick, key="choices")
a, b = entries[first], entries[second]
kept_plan = next((k for k in plans if k.id == first), None)
plan_panel(page.workspace, summary, a, kept_plan, key="plan")
measuring_panel(page.workspace, a.plan, key="measuring")

left, right = st.columns([3, 2], gap="large")
with left:
    st.header("Where they differ", anchor=False)
    if first == second:
        st.markdown("Choose another plan beside **against** to see where the two differ.")
    else:
        difference_panel(summary, a, b, dark=page.dark, key="difference")
with right:
    st.header("Which classes lose", anchor=False)
    classes_panel([a] if first == second else [a, b], dark=page.dark, key="classes")
