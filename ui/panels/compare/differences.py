"""Two plans compared: by channel group and by class."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
from streamlit.elements.lib.column_types import ColumnConfig

from psvit_core.records import Measurement, ModelSummary
from ui.charts.classes import class_changes_chart
from ui.charts.difference import difference_chart
from ui.charts.firing import firing_chart
from ui.model import comparison, formats
from ui.model.comparison import ComparedPlan
from ui.model.foreign import in_markdown
from ui.panels.widgets import NO_TOOLBAR

Columns = dict[str, ColumnConfig | str]


def difference_panel(
    summary: ModelSummary, a: ComparedPlan, b: ComparedPlan, *, dark: bool, key: str
) -> None:
    """Draw how much more or less one plan removes than the other, by channel group."""
    st.markdown(comparison.difference_line(summary, a, b))
    rows = comparison.difference_rows(summary, a, b)
    figure = difference_chart(summary, rows, (a.name, b.name), dark=dark)
    st.plotly_chart(figure, key=f"{key}-heat", config=NO_TOOLBAR)
    more, less = in_markdown(a.name), in_markdown(b.name)
    st.caption(
        f"Filled: units removed, 0 to 100 %. Difference: + {more} removes more, {formats.MINUS} "
        f"{less} removes more; empty where both remove the same."
    )
    with st.expander("Show as table"):
        columns: Columns = {
            "block": "Block",
            "group": "Channel group",
            "units": "Units",
            "a": _number(f"{a.name}, %", "%.1f"),
            "b": _number(f"{b.name}, %", "%.1f"),
            "difference": _number("Difference, pp", "%+.1f"),
        }
        st.dataframe(rows, hide_index=True, key=f"{key}-table", column_config=columns)


def classes_panel(entries: Sequence[ComparedPlan], *, dark: bool, key: str) -> None:
    """Draw the change of each class's accuracy under measured plans."""
    known = [entry for entry in entries if entry.per_class]
    rows = comparison.class_rows(known)
    missing = [entry for entry in entries if not entry.per_class and entry.plan.kept]
    if rows.empty:
        st.markdown(
            "Measure a plan to see which classes lose accuracy. An overall drop of 1 pp may be a "
            "single class that is lost completely."
        )
        return
    names = [entry.name for entry in known]
    st.markdown(comparison.classes_line(known))
    figure = class_changes_chart(rows, names, dark=dark)
    st.plotly_chart(figure, key=f"{key}-chart", config=NO_TOOLBAR)
    for entry in missing:
        st.caption(f"No results by class for {in_markdown(entry.name)} yet. Measure it.")
    with st.expander("Show as table"):
        st.dataframe(rows, hide_index=True, key=f"{key}-table", column_config=_class_columns(names))


def confusions_panel(entry: ComparedPlan, *, key: str) -> None:
    """Draw the confusions of two classes that change most under a measured plan."""
    rows = comparison.confusion_rows(entry)
    if entry.measured is None:
        return
    name = in_markdown(entry.name)
    if rows is None:
        st.caption(f"Confusions of {name} are unknown: an older version measured it.")
        return
    if rows.empty:
        st.caption(f"{name} confuses the same classes equally often as the unpruned model.")
        return
    with st.expander(f"Confusions that change most: {name}", key=f"{key}-open"):
        columns: Columns = {
            "class": "Class",
            "predicted": "Predicted as",
            "before": "Images, unpruned",
            "after": "Images, pruned",
            "change": _number("Change", "%+d"),
        }
        st.dataframe(rows, hide_index=True, key=key, column_config=columns)


def firing_panel(
    entries: Sequence[ComparedPlan], unpruned: Measurement | None, *, dark: bool, key: str
) -> None:
    """Draw the firing rate of every neuron layer in the measured networks."""
    rows = comparison.firing_rows(entries, unpruned)
    if rows.empty:
        st.markdown("Measure a plan to see the firing rate of each layer.")
        return
    st.plotly_chart(firing_chart(rows, dark=dark), key=f"{key}-chart", config=NO_TOOLBAR)
    st.caption(
        "Mean spikes per neuron and time step of each neuron layer, in network order. Fewer spikes "
        "mean fewer SOPs and less energy."
    )
    with st.expander("Show as table"):
        columns: Columns = {n: _number(str(n), "%.4f") for n in rows.columns if n != "layer"}
        st.dataframe(
            rows, hide_index=True, key=f"{key}-table", column_config={"layer": "Layer", **columns}
        )


def _class_columns(names: Sequence[str]) -> Columns:
    changes: Columns = {
        comparison.change_column(at): _number(f"{name}, pp", "%+.1f")
        for at, name in enumerate(names)
    }
    return {
        "class": "Class",
        "images": "Images",
        "baseline": _number("Baseline, %", "%.1f"),
        **changes,
    }


def _number(label: str, numbers: str) -> ColumnConfig:
    return st.column_config.NumberColumn(label, format=numbers)
