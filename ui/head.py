"""The head of every page: title, model switcher, images; and what they are set to.

The main script draws it, not the pages: a widget that a page draws loses its value in the URL when
the page is left.
"""

from __future__ import annotations

from html import escape

import streamlit as st

from psvit_core.zoo.cards import DEFAULT_MODEL, ModelCard, list_models, model_card
from ui import links, loaders, state
from ui.loaders import Choice

IMAGE_CHOICES = {"64": 64, "250": 250, "all": None}
_DEFAULT_IMAGES = "all"


def draw_head(title: str, question: str) -> None:
    """Draw the head of a page.

    Args:
        title: The page's name.
        question: What the page answers, in one line.
    """
    links.choose_model()
    for key in (state.FILE, state.CHECKPOINT, state.DATA):
        if key not in st.query_params:  # one that is known gets into the URL as soon as it is set
            state.settle_first(key, "")
    state.hold(state.MODEL, state.IMAGES, state.FILE, state.CHECKPOINT, state.DATA)
    with st.container(key="head", horizontal=True, gap="medium"):
        st.html(f"<h1>{escape(title)}</h1><p>{escape(question)}</p>")
        titles = loaders.model_titles(loaders.open_store())
        model = st.selectbox(
            "Model",
            list(titles),
            index=list(titles).index(DEFAULT_MODEL),
            format_func=lambda name: titles.get(name, name),
            key=state.MODEL,
            bind="query-params",
            on_change=_forget_files,
            width=330,
            help="Type to search. A pruned file is a model too: it can be swept and pruned again.",
        )
        st.segmented_control(
            "Images",
            list(IMAGE_CHOICES),
            default=_DEFAULT_IMAGES,
            required=True,
            key=state.IMAGES,
            bind="query-params",
            help="How many validation images new measurements use. Fewer run faster and give "
            "wider intervals.",
        )
    if model in list_models() and _has_files(model):
        _ask_for_files(model_card(model))
    else:
        if model == loaders.OPEN_FILE:
            _ask_for_pruned_file()
        if _given(state.DATA):
            _ask_for_images("digits")
    state.note(state.MODEL, state.IMAGES, state.FILE, state.CHECKPOINT, state.DATA)


def choice() -> Choice:
    """What the head is set to."""
    model = state.chosen(state.MODEL) or DEFAULT_MODEL
    limit = IMAGE_CHOICES[state.chosen(state.IMAGES) or _DEFAULT_IMAGES]
    data = _path(state.DATA)
    if model == loaders.OPEN_FILE:
        return Choice(model=_path(state.FILE) or "", limit=limit, data=data)
    if model not in list_models():  # a file that was exported here
        return Choice(model=model, limit=limit, data=data)
    return Choice(model=model, limit=limit, checkpoint=_path(state.CHECKPOINT), data=data)


def _path(key: str) -> str | None:
    return (state.chosen(key) or "").strip() or None


def _given(key: str) -> bool:
    """Whether a path stands in the session or, on a first visit, in the URL."""
    return bool(_path(key) or st.query_params.get(key))


def _has_files(model: str) -> bool:
    """Whether a registered model takes weights or images from files."""
    return (
        model_card(model).weights is None or _given(state.CHECKPOINT) or _given(state.DATA)
    )  # fmt: skip


def _forget_files() -> None:
    """Another model was chosen: files of the one before are not its own, images may be."""
    state.choose(state.CHECKPOINT, "")
    model, kind = state.chosen(state.MODEL), (_path(state.DATA) or "").partition(":")[0]
    if model in list_models() and model_card(model).data != kind:
        state.choose(state.DATA, "")


def _ask_for_pruned_file() -> None:
    st.text_input(
        "Pruned file",
        key=state.FILE,
        bind="query-params",
        placeholder="/path/to/pruned.safetensors",
        help="A .safetensors file that this tool wrote, on this machine.",
    )


def _ask_for_files(card: ModelCard) -> None:
    """Where a model finds weights that are not included, and its images."""
    example = card.file_name.split()[0] if card.file_name else "weights.pth"
    with st.container(horizontal=True, gap="medium", key="own-files"):
        st.text_input(
            "Checkpoint file",
            key=state.CHECKPOINT,
            bind="query-params",
            placeholder=f"/path/to/{example}",
            help="The official weights (.pth or .safetensors) on this machine. Files that would "
            "run code are refused.",
        )
        _ask_for_images(card.data)


def _ask_for_images(kind: str) -> None:
    st.text_input(
        "Validation images",
        key=state.DATA,
        bind="query-params",
        placeholder=kind if kind.startswith("digits") else f"{kind}:/path/to/{kind}",
        help="Where the images are, in words that the command line takes too: imagenet:DIR, "
        "cifar10:DIR, folder:DIR with class folders, npz:FILE. The Open page checks them. Sizes "
        "and groups need none.",
    )
