"""Measured numbers on screen, always with how they were measured."""

from __future__ import annotations

import streamlit as st

from psvit_core.jobs.tasks import compare_published
from psvit_core.records import Measurement, PrunePlan
from psvit_core.workspace import Workspace
from ui import loaders, words
from ui.panels_job import job_panel, live


def measure_panel(
    workspace: Workspace, plan: PrunePlan | None, *, key: str, predicted: float | None = None
) -> None:
    """The measurement of a plan (None: of the model itself), or the button that makes it.

    Args:
        workspace: The model on its images.
        plan: What is measured.
        key: Prefix of the widgets' keys.
        predicted: Predicted drop in percentage points, to set beside the measured one.
    """
    found = loaders.measurement(workspace, plan)
    job = loaders.plan_job(workspace, "measure", plan)
    if found is not None:
        measured_table(found, predicted=predicted, baseline=loaders.measurement(workspace, None))
        return
    if job is None or job.state == "done":
        _offer(workspace, plan, key)
        return

    def work() -> bool:
        return job_panel(workspace.store, job.id, key=key, noun="The measurement")

    live(work, active=job.active)


def _offer(workspace: Workspace, plan: PrunePlan | None, key: str) -> None:
    what = "plan" if plan else "baseline"
    images = words.images(workspace.subject.limit)
    st.markdown(f"Not measured yet on {images}.")
    st.button(
        f"Measure {what}", key=f"{key}-start", icon=":material/straighten:", on_click=_start,
        args=(workspace, plan),
    )  # fmt: skip


def _start(workspace: Workspace, plan: PrunePlan | None) -> None:
    workspace.measure(plan)


def measured_table(
    m: Measurement, *, predicted: float | None = None, baseline: Measurement | None = None
) -> None:
    """The measured numbers, one a line, with their 95 % intervals."""
    lines = [("Top-1 accuracy", f"**{words.accuracy(m.accuracy)}**")]
    if m.baseline_accuracy is not None:
        lines.append(("Baseline, same images", words.accuracy(m.baseline_accuracy)))
    if m.drop is not None:
        noise = " · within noise" if words.within_noise(m.drop) else ""
        lines.append(("Measured drop, paired", f"**{words.drop(m.drop)}**{noise}"))
    if predicted is not None:
        lines.append(("Predicted drop", words.points(predicted)))
    if m.agreement is not None and m.kl is not None:
        lines.append(("Same answer as baseline", words.percent(m.agreement, 2)))
        lines.append(("KL to baseline", f"{m.kl:.4f} nats"))
    base = baseline or m
    lines.append(("SOPs an image", words.count(m.sops) + _change(m.sops, base.sops)))
    energy = words.energy(m.energy_pj) + _change(m.energy_pj, base.energy_pj)
    lines.append(("Energy, theoretical", energy))
    body = "\n".join(f"| {name} | {value} |" for name, value in lines)
    st.markdown(f"| | |\n|:--|:--|\n{body}")
    st.caption(
        f"Measured on {words.conditions_line(m.conditions)}. Brackets are 95 % intervals. "
        "Energy counts arithmetic only (4.6 pJ a MAC, 0.9 pJ a SOP)."
    )


def _change(value: float, base: float) -> str:
    return f" ({words.saving(value, base)})" if value != base else ""


def published_panel(workspace: Workspace) -> None:
    """How the measured baseline stands beside the published accuracy; a warning where it is off."""
    measured = loaders.measurement(workspace, None)
    if workspace.card is None or measured is None:
        return
    compared = compare_published(workspace.card, measured)
    if compared is None:
        return
    line, inside = compared
    if inside:
        st.caption(f"Baseline: {line}.")
    else:
        st.warning(
            f"Baseline: {line}: outside the interval. Check the weights, the time steps and the "
            "images before trusting a sweep."
        )


def short_measure(workspace: Workspace, plan: PrunePlan, *, key: str) -> None:
    """One line about a plan's measurement, or the button that makes it."""
    found = loaders.measurement(workspace, plan)
    if found is None:
        measure_panel(workspace, plan, key=key)
        return
    st.markdown(f"Measured: {words.measured_line(found)}")
    st.caption(f"On {words.conditions_line(found.conditions)}. Brackets are 95 % intervals.")
