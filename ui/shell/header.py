"""The page header: title, choice of model and images.

The main script draws it, not the pages: the URL loses the value of a widget that a page draws when
the user leaves that page.
"""

from __future__ import annotations

from contextlib import suppress
from html import escape
from typing import Any

import streamlit as st

from psvit_core.errors import ModelError, PsvitError
from psvit_core.files import expand, expand_spec
from psvit_core.records import DEFAULT_MODEL
from psvit_core.zoo.cards import ModelCard, list_models, model_card
from psvit_core.zoo.sizing import parse_arguments
from ui.model import consent, loaders, recovery, roots, state
from ui.model.foreign import in_markdown
from ui.model.loaders import Choice
from ui.shell import links
from ui.shell.glossary import glossary_button

IMAGE_CHOICES = {"64": 64, "250": 250, "all": None}
_DEFAULT_IMAGES = "all"
_OLD_ENTRY = "Open a pruned file"  # in links of version 0.1, for ``OPEN_FILE``
_FIELDS = (state.FILE, state.CHECKPOINT, state.DATA, state.ARGUMENTS, state.ENTRY)


def draw_header(title: str, subtitle: str) -> None:
    """Draw the header of a page.

    Args:
        title: The page's name.
        subtitle: The page's purpose, in one line.
    """
    links.select_model()
    _take_named_model()
    for key in _FIELDS:
        if key not in st.query_params:  # known to the session, so a later value enters the URL
            state.set_default(key, "")
    state.restore_values(state.MODEL, state.IMAGES, state.RECOVERY, *_FIELDS)
    with st.container(key="head", horizontal=True, gap="medium"):
        st.html(f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p>")
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
            help="Type to search. Pruned files are models too: sweep and prune them again.",
        )
        st.segmented_control(
            "Images",
            list(IMAGE_CHOICES),
            default=_DEFAULT_IMAGES,
            required=True,
            key=state.IMAGES,
            bind="query-params",
            help="Number of validation images for new measurements. Fewer images run faster and "
            "give wider intervals.",
        )
        _recovery_control()
        glossary_button()
    # The Open page has these fields itself; hidden here, they keep their values in the URL.
    with st.container(key="header-files-hidden" if title == "Open" else "header-files"):
        if model in list_models() and _has_files(model):
            _ask_for_files(model_card(model))
        else:
            if model == loaders.OPEN_FILE:
                _ask_for_model_file()
            if _has_value(state.DATA):
                _ask_for_images("digits")
    state.remember_values(state.MODEL, state.IMAGES, state.RECOVERY, *_FIELDS)
    try:
        _check_places()
        _use_recovery()
    except PsvitError as error:  # a path that this app does not open, or that is none
        st.error(in_markdown(str(error)), icon=":material/error:")
        st.stop()


def _take_named_model() -> None:
    """Select the model that a link gives by name; the app's own links give the title."""
    asked = st.query_params.get(state.MODEL, "")
    if asked == _OLD_ENTRY:
        state.set_default(state.MODEL, loaders.OPEN_FILE)
    elif asked in list_models():
        state.set_default(state.MODEL, asked)


def _recovery_control() -> None:
    """Draw the choice of recovery."""
    st.segmented_control(
        "Recovery",
        recovery.options(st.query_params.get(state.RECOVERY)),  # shown as the URL has them
        default=recovery.default(),
        required=True,
        key=state.RECOVERY,
        bind="query-params",
        help="Recovery without training, which the accuracies of pruned networks include. **auto** "
        "fits the remaining weights to 256 calibration images, without labels. **none** is PSViT's "
        "own setting: a single shot that changes no other weight.",
    )


def _use_recovery() -> None:
    """Decide which recovery numbers include, and say so where it is not the chosen one."""
    wanted = recovery.chosen()
    workspace = _choice(wanted).workspace(loaders.open_store())
    possible = recovery.possible(workspace, wanted)
    recovery.use(wanted if possible else "none")
    if not possible:
        st.caption(
            "Recovery: none, because these images have no calibration split. Numbers are of "
            "networks as pruned."
        )


def _check_places() -> None:
    """Check the files and images in use before anything looks at them.

    Raises:
        OutsideError: If one lies outside the folders that users may name.
    """
    store, model = loaders.open_store(), state.get(state.MODEL) or DEFAULT_MODEL
    for key in (state.FILE, state.CHECKPOINT):
        roots.check_path(store, _value(key))
    roots.check_spec(store, _value(state.DATA))
    if model != loaders.OPEN_FILE and model not in list_models():
        roots.check_path(store, model)


def choice() -> Choice:
    """Return the model, images and recovery chosen in the header."""
    return _choice(recovery.used())


def _choice(method: str) -> Choice:
    model = state.get(state.MODEL) or DEFAULT_MODEL
    limit = IMAGE_CHOICES[state.get(state.IMAGES) or _DEFAULT_IMAGES]
    data = expand_spec(_value(state.DATA)) or None
    if model == loaders.OPEN_FILE:
        file = _path(state.FILE) or ""
        return Choice(
            model=file,
            limit=limit,
            data=data,
            arguments=_arguments(),
            entry=_value(state.ENTRY) or None,
            recovery=method,
        )
    if model not in list_models():  # a file exported by this app
        return Choice(model=model, limit=limit, data=data, recovery=method)
    checkpoint = _path(state.CHECKPOINT)
    entry = (_value(state.ENTRY) or None) if checkpoint else None
    return Choice(
        model=model,
        limit=limit,
        checkpoint=checkpoint,
        data=data,
        entry=entry,
        recovery=method,
    )


def _arguments() -> dict[str, Any]:
    """Return the arguments of the model file; without any if the text is invalid."""
    try:
        return parse_arguments(state.get(state.ARGUMENTS) or "")
    except ModelError:
        return {}  # reported under the field


def _path(key: str) -> str | None:
    """Return the path in a field, with ``~`` replaced by the home folder; None if it is empty."""
    return str(expand(_value(key))) if _value(key) else None


def _value(key: str) -> str:
    return (state.get(key) or "").strip()


def _has_value(key: str) -> bool:
    """Return whether the session, or on a first visit the URL, has a value for a key."""
    return bool(_value(key) or st.query_params.get(key))


def _has_files(model: str) -> bool:
    """Return whether a registered model takes weights or images from files."""
    card = model_card(model)
    incomplete = card.weights is None or not card.images_included
    return incomplete or _has_value(state.CHECKPOINT) or _has_value(state.DATA)


def _forget_files() -> None:
    """Clear the checkpoint of the previous model, and its images if their kind does not fit."""
    state.put(state.CHECKPOINT, "")
    state.put(state.ARGUMENTS, "")
    state.put(state.ENTRY, "")
    model, kind = state.get(state.MODEL), _value(state.DATA).partition(":")[0]
    if model in list_models() and model_card(model).data != kind:
        state.put(state.DATA, "")


def _consent(key: str) -> None:
    """Note that the user typed a path, and did not follow a link to it."""
    with suppress(PsvitError):  # the header says what is wrong, when it is drawn
        _check_places()
        consent.give(expand_spec(_value(key)) if key == state.DATA else _path(key))


def _ask_for_model_file() -> None:
    with st.container(horizontal=True, gap="medium", key="model-file"):
        st.text_input(
            "Model file",
            key=state.FILE,
            on_change=_consent,
            args=(state.FILE,),
            bind="query-params",
            placeholder="/path/to/model.safetensors",
            help="Path on this machine of a pruned file written by this app, or of a checkpoint of "
            "any size. Files that could run code are refused.",
        )
        arguments = st.text_input(
            "Arguments",
            key=state.ARGUMENTS,
            bind="query-params",
            placeholder="num_heads=8, T=4, image_size=224",
            help="What the tensors of a checkpoint do not reveal. The Open page lists the possible "
            "values. Pruned files need none.",
        )
        _ask_for_entry()
    try:
        parse_arguments(arguments or "")
    except ModelError as error:
        st.error(in_markdown(str(error)))


def _ask_for_files(card: ModelCard) -> None:
    """Draw the fields for weights that are not included, and for images."""
    example = card.file_name.split()[0] if card.file_name else "weights.pth"
    with st.container(horizontal=True, gap="medium", key="own-files"):
        if card.weights is None or card.images_included or _has_value(state.CHECKPOINT):
            st.text_input(
                "Checkpoint file",
                key=state.CHECKPOINT,
                on_change=_consent,
                args=(state.CHECKPOINT,),
                bind="query-params",
                placeholder=f"/path/to/{example}",
                help="Path on this machine of the published weights (.pth or .safetensors). Files "
                "that could run code are refused.",
            )
        if _has_value(state.CHECKPOINT):
            _ask_for_entry()
        _ask_for_images(card.data)
    files = _has_value(state.CHECKPOINT) or _has_value(state.DATA)
    if card.weights is not None and not card.images_included and not files:
        st.caption(
            f"Shown are the results that ship with this model. Its images, {card.data}, are not "
            f"included. To measure, say where they are: {card.data}:DIR."
        )


def _ask_for_entry() -> None:
    """Draw the field for one of several state dicts, if one was chosen on the Open page."""
    if _has_value(state.ENTRY):
        st.text_input(
            "Weights in the file",
            key=state.ENTRY,
            bind="query-params",
            help="Name of the state dict to load from a file that contains several, such as a "
            "moving average of the weights. Leave it empty for the usual one.",
        )


def _ask_for_images(kind: str) -> None:
    st.text_input(
        "Validation images",
        key=state.DATA,
        on_change=_consent,
        args=(state.DATA,),
        bind="query-params",
        placeholder=kind if kind.startswith("digits") else f"{kind}:/path/to/{kind}",
        help="A data specification, as on the command line: imagenet:DIR, cifar10:DIR, folder:DIR "
        "(one subfolder per class) or npz:FILE. Check the images on the Open page. Sizes and "
        "groups need no images.",
    )
