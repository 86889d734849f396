"""Win accuracy back: recover without training, then train the pruned network, live."""

import streamlit as st

import ui
from ui.panels_finetune import (
    earlier_panel,
    plan_choice,
    result_panel,
    run_panel,
    settings_form,
    start_panel,
    training_jobs,
)

page = ui.boot()
workspace, summary = page.workspace, page.summary
jobs = training_jobs(workspace)
newest = jobs[0] if jobs else None

left, right = st.columns([2, 3], gap="large")
with left:
    st.header("What and how", anchor=False)
    possible, plan = plan_choice(workspace, summary, key="tuned-plan")
    if possible:
        recovery, settings = settings_form(plan, key="tuning")
        start_panel(workspace, summary, plan, recovery, settings, newest, key="tuning-go")
with right:
    if newest is None:
        st.header("Training", anchor=False)
        st.markdown(
            "Its curve appears here while it runs: training loss, validation loss and accuracy by "
            "epoch, beside the unpruned network. It goes on when this page is closed."
        )
    else:
        st.header("Training" if newest.task == "finetune" else "Recovery", anchor=False)
        run_panel(workspace, summary, newest, dark=page.dark, key="run")
        if newest.state == "done":
            result_panel(workspace, summary, newest, key="result")
        earlier = [job for job in jobs[1:] if job.state == "done"]
        if earlier:
            st.header("Earlier", anchor=False)
            earlier_panel(workspace, summary, earlier, key="earlier")
