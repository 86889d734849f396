"""Where jobs run: on this machine, or on a Ray cluster."""

from __future__ import annotations

from importlib.util import find_spec

import streamlit as st

from psvit_core.cluster.settings import ENGINES, EngineSettings
from psvit_core.errors import PsvitError
from psvit_core.jobs import engines
from psvit_core.storage.store import Store
from ui.model import roots, state
from ui.model.foreign import in_markdown
from ui.panels.widgets import action_button

_NAMES = {"local": "This machine", "ray": "A Ray cluster"}
_MOST_GPUS, _MOST_WORKERS = 64.0, 100_000


def engine_panel(store: Store, *, key: str) -> None:
    """Draw where jobs run, and the choice of it for whoever may make it."""
    with st.expander("Where jobs run", key=key):
        try:
            now = engines.engine_of_jobs(store)
        except PsvitError as error:
            st.warning(in_markdown(str(error)), icon=":material/warning:")
            now = EngineSettings()
        st.markdown(
            f"Jobs that start now run on **{in_markdown(engines.engine_text(now))}**. A Ray "
            "cluster runs sweeps, fronts, the recoveries of exported files, and trainings. All "
            "else, such as single measurements, runs on this machine."
        )
        if reason := _why_fixed():
            st.info(reason, icon=":material/lock:")
        else:
            _choice(store, now, key=key)


def _why_fixed() -> str:
    """Return why the page cannot change it; empty if it can."""
    if engines.is_fixed():
        return "This was set when the app was started (`psvit app --engine`)."
    if roots.in_force():
        return (
            "Other machines may reach this app, so only the person who runs it can choose, on its "
            "machine: `psvit jobs engine`."
        )
    return ""


def _choice(store: Store, now: EngineSettings, *, key: str) -> None:
    has_ray = find_spec("ray") is not None
    if not has_ray:
        st.info(
            "A cluster needs the package ray: `pip install 'psvit-explorer[cluster]'`.",
            icon=":material/info:",
        )
    names = list(ENGINES) if has_ray else ["local"]
    name = st.segmented_control(
        "Engine",
        names,
        default=now.name if now.name in names else "local",
        required=True,
        format_func=_NAMES.__getitem__,
        key=f"{key}-name",
        persist_state="session",
    )
    address, gpus, workers = "", 1.0, 0
    if name == "ray":
        with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
            address = st.text_input(
                "Address",
                now.address or "",
                placeholder="HOST:PORT",
                key=f"{key}-address",
                help="Address of a running Ray cluster that this machine has joined. Empty: Ray "
                "starts on this machine for each job. Ray runs the code of everyone who reaches "
                "its ports: name only a cluster that you trust.",
            )
            gpus = st.number_input(
                "GPUs of a worker",
                0.01,
                _MOST_GPUS,
                now.gpus,
                step=0.25,
                format="%g",
                key=f"{key}-gpus",
                width=160,
                help="Only for CUDA devices. With 0.5, two workers share one GPU.",
            )
            workers = st.number_input(
                "Workers",
                0,
                _MOST_WORKERS,
                now.workers or 0,
                key=f"{key}-workers",
                width=130,
                help="0: with CUDA, as many as the cluster's GPUs allow, else one per CPU core.",
            )
    values = (name or now.name, address.strip() or None, float(gpus), int(workers) or None)
    action_button("Use for the next jobs", _choose, store, *values, key=f"{key}-use")


def _choose(store: Store, name: str, address: str | None, gpus: float, workers: int | None) -> None:
    chosen = EngineSettings(name=name, address=address, gpus=gpus, workers=workers)
    engines.choose_engine(store, chosen)
    text = in_markdown(engines.engine_text(chosen))
    state.leave_message(f"Jobs that start now run on {text}.")
