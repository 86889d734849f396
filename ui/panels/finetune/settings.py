"""Settings of a run: the plan, the recovery, the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from psvit_core.records import (
    RECOVERIES,
    FinetuneSettings,
    ModelSummary,
    PrunePlan,
    RecoverySettings,
)
from psvit_core.tasks.trials import vary
from psvit_core.workspace import Workspace
from ui.model import formats, saved_plans, state
from ui.panels.plan import plan_line

CURRENT, FILE_AS_IS = "current", "file"  # ids among those of saved plans
EPOCHS = {"0": 0.0, "0.5": 0.5, "1": 1.0, "5": 5.0, "20": 20.0, "Other": None}
LEAST_EPOCHS = 0.01
_METHODS = {
    "none": "the pruned network is left unchanged",
    "bn": "BatchNorm statistics are estimated again",
    "lsq": "each layer that lost inputs is refitted by least squares",
    "both": "least squares, then BatchNorm",
    "stages": "all layers are refitted in order, and correct the error of their residual stream",
    "stages_bn": "the same, with BatchNorm statistics estimated in turn",
    "auto": "the method whose outputs come closest to the unpruned network's",
}
_RECOVERY_HELP = "Takes seconds and a few hundred images, before any training. " + " · ".join(
    f"{formats.RECOVERY_NAMES[method]}: {text}" for method, text in _METHODS.items()
)


@dataclass(frozen=True, kw_only=True)
class PlanChoice:
    """The plan that a run starts from."""

    plan: PrunePlan | None  # None: a pruned file as it is


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings of a run."""

    plan: PrunePlan | None  # None: a pruned file as it is
    recovery: RecoverySettings
    training: FinetuneSettings | None  # None: recovery only
    trials: tuple[FinetuneSettings, ...] = ()  # to keep the best of; empty: ``training`` alone

    @property
    def empty(self) -> bool:
        """Whether the run would change nothing."""
        return self.training is None and self.recovery.method == "none"


def plan_choice(workspace: Workspace, summary: ModelSummary, *, key: str) -> PlanChoice | None:
    """Draw the choice of the plan; return None if there is nothing to train."""
    draft = state.draft(workspace.store, summary)
    names: dict[str, str] = {}
    plans: dict[str, PrunePlan | None] = {}
    if not draft.empty:
        names[CURRENT], plans[CURRENT] = "Current plan", draft.plan
    if workspace.card is None:
        names[FILE_AS_IS], plans[FILE_AS_IS] = "None: the file as it is", None
    for item in saved_plans.list_plans(workspace.store, summary):
        names[item.id], plans[item.id] = item.name, item.plan
    if not plans:
        st.info(
            "Nothing is pruned yet. Make a plan on the Tune page, or open a pruned file as the "
            "model, then regain its accuracy here.",
            icon=":material/content_cut:",
        )
        return None
    name = f"{key}/{summary.weights_hash}"
    state.ensure_option(name, [*names], next(iter(names)))
    chosen = st.selectbox(
        "Plan",
        [*names],
        format_func=names.__getitem__,
        key=name,
        width=320,
        help="What is removed before training: the current plan, or one saved on the Compare page.",
    )
    plan = plans[chosen]
    if plan is not None:
        st.markdown(plan_line(summary, plan))
    return PlanChoice(plan=plan)


def settings_form(plan: PrunePlan | None, *, key: str) -> RunSettings:
    """Draw the settings of recovery and training."""
    method = _recovery_method(key=f"{key}-recovery") if plan is not None else "none"
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key=f"{key}-row"):
        epochs = _epochs(key=key)
    with st.expander("More: learning rate, distillation, augmentation …", key=f"{key}-more"):
        training, n_images = _more_settings(epochs, key=key)
        trials = _trials(training, key=f"{key}-try")
    return RunSettings(
        plan=plan,
        recovery=RecoverySettings(method=method, n_images=n_images),
        training=training if epochs else None,
        trials=trials if epochs else (),
    )


def _recovery_method(*, key: str) -> str:
    chosen = st.segmented_control(
        "Recovery without training",
        list(RECOVERIES),
        default="auto",
        required=True,
        format_func=formats.RECOVERY_NAMES.__getitem__,
        key=key,
        persist_state="session",
        wrap=True,
        help=_RECOVERY_HELP,
    )
    return chosen or "none"


def _epochs(*, key: str) -> float:
    choice = st.segmented_control(
        "Epochs",
        list(EPOCHS),
        default="1",
        required=True,
        key=f"{key}-epochs",
        persist_state="session",
        help="Passes over the training images. 0: recovery only.",
    )
    epochs = EPOCHS[choice or "1"]
    if epochs is not None:
        return epochs
    return st.number_input(
        "Number of epochs",
        LEAST_EPOCHS,
        1000.0,
        2.0,
        step=0.5,
        format="%g",
        key=f"{key}-other",
        persist_state="session",
        width=130,
    )


@dataclass(frozen=True)
class _Field:
    """A number that the form asks for."""

    label: str
    low: float
    high: float
    default: float
    step: float = 1
    help: str | None = None

    def draw(self, column: Any, key: str) -> Any:
        """Draw the field in a column; return its number."""
        decimal = isinstance(self.default, float)
        return column.number_input(
            self.label,
            self.low,
            self.high,
            self.default,
            step=self.step,
            format="%g" if decimal else None,
            key=key,
            persist_state="session",
            help=self.help,
        )


_USUAL = FinetuneSettings()
_FIELDS = (  # by column; the names end the widgets' keys
    {
        "lr": _Field(
            "Learning rate", 1e-6, 1.0, _USUAL.lr, 1e-4, "The peak: warm-up, then cosine decay."
        ),
        "alpha": _Field(
            "Distillation",
            0.0,
            1.0,
            _USUAL.alpha,
            0.1,
            "Weight of the unpruned network's outputs in the loss. 0: labels only.",
        ),
        "patience": _Field(
            "Patience, epochs",
            0,
            1000,
            0,
            help="Stops after this many epochs without improvement. 0: never.",
        ),
    },
    {
        "batch": _Field("Batch size", 2, 1024, _USUAL.batch, 2),
        "temperature": _Field(
            "Temperature",
            0.1,
            20.0,
            _USUAL.temperature,
            0.5,
            "Softens the unpruned network's outputs in the distillation.",
        ),
        "smoothing": _Field("Label smoothing", 0.0, 0.9, _USUAL.label_smoothing, 0.05),
        "seed": _Field("Seed", 0, 2**31 - 1, _USUAL.seed),
    },
    {
        "train": _Field("Training images", 0, 10_000_000, 0, 1000, "A stratified subset. 0: all."),
        "decay": _Field("Weight decay", 0.0, 1.0, _USUAL.weight_decay, 0.01),
        "mixup": _Field("Mixup", 0.0, 2.0, _USUAL.mixup, 0.1, "Its alpha. 0: off."),
        "calib": _Field("Recovery images", 2, 100_000, RecoverySettings().n_images, 64),
    },
)


def _more_settings(epochs: float, *, key: str) -> tuple[FinetuneSettings, int]:
    """Draw the other settings; return those of training and the number of recovery images."""
    columns = st.columns(len(_FIELDS), gap="medium")
    values = {
        name: field.draw(column, f"{key}-{name}")
        for column, fields in zip(columns, _FIELDS, strict=True)
        for name, field in fields.items()
    }
    augment = columns[0].selectbox(
        "Augmentation",
        ["auto", "affine", "flip", "none"],
        key=f"{key}-augment",
        persist_state="session",
        help="auto: affine for grey images, flip for colour images.",
    )
    training = FinetuneSettings(
        epochs=max(epochs, LEAST_EPOCHS),
        lr=values["lr"],
        batch=int(values["batch"]),
        weight_decay=values["decay"],
        alpha=values["alpha"],
        temperature=values["temperature"],
        label_smoothing=values["smoothing"],
        mixup=values["mixup"],
        augment=augment,
        patience=int(values["patience"]) or None,
        train_images=int(values["train"]) or None,
        seed=int(values["seed"]),
    )
    return training, int(values["calib"])


_MOST_VALUES = 4  # of each: 64 trials at most
_LRS, _ALPHAS = (1e-4, 3e-4, 1e-3, 3e-3), (0.0, 0.25, 0.5, 0.75, 1.0)


def _values_to_try(column: Any, what: str, values: tuple[float, ...], *, key: str) -> list[float]:
    chosen: list[float] = column.multiselect(
        f"Try {what}",
        values,
        format_func="{:g}".format,
        key=key,
        persist_state="session",
        placeholder="only the one above",
        max_selections=_MOST_VALUES,
        help="Trains once with each value, or with each combination of values, and keeps the "
        "network with the best validation accuracy.",
    )
    return chosen


def _trials(training: FinetuneSettings, *, key: str) -> tuple[FinetuneSettings, ...]:
    """Draw the choice of values to try; return the settings of all trials, none for just one."""
    lrs, alphas, seeds = st.columns(3, gap="medium")
    values = {
        "lr": _values_to_try(lrs, "learning rates", _LRS, key=f"{key}-lr"),
        "alpha": _values_to_try(alphas, "distillation weights", _ALPHAS, key=f"{key}-alpha"),
        "seed": range(
            training.seed,
            training.seed
            + seeds.number_input(
                "Seeds to try",
                1,
                _MOST_VALUES,
                1,
                key=f"{key}-seeds",
                persist_state="session",
                help="Consecutive ones, from the seed above.",
            ),
        ),
    }
    chosen = {name: tuple(given) for name, given in values.items() if len(given)}
    trials = vary(training, chosen)
    return trials if len(trials) > 1 else ()
