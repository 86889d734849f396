"""One channel group: its curve, the numbers of the selected cell, the way into the plan."""

from __future__ import annotations

from collections.abc import Iterator

import streamlit as st

from psvit_core.picture.values import coupled_layers, firing_rates
from psvit_core.plan.size import plan_size
from psvit_core.records import ChannelGroup, ModelSummary, SensitivityRow
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.charts.sensitivity import sensitivity_curve
from ui.model import drafts, formats, loaders, state, tables
from ui.model.foreign import in_code
from ui.model.sweeps import SweepView
from ui.panels.widgets import NO_TOOLBAR, action_button, facts_table

_NAMED = 8  # layers that are listed by name


def group_panel(
    workspace: Workspace, view: SweepView, metric: str, *, key: str, dark: bool
) -> None:
    """Draw one group: its curve, the selected cell, and the button that adds it to the plan.

    The two widgets are the selection; a click in the heatmap sets them.
    """
    group_id, ratio = _cell_choice(view, key=key)
    group = view.summary.by_id[group_id]
    rows = [row for row in view.rows if row.group_id == group_id]
    st.plotly_chart(
        sensitivity_curve(group, rows, metric=metric, selected_ratio=ratio, dark=dark),
        key=f"{key}-curve",
        theme=None,
        config=NO_TOOLBAR,
        alt=f"Cost of pruning {group.label} alone",
    )
    row = next((row for row in rows if row.prune_ratio == ratio), None)
    _cell_result(view, group, ratio, row)
    _plan_part(workspace.store, view, group, ratio, row, key=key)
    _coupled_layers(workspace, group, key=f"{key}-coupled")


def _cell_choice(view: SweepView, *, key: str) -> tuple[str, float]:
    group_id = st.selectbox(
        "Channel group",
        [g.group_id for g in view.summary.groups],
        key=f"{key}-group",
        format_func=lambda g: view.summary.by_id[g].label,
        persist_state="session",
    )
    ratio = st.segmented_control(
        "Prune ratio",
        list(view.ratios),
        format_func=formats.ratio,
        required=True,
        key=f"{key}-ratio",
        persist_state="session",
    )
    return group_id, view.ratios[0] if ratio is None else ratio


def _cell_result(
    view: SweepView, group: ChannelGroup, ratio: float, row: SensitivityRow | None
) -> None:
    if row is None:
        st.info("This cell is not measured yet.")
    elif row.n_pruned == 0:
        per_head = " per head" if group.heads else ""
        st.info(
            f"{formats.ratio(ratio)} of {group.n_units} units is less than one unit{per_head}: "
            "too few to remove any at this ratio."
        )
    else:
        facts_table(_cell_facts(row, view.summary, view.n_images))


def _cell_facts(
    row: SensitivityRow, summary: ModelSummary, n_images: int
) -> Iterator[tuple[str, str]]:
    base, group = plan_size(summary, None), summary.by_id[row.group_id]
    noise = " · within noise" if formats.within_noise(row.drop) else ""
    yield "Accuracy drop, paired", f"**{formats.drop(row.drop)}**{noise}"
    yield "Accuracy", formats.accuracy(row.accuracy)
    yield "Measured on", formats.images_seen(row, n_images or None)
    yield "KL to baseline", f"{row.kl:.4f} nats"
    yield "Same prediction as baseline", formats.percent(row.agreement, 2)
    parameters = f"{base.params - row.size.params:,} parameters"
    yield "Removed", f"{row.n_pruned} of {group.n_units} units, {parameters}"
    saving = formats.relative_change(row.size.bytes, base.bytes)
    yield "Memory", f"{saving} ({formats.megabytes(row.size.bytes)})"
    if row.drop_of_all and row.n_images != n_images:
        yield "Drop on all images", f"{formats.drop_range(row.drop_of_all)} pp"


# ---- the plan --------------------------------------------------------------------------------


def _plan_part(
    store: Store,
    view: SweepView,
    group: ChannelGroup,
    ratio: float,
    row: SensitivityRow | None,
    *,
    key: str,
) -> None:
    """Draw the button that puts the ratio into the plan, and what the plan removes now."""
    summary = view.summary
    draft = state.draft(store, summary)
    removes_nothing = row is not None and row.n_pruned == 0
    action_button(
        f"Use {formats.ratio(ratio)} in my plan",
        _use,
        store,
        summary,
        group.group_id,
        ratio,
        view.criterion,
        key=f"{key}-use",
        type="primary",
        disabled=removes_nothing or view.criterion not in summary.rankings,
    )
    removed = drafts.removed_units(draft, summary)
    st.caption(
        f"Your plan removes {removed[group.group_id]} of {group.n_units} units of this group, and "
        f"prunes {tables.changed_groups(summary, removed)} of {len(removed)} groups."
    )


def _use(store: Store, summary: ModelSummary, group_id: str, ratio: float, criterion: str) -> None:
    draft = state.draft(store, summary)
    changed = drafts.with_ratio(draft, summary, group_id, ratio, criterion)
    state.set_draft(store, summary, changed)


# ---- coupled layers --------------------------------------------------------------------------


def _coupled_layers(workspace: Workspace, group: ChannelGroup, *, key: str) -> None:
    """Draw the layers that shrink with a group, and their neurons' firing rates if measured."""
    writers, readers = coupled_layers(group)
    title = f"Coupled: {len(writers)} layers write its units, {len(readers)} read them"
    with st.expander(title, key=key):
        read_by = _named(readers) or "no layer: its units meet in an attention product"
        st.markdown(f"**Written by** {_named(writers)}  \n**Read by** {read_by}")
        measured = loaders.measurement(workspace, None)
        if measured is None:
            st.caption("Measure the baseline on the Open page to see firing rates.")
        elif rates := firing_rates(group, measured.firing):
            st.markdown(
                "**Firing rates in these modules** "
                + ", ".join(
                    f"{in_code(name)} {formats.percent(rate)}" for name, rate in rates.items()
                )
            )


def _named(layers: list[str]) -> str:
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return ", ".join(in_code(layer) for layer in layers[:_NAMED]) + more
