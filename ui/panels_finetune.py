"""Panels of the Fine-tune page: what is trained and how, the live curve, what came out."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import streamlit as st

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.engine import RecoverySettings
from psvit_core.records import (
    RECOVERIES,
    FinetuneSettings,
    Interval,
    Measurement,
    ModelSummary,
    PrunePlan,
)
from psvit_core.workspace import Workspace
from ui import compare, files, kept, loaders, state, training, words
from ui.panels_job import job_panel, live
from ui.panels_plan import default_file_name, plan_line
from ui.panels_tune_measure import measured_plans
from ui.training_chart import training_figure

CURRENT, AS_IT_IS = "current", "file"  # ids beside those of kept plans
EPOCHS = {"0": 0.0, "0.5": 0.5, "1": 1.0, "5": 5.0, "20": 20.0, "Other": None}
_HELP = {
    "none": "the pruned network as it is",
    "bn": "BatchNorm statistics anew",
    "lsq": "each layer that lost inputs is refit by least squares",
    "both": "both of them",
    "auto": "what brings the outputs nearest to the unpruned network's",
}


# ---- what and how ----------------------------------------------------------------------------


def plan_choice(
    workspace: Workspace, summary: ModelSummary, *, key: str
) -> tuple[bool, PrunePlan | None]:
    """Ask which plan; returns (whether there is anything to train, the plan; None: the file)."""
    draft = state.draft(workspace.store, summary)
    names: dict[str, str] = {}
    plans: dict[str, PrunePlan | None] = {}
    if not draft.empty:
        names[CURRENT], plans[CURRENT] = "Current plan", draft.plan
    if workspace.card is None:
        names[AS_IT_IS], plans[AS_IT_IS] = "None: the file as it is", None
    for item in kept.kept_plans(workspace.store, summary):
        names[item.id], plans[item.id] = item.name, item.plan
    if not plans:
        st.info(
            "Nothing is pruned yet. Make a plan on the Tune page, or open a pruned file as the "
            "model; then win its accuracy back here.",
            icon=":material/content_cut:",
        )
        return False, None
    name = f"{key}/{summary.weights_hash}"
    state.settle(name, [*names], next(iter(names)))
    chosen = st.selectbox(
        "Plan", [*names], format_func=names.__getitem__, key=name, width=320,
        help="What is removed before training: the current plan or one kept on the Compare page.",
    )  # fmt: skip
    plan = plans[chosen]
    if plan is not None:
        st.markdown(plan_line(summary, plan))
    return True, plan


def settings_form(
    plan: PrunePlan | None, *, key: str
) -> tuple[RecoverySettings, FinetuneSettings | None]:
    """Ask for recovery and training; None: no training."""
    method = "none"
    if plan is not None:
        method = st.segmented_control(
            "Recovery without training", list(RECOVERIES), default="auto", required=True,
            format_func=training.RECOVERY_NAMES.__getitem__, key=f"{key}-recovery",
            persist_state="session", wrap=True,
            help="From a few hundred images, in seconds, before training. "
            + " · ".join(f"{training.RECOVERY_NAMES[m]}: {text}" for m, text in _HELP.items()),
        ) or "none"  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key=f"{key}-row"):
        choice = st.segmented_control(
            "Epochs", list(EPOCHS), default="1", required=True, key=f"{key}-epochs",
            persist_state="session",
            help="Passes over the training images; 0 recovers only.",
        )  # fmt: skip
        epochs = EPOCHS[choice or "1"]
        if epochs is None:
            epochs = st.number_input(
                "How many", 0.01, 1000.0, 2.0, step=0.5, format="%g", key=f"{key}-other",
                persist_state="session", width=130,
            )  # fmt: skip
    with st.expander("More: learning rate, distillation, augmentation …", key=f"{key}-more"):
        settings, n_calib = _more(epochs, key=key)
    recovery = RecoverySettings(method=method, n_images=n_calib)
    return recovery, settings if epochs else None


def _more(epochs: float, *, key: str) -> tuple[FinetuneSettings, int]:
    """All other settings, and how many calibration images recovery sees."""
    usual = FinetuneSettings()

    def number(
        at: Any, name: str, label: str, low: Any, high: Any, value: Any, **options: Any
    ) -> Any:
        return at.number_input(
            label, low, high, value, key=f"{key}-{name}", persist_state="session", **options
        )

    a, b, c = st.columns(3, gap="medium")
    lr = number(a, "lr", "Learning rate", 1e-6, 1.0, usual.lr, step=1e-4, format="%g",
                help="The largest one; it rises, then falls as a cosine.")  # fmt: skip
    batch = number(b, "batch", "Images a step", 2, 1024, usual.batch, step=2)
    n_train = number(c, "train", "Training images", 0, 10_000_000, 0, step=1000,
                     help="A stratified subset; 0: all.")  # fmt: skip
    alpha = number(a, "alpha", "Distillation", 0.0, 1.0, usual.alpha, step=0.1, format="%g",
                   help="Weight of the unpruned network's answers; 0: labels only.")  # fmt: skip
    warm = number(b, "temperature", "Temperature", 0.1, 20.0, usual.temperature, step=0.5,
                  format="%g", help="How far the teacher's answers are softened.")  # fmt: skip
    decay = number(c, "decay", "Weight decay", 0.0, 1.0, usual.weight_decay, step=0.01, format="%g")
    patience = number(a, "patience", "Patience, epochs", 0, 1000, 0,
                      help="Stop after so many epochs that are no better; 0: never.")  # fmt: skip
    smoothing = number(
        b, "smoothing", "Label smoothing", 0.0, 0.9, usual.label_smoothing, step=0.05, format="%g"
    )
    mixup = number(c, "mixup", "Mixup", 0.0, 2.0, usual.mixup, step=0.1, format="%g",
                   help="Its alpha; 0: off.")  # fmt: skip
    augment = a.selectbox(
        "Augmentation", ["auto", "affine", "flip", "none"], key=f"{key}-augment",
        persist_state="session", help="auto: affine for grey, flip for colour images.",
    )  # fmt: skip
    seed = number(b, "seed", "Seed", 0, 2**31 - 1, usual.seed)
    n_calib = number(
        c, "calib", "Recovery images", 2, 100_000, RecoverySettings().n_images, step=64
    )
    settings = FinetuneSettings(
        epochs=max(epochs, 0.01), lr=lr, batch=int(batch), weight_decay=decay, alpha=alpha,
        temperature=warm, label_smoothing=smoothing, mixup=mixup, augment=augment,
        patience=int(patience) or None, train_images=int(n_train) or None, seed=int(seed),
    )  # fmt: skip
    return settings, int(n_calib)


def start_panel(
    workspace: Workspace,
    summary: ModelSummary,
    plan: PrunePlan | None,
    recovery: RecoverySettings,
    settings: FinetuneSettings | None,
    job: Job | None,
    *,
    key: str,
) -> None:
    """The estimate of time, and the button."""
    nothing = settings is None and recovery.method == "none"
    running = job is not None and job.active
    pace = training.epoch_seconds(workspace.jobs("finetune"), settings) if settings else None
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key=key):
        st.button(
            "Fine-tune" if settings else "Recover", key=f"{key}-start", type="primary",
            icon=":material/model_training:", disabled=nothing or running, on_click=_start,
            args=(workspace, summary, plan, recovery, settings),
        )  # fmt: skip
        st.markdown(
            "Choose a recovery, or some epochs."
            if nothing
            else training.estimate_line(settings, pace)
        )


def _start(
    workspace: Workspace,
    summary: ModelSummary,
    plan: PrunePlan | None,
    recovery: RecoverySettings,
    settings: FinetuneSettings | None,
) -> None:
    name = _file_name(summary, plan, "tuned" if settings else "recovered")
    if settings is not None:
        workspace.start_finetune(plan, settings, name, recovery)
    elif plan is not None:
        workspace.export(plan, name, recovery, measure=True)


def _file_name(summary: ModelSummary, plan: PrunePlan | None, suffix: str) -> str:
    before = default_file_name(summary, plan) if plan else Path(summary.model).name
    return f"{Path(before).stem.removesuffix('-tuned')}-{suffix}.safetensors"


# ---- while it runs ---------------------------------------------------------------------------


def training_jobs(workspace: Workspace) -> list[Job]:
    """Fine-tunings and recoveries that were asked for here, newest first."""
    return [
        job
        for job in workspace.jobs("finetune", "export")
        if job.task == "finetune" or job.params.get("measure")
    ]


def run_panel(
    workspace: Workspace, summary: ModelSummary, job: Job, *, dark: bool, key: str
) -> None:
    """The newest job: its curve while it runs and after, progress, stop, result."""
    reference = _reference(workspace, summary, job)

    def draw() -> bool:
        now = client.find_job(workspace.store, job.id)
        noun = "Fine-tuning" if now.task == "finetune" else "Recovery"
        going = job_panel(workspace.store, job.id, key=f"{key}-job", noun=noun)
        if now.task != "finetune":
            return going
        records = workspace.finetune_records(now)
        if going:
            _stop_row(workspace, now, training.now_line(records), key=key)
        if records:
            epochs = FinetuneSettings.from_dict(now.params["settings"]).epochs
            figure = training_figure(
                records, reference, epochs=max(epochs, records[-1].epoch), dark=dark
            )
            st.plotly_chart(figure, key=f"{key}-curve", config={"displayModeBar": False})
        return going

    live(draw, active=job.active)


def _stop_row(workspace: Workspace, job: Job, line: str, *, key: str) -> None:
    stopping = client.stop_asked(workspace.store, job.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.markdown(
            "Stopping: the best epoch is being written." if stopping else line, width="stretch"
        )
        if job.state == "running":
            st.button(
                "Stop, keep the best", key=f"{key}-stop", icon=":material/stop_circle:",
                disabled=stopping, on_click=_stop, args=(workspace, job.id),
                help="Ends after the step that runs, measures, and writes the best epoch's "
                "network. Cancel writes nothing, and can be resumed.",
            )  # fmt: skip


def _stop(workspace: Workspace, job_id: str) -> None:
    client.stop(workspace.store, job_id)


def _reference(workspace: Workspace, summary: ModelSummary, job: Job) -> training.Reference:
    plan = job.params.get("plan")
    if plan is None:  # a file that was pruned before; what is measured here speaks of the file
        found = compare.measured_by(job, "file")
        return training.Reference(baseline=found.baseline_accuracy if found else None)
    measured = [past.measurement for past in measured_plans(workspace, summary)]
    whole: Measurement | None = loaders.measurement(workspace, None)
    return training.reference(
        [*([whole] if whole else []), *measured],
        plan["kept"],
        workspace.subject.limit,
        compare.measured_by(job, "pruned"),
    )


# ---- what came out ---------------------------------------------------------------------------


def result_panel(workspace: Workspace, summary: ModelSummary, job: Job, *, key: str) -> None:
    """Accuracy before and after, the file, how it came to be."""
    report, recovery = compare.report_of(job), compare.recovery_of(job)
    written = compare.measured_by(job, "file")
    start: Interval | None
    start = report.epochs[0].val_accuracy if report else written.accuracy if written else None
    reference = _reference(workspace, summary, job)
    lines = training.accuracy_lines(reference, recovery, start, report)
    body = "\n".join(f"| {name} | {value} |" for name, value in lines)
    st.markdown(f"| | |\n|:--|:--|\n{body}")
    now = compare.best_accuracy(report) if report else start
    if back := training.back_line(reference, start, now):
        st.markdown(back)
    if report and start:
        st.markdown(training.gain_line(start, report))
    st.caption(
        f"Top-1 on {words.images(workspace.subject.limit)} of the validation split, 95 % "
        "intervals. The best epoch was chosen on these images: judge it on the test split."
    )
    _file_row(workspace, job, key=key)
    st.caption(training.provenance_line(job, recovery, report))


def _file_row(workspace: Workspace, job: Job, *, key: str) -> None:
    path = Path(job.result["path"])
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key=key):
        if not path.is_file():
            st.markdown(f"The file {path.name} is gone; train again to write it.")
            return
        link = escape(files.file_link(workspace.store, job))
        st.html(
            f'<a class="psvit-button" href="{link}" download="{escape(path.name)}">Download</a>',
            width="content",
        )
        st.markdown(f"**{path.name}**  \n{job.result['bytes']:,} bytes", width="content")
        st.button(
            "Open here", key=f"{key}-open", on_click=_open, args=(str(path),),
            help="Look at this network on these pages: measure, sweep, prune it again.",
        )  # fmt: skip
    st.caption("SHA-256")
    st.code(job.result["sha256"], language=None, wrap_lines=True)


def _open(path: str) -> None:
    state.choose(state.MODEL, loaders.OPEN_FILE)
    state.choose(state.FILE, path)


def earlier_panel(
    workspace: Workspace, summary: ModelSummary, jobs: list[Job], *, key: str
) -> None:
    """Finished ones before the newest, folded."""
    for job in jobs:
        title = f"{Path(job.result['path']).name}, {words.ago(job.ended or job.created)}"
        with st.expander(title, key=f"{key}-{job.id}"):
            result_panel(workspace, summary, job, key=f"{key}-{job.id}-file")
