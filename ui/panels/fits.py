"""Whether the current plan and the unpruned network fit a device, by their bytes."""

from __future__ import annotations

import streamlit as st

from psvit_core.errors import InvalidSizeError
from psvit_core.jobs.client import Job
from psvit_core.machine_jobs import count_fits, find_fits
from psvit_core.metrics.devices import DEVICES, NEUROMORPHIC, own_device, parse_size
from psvit_core.records import ModelSummary, PrunePlan, TargetDevice
from psvit_core.records.jobs import FitsResult
from psvit_core.workspace import Workspace
from ui.charts.needs import needs_chart
from ui.model import fits
from ui.model.fits import Need, Needs
from ui.model.foreign import in_markdown
from ui.panels.job import follow_job
from ui.panels.widgets import NO_TOOLBAR, action_button, csv_button, facts_table

_SHOWN = 12  # bars of a chart
_FIRST = "pico"  # the device shown first


def fits_panel(
    workspace: Workspace, summary: ModelSummary, plan: PrunePlan | None, *, key: str, dark: bool
) -> None:
    """Draw what the network needs, unpruned and under the plan, against a device's memories.

    Args:
        workspace: The unpruned model.
        summary: Its summary.
        plan: The current plan; None if it removes nothing.
        key: Prefix of the widgets' keys.
        dark: Whether charts are drawn for the dark theme.
    """
    device, precision = _choices(key=key)
    job = find_fits(workspace, plan)
    result = job.outcome if job is not None and job.state == "done" else None
    unpruned = result.unpruned if isinstance(result, FitsResult) else None
    if unpruned is None:
        _offer(workspace, plan, job, key=key)
        return
    pruned = result.pruned if isinstance(result, FitsResult) and plan is not None else None
    full = fits.needs(summary, None, unpruned, precision)
    small = fits.needs(summary, plan, pruned, precision) if pruned else None
    if device is not None:
        _verdicts(device, full, small, key=key)
    if precision != "float32":
        st.caption(
            f"{fits.PRECISIONS[precision]} is arithmetic: these are the bytes that such weights "
            "would take. Nothing is quantized, and no accuracy is measured. Activations stay fp32."
        )
    if expansion := fits.expansion_line(unpruned):
        st.caption(expansion)
    with st.expander("Weights by layer, activations by position", key=f"{key}-parts"):
        _parts(full, small, key=key, dark=dark)


def _choices(*, key: str) -> tuple[TargetDevice | None, str]:
    """Draw the choice of device and precision; return None as device if a number is missing."""
    with st.container(horizontal=True, vertical_alignment="bottom", key=f"{key}-choices"):
        name = st.selectbox(
            "Device",
            [*DEVICES, fits.OWN],
            index=list(DEVICES).index(_FIRST),
            format_func=fits.device_title,
            key=f"{key}-device",
            width=460,
            help="Memories as the named documents state them, or numbers of your own.",
        )
        precision = st.segmented_control(
            "Weights",
            list(fits.PRECISIONS),
            default="float32",
            required=True,
            format_func=fits.PRECISIONS.__getitem__,
            key=f"{key}-weights",
            help="fp16 and int8 are arithmetic: the bytes that such weights would take.",
        )
    if name != fits.OWN:
        device = DEVICES[name]
        source = in_markdown(device.source)
        shown = f"[{source}]({device.url})" if device.url else source
        note = f" {in_markdown(device.note)}" if device.note else ""
        st.caption(f"Source: {shown}.{note}")
        return device, precision
    return _own(key=key), precision


def _own(*, key: str) -> TargetDevice | None:
    """Draw the fields of a device of one's own; return it if the numbers are given."""
    with st.container(horizontal=True, vertical_alignment="bottom", key=f"{key}-own"):
        flash = st.text_input(
            "Memory for weights",
            "1MiB",
            key=f"{key}-flash",
            width=220,
            help="Such as 524288, 512KiB or 2MB. Leave it empty if weights share the other memory.",
        )
        ram = st.text_input(
            "Memory for activations",
            "256KiB",
            key=f"{key}-ram",
            width=220,
            help="For activations and the neurons' state.",
        )
    try:
        return own_device(parse_size(flash) if flash.strip() else None, parse_size(ram))
    except InvalidSizeError as error:
        st.error(in_markdown(str(error)))
        return None


def _offer(workspace: Workspace, plan: PrunePlan | None, job: Job | None, *, key: str) -> None:
    """Draw the button that counts in the background, or how far that is."""
    if job is not None and job.state != "done":
        follow_job(workspace.store, job, key=f"{key}-job", every=0.5)
        return
    st.markdown("Not counted yet for this plan." if plan else "Not counted yet.")
    action_button(
        "Count memory",
        count_fits,
        workspace,
        plan,
        key=f"{key}-start",
        icon=":material/memory:",
        help="Runs the network on one empty image, in the background, and counts what its "
        "activations and neurons occupy. Needs no images.",
    )


def _verdicts(device: TargetDevice, full: Needs, small: Needs | None, *, key: str) -> None:
    with st.container(horizontal=True, key=f"{key}-verdicts"):
        for title, found in (("Current plan", small), ("Unpruned", full)):
            if found is None:
                continue
            against = found.on(device)
            with st.container(border=True, width=420, key=f"{key}-{title.split()[0].lower()}"):
                answer = (
                    ":green[:material/check_circle:] fits"
                    if against.fits
                    else ":red[:material/cancel:] does not fit"
                )
                st.markdown(f"**{title}** {answer}")
                facts_table(fits.limit_facts(against))
                st.caption(f"{fits.schedule_line(found)}.")
    if device.kind == "neuromorphic":
        st.caption(in_markdown(NEUROMORPHIC))


def _parts(full: Needs, small: Needs | None, *, key: str, dark: bool) -> None:
    _part("Weights by layer", fits.layer_needs(full, small), key=f"{key}-layers", dark=dark)
    _part(
        "Activations and neuron state by position",
        fits.position_needs(full, small),
        key=f"{key}-positions",
        dark=dark,
    )
    st.caption(
        "Bytes of one image in fp32, whatever the weights are: what live tensors occupy while "
        "each module runs, inputs and shortcuts that are still needed included. Code, operating "
        "system and copies inside kernels are not counted."
    )


def _part(title: str, found: list[Need], *, key: str, dark: bool) -> None:
    shown = fits.largest(found, _SHOWN)
    more = f", the {len(shown)} largest of {len(found)}" if len(shown) < len(found) else ""
    st.markdown(f"**{title}**{more}")
    st.plotly_chart(
        needs_chart(shown, dark=dark),
        key=key,
        theme=None,
        config=NO_TOOLBAR,
        alt=f"{title}{more}: bytes",
    )
    csv_button(fits.need_rows(found), f"{key.rpartition('-')[2]}.csv", key=f"{key}-csv")
