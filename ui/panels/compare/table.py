"""All plans in a table, and the choice of the two to compare."""

from __future__ import annotations

import streamlit as st

from psvit_core.records import ModelSummary
from ui.model import comparison, state
from ui.model.comparison import ComparedPlan

PICK_LABELS = ("Plan", "Compare with")
_ROW_HEIGHT = 44  # pixels
_COLUMNS = {
    "plan": st.column_config.TextColumn("Plan", pinned=True, width=160),
    "ratios": st.column_config.BarChartColumn(
        "Removed per channel group",
        y_min=0,
        y_max=100,
        width=165,
        help="One bar per channel group, in network order: units removed, 0 to 100 %.",
    ),
    "megabytes": st.column_config.NumberColumn("MB", format="%.3f", width=70),
    "saves": st.column_config.NumberColumn(
        "Saves", format="%.1f %%", width=75, help="Memory saved compared with the unpruned model."
    ),
    "macs": st.column_config.NumberColumn(
        "MACs, M", format="%.2f", width=75, help="One image, one time step, counted as if dense."
    ),
    "sops": st.column_config.NumberColumn(
        "SOPs, M", format="%.2f", width=75, help="One image, all time steps; measured."
    ),
    "energy": st.column_config.NumberColumn(
        "Energy, µJ",
        format="%.2f",
        width=85,
        help="Theoretical, arithmetic only: 4.6 pJ per MAC, 0.9 pJ per SOP.",
    ),
    "predicted": st.column_config.TextColumn(
        "Predicted drop",
        width=155,
        help="Under the recovery chosen at the top, from the sweep, before the plan was measured; "
        "it does not change any more then.",
    ),
    "recalibrated": st.column_config.TextColumn(
        "Recalibrated",
        width=155,
        help="Predicted with all plans measured so far, for plans that are not measured yet.",
    ),
    "measured": st.column_config.TextColumn(
        "Drop as pruned",
        width=160,
        help="Without recovery. Paired comparison with the unpruned model, 95 % interval.",
    ),
    "top5": st.column_config.TextColumn(
        "Top-5", width=140, help="Top-5 accuracy and its change against the unpruned model."
    ),
    "recovered": st.column_config.TextColumn(
        "Drop after recovery",
        width=150,
        help="Without training. Paired comparison with the unpruned model, 95 % interval.",
    ),
    "tuned": st.column_config.TextColumn(
        "Drop after fine-tuning",
        width=215,
        help="Best epoch on the validation images, paired comparison with the unpruned model. "
        "No gain: no epoch was better than the network before training.",
    ),
    "worst": st.column_config.TextColumn(
        "Largest loss", width=110, help="The class whose accuracy falls most."
    ),
    "policy": st.column_config.TextColumn("Made by", width=90),
}


def plans_table(
    summary: ModelSummary, entries: dict[str, ComparedPlan], *, key: str, pick: tuple[str, str]
) -> None:
    """Draw all plans, one per row; selected rows become the two plans to compare.

    Args:
        summary: The model.
        entries: Plans by id, in the order of the rows.
        key: Prefix of the widgets' keys.
        pick: Keys of the two choices.
    """
    ids = [*entries]
    name = f"{key}/{','.join(ids)}"

    def take() -> None:
        rows = state.get(name)["selection"]["rows"]
        for at, row in zip(pick, rows[:2], strict=False):
            state.put(at, ids[row])

    st.dataframe(
        comparison.plan_rows(summary, [*entries.values()]),
        key=name,
        hide_index=True,
        on_select=take,
        selection_mode="multi-row",
        row_height=_ROW_HEIGHT,
        height="content",
        column_config=_COLUMNS,
    )


def picked_plans(
    preferred: list[str], choices: list[str], pick: tuple[str, str]
) -> tuple[str, str]:
    """Return the ids of the two plans to compare.

    Args:
        preferred: Ids to choose from as long as the user has chosen none.
        choices: Ids of all plans.
        pick: Keys of the two choices.
    """
    default = preferred[0] if len(preferred) == 1 else preferred[-2]
    state.ensure_option(pick[0], choices, preferred[-1])
    state.ensure_option(pick[1], choices, default)
    return state.get(pick[0]), state.get(pick[1])


def two_plans(names: dict[str, str], pick: tuple[str, str], *, key: str) -> None:
    """Draw the choice of two plans.

    Args:
        names: Names of all plans by id.
        pick: Keys of the two choices (``picked_plans``).
        key: The container's key.
    """
    with st.container(horizontal=True, gap="medium", key=key):
        for label, at in zip(PICK_LABELS, pick, strict=True):
            widget = state.key_of_content(at, [*names.items()])
            state.put(widget, state.get(at))
            st.selectbox(
                label,
                [*names],
                format_func=names.__getitem__,
                key=widget,
                width=420,
                on_change=_take_choice,
                args=(at, widget),
            )


def _take_choice(at: str, widget: str) -> None:
    state.put(at, state.get(widget))
