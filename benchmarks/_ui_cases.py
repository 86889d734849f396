"""Models, servers and the page of sliders for ``benchmarks/ui.py``."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from psvit_core.jobs import client
from psvit_core.records import ChannelGroup, ModelSummary, ShapeTable, Subject
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import model_card
from tests.ui.example import put_sweep

ROOT = Path(__file__).resolve().parents[1]
MODEL = "meta_spikeformer_15m"
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

#: The page to compare with, as a script.
SLIDERS = """
import sys
sys.path.insert(0, {root!r})
import streamlit as st
from psvit_core.plan.size import plan_size
from ui.model import drafts, formats, loaders, predictor, state, sweeps
from ui.model.loaders import Choice

def sliders():
    store = loaders.open_store()
    summary = Choice(model={path!r}, limit=None).model_workspace(store).summary()
    view = next(v for v in sweeps.list_sweeps(store, summary) if v.complete)
    known = predictor.make_predictor(view.table)
    draft = state.draft(store, summary)
    base, size = plan_size(summary, None), plan_size(summary, draft.plan)
    st.title("Sliders")
    tiles = st.columns(4)
    tiles[0].metric("Memory", formats.megabytes(size.bytes))
    tiles[1].metric("Parameters", f"{{size.params:,}}")
    tiles[2].metric("MACs per time step", formats.short_count(size.macs))
    tiles[3].metric("Predicted drop", formats.drop(known.drop(draft.plan)))
    for column, at in zip(st.columns(4), range(4)):
        for group in summary.groups[at::4]:
            name = "s/" + group.group_id
            def move(group_id=group.group_id, name=name):
                new = drafts.with_ratio(state.draft(store, summary), summary, group_id,
                                        st.session_state[name] / 100)
                state.set_draft(store, summary, new)
            with column:
                st.slider(group.label, 0, 95, key=name, on_change=move, persist_state="session")

def other():
    st.title("Other")

st.set_page_config(layout="wide")
pages = [st.Page(sliders, title="Sliders", default=True), st.Page(other, title="Other")]
st.navigation(pages, position="top").run()
"""


# ---- models ----------------------------------------------------------------------------------


def put_model(store: Store, n: int) -> tuple[int, str]:
    """Store the description and sweep of a model with ``n`` groups; return (n, its file)."""
    path = store.folder / f"model{n}.safetensors"
    path.touch()
    model = grown(full_size(), n)
    model = dataclasses.replace(model, model=str(path), weights_hash=f"{n:064d}")
    put_sweep(store, model, RATIOS, n_images=500)
    job = client.Job(
        id=f"model{n}",
        task="summary",
        title="",
        state="done",
        created=1.0,
        ended=1.0,
        params={"subject": Subject(model=str(path)).to_dict()},
        result={"summary": model.to_dict()},
    )
    client.save(store, job)
    return n, str(path)


def full_size() -> ModelSummary:
    """Return the description of the full-size model with random weights."""
    from psvit_core.groups import summarize
    from psvit_core.importance import rank
    from psvit_core.zoo.registry import build_model

    card = model_card(MODEL)
    model = build_model(card.family, **card.arguments)
    return summarize(model, {"l2": rank(model, "l2")})


def grown(model: ModelSummary, n: int) -> ModelSummary:
    """Return the model with copies of one block appended until it has ``n`` groups."""
    block = [g for g in model.groups if g.block == "Block 3.1"]
    copy = 0
    while len(model.groups) < n:
        copy += 1
        model = _with_copy(model, block[: n - len(model.groups)], copy)
    return model


def _with_copy(model: ModelSummary, groups: list[ChannelGroup], copy: int) -> ModelSummary:
    """Return the model with a copy of these groups, their tensors and their compute."""
    prefix = f"copy{copy}."
    new = {g.group_id: prefix + g.group_id for g in groups}
    copies = [
        dataclasses.replace(g, group_id=new[g.group_id], block=f"Block 5.{copy}") for g in groups
    ]
    tensors = [
        dataclasses.replace(
            t,
            name=prefix + t.name,
            groups=tuple(new.get(g, g) if g else None for g in t.groups),
        )
        for t in model.shapes.tensors
        if not t.name.startswith("copy") and any(g in new for g in t.groups if g)
    ]
    terms = [
        dataclasses.replace(
            c, layer=prefix + c.layer, groups=tuple(new.get(g, g) for g in c.groups)
        )
        for c in model.shapes.terms
        if not c.layer.startswith("copy") and any(g in new for g in c.groups)
    ]
    rankings = {
        criterion: {**units, **{new[g.group_id]: units[g.group_id] for g in groups}}
        for criterion, units in model.rankings.items()
    }
    shapes = ShapeTable(
        tensors=(*model.shapes.tensors, *tensors), terms=(*model.shapes.terms, *terms)
    )
    return dataclasses.replace(
        model, groups=(*model.groups, *copies), shapes=shapes, rankings=rankings
    )


# ---- servers ---------------------------------------------------------------------------------


@contextmanager
def served(
    script: Path,
    cache: str,
    *,
    warm: bool = False,
    measures: bool = False,
    arguments: Sequence[str] = (),
) -> Iterator[str]:
    """Run a script's server over a store; yield its address.

    Args:
        script: The main script.
        cache: Folder of the store.
        warm: Start a worker at once.
        measures: Measure edits at once on the Tune page.
        arguments: Further arguments of ``streamlit run``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.headless", "true"]
    process = subprocess.Popen(
        [*command, "--server.port", str(port), *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PSVIT_CACHE": cache,
            "PSVIT_WARM": str(int(warm)),
            "PSVIT_DRAG": str(int(measures)),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=2)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()
