"""Measured numbers on screen, always with the conditions of the measurement."""

from __future__ import annotations

import streamlit as st

from psvit_core.records import Measurement, PrunePlan
from psvit_core.tasks.cautions import CHANCE_SIGN
from psvit_core.tasks.evaluate import compare_published
from psvit_core.workspace import Workspace
from ui.model import formats, loaders, measured
from ui.model.foreign import in_markdown
from ui.panels.job import follow_job
from ui.panels.widgets import action_button, facts_table, show_warnings

MEASURE_HELP = "Prunes a copy and runs it on the validation images, in the background."


def measure_panel(workspace: Workspace, plan: PrunePlan | None, *, key: str) -> None:
    """Draw a plan's measurement, its progress, or the button that starts it.

    Args:
        workspace: The model on its images.
        plan: The plan; None for the unpruned model.
        key: Prefix of the widgets' keys.
    """
    found = loaders.measurement(workspace, plan)
    job = loaders.plan_job(workspace, "measure", plan)
    if found is not None:
        measured_table(found, baseline=loaders.measurement(workspace, None))
    elif job is None or job.state == "done":
        _offer(workspace, plan, key)
    else:
        follow_job(workspace.store, job, key=key)


def _offer(workspace: Workspace, plan: PrunePlan | None, key: str) -> None:
    images = formats.images(workspace.subject.limit)
    st.markdown(f"Not measured yet on {images}.")
    action_button(
        f"Measure {'plan' if plan else 'baseline'}",
        _start,
        workspace,
        plan,
        key=f"{key}-start",
        icon=":material/straighten:",
    )


def _start(workspace: Workspace, plan: PrunePlan | None) -> None:
    measured.start_measuring(workspace, plan)


def measure_button(
    workspace: Workspace, plan: PrunePlan, *, key: str, disabled: bool = False
) -> None:
    """Draw the button that measures a plan in the background."""
    action_button(
        "Measure",
        _start,
        workspace,
        plan,
        key=key,
        icon=":material/straighten:",
        disabled=disabled,
        help=MEASURE_HELP,
    )


def measured_table(m: Measurement, *, baseline: Measurement | None = None) -> None:
    """Draw the measured numbers, one per row, with their 95 % intervals."""
    facts = [("Top-1 accuracy", f"**{formats.accuracy(m.accuracy)}**")]
    if m.top5 is not None:
        facts.append(("Top-5 accuracy", formats.accuracy(m.top5)))
    if m.baseline_accuracy is not None:
        facts.append(("Baseline, same images", formats.accuracy(m.baseline_accuracy)))
    if m.drop is not None:
        noise = " · within noise" if formats.within_noise(m.drop) else ""
        facts.append(("Measured drop, paired", f"**{formats.drop(m.drop)}**{noise}"))
    if m.agreement is not None and m.kl is not None:
        facts.append(("Same prediction as baseline", formats.percent(m.agreement, 2)))
        facts.append(("KL to baseline", f"{m.kl:.4f} nats"))
    if m.precision_check is not None:
        same = formats.percent(m.precision_check.agreement, 2)
        facts.append((f"Same prediction in float32, {m.precision_check.n_images} images", same))
    base = baseline or m
    facts.append(("SOPs per image", formats.short_count(m.sops) + _change(m.sops, base.sops)))
    energy = formats.energy(m.energy_pj) + _change(m.energy_pj, base.energy_pj)
    facts.append(("Energy, theoretical", energy))
    facts_table(facts)
    show_warnings(w for w in m.warnings if CHANCE_SIGN not in w)  # every page shows that one
    conditions = in_markdown(formats.conditions_line(m.conditions))
    st.caption(
        f"Measured on {conditions}. Brackets are 95 % intervals. "
        f"{formats.energy_note(m.energy_model)}"
    )


def _change(value: float, base: float) -> str:
    return f" ({formats.relative_change(value, base)})" if value != base else ""


def published_panel(workspace: Workspace) -> None:
    """Draw the baseline next to the published accuracy, as a warning if they disagree."""
    baseline = loaders.measurement(workspace, None)
    if workspace.card is None or baseline is None:
        return
    compared = compare_published(workspace.card, baseline)
    if compared is None:
        return
    line, inside = in_markdown(compared[0]), compared[1]
    if inside:
        st.caption(f"Baseline: {line}.")
    else:
        st.warning(
            f"Baseline: {line}: outside the interval. Check the weights, the time steps and the "
            "images before you trust a sweep."
        )


def measurement_line(workspace: Workspace, plan: PrunePlan, *, key: str) -> None:
    """Draw a plan's measurement in one line, or ``measure_panel`` if there is none."""
    found = loaders.measurement(workspace, plan)
    if found is None:
        measure_panel(workspace, plan, key=key)
        return
    st.markdown(f"Measured: {formats.measured_line(found)}")
    conditions = in_markdown(formats.conditions_line(found.conditions))
    st.caption(f"On {conditions}. Brackets are 95 % intervals.")
