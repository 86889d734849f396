"""The training loop of fine-tuning: optimizer, schedule, validation, saved state."""

from __future__ import annotations

import copy
import io
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.callbacks import Progress, Stop, Tick
from psvit_core.data import EvalSet
from psvit_core.durable import make_folder
from psvit_core.errors import CheckpointError, JobError
from psvit_core.evaluate import conditions_of, outcome_of, place, predict
from psvit_core.files import write_atomic, write_text
from psvit_core.finetune.augment import Augmentation
from psvit_core.finetune.batches import Batches, n_steps
from psvit_core.finetune.loss import Loss
from psvit_core.records import EpochRecord, FinetuneReport, FinetuneSettings
from psvit_core.runtime import Run, channels_last
from psvit_core.storage.inventory import STATE_FILE
from psvit_core.storage.store import digest
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

CURVE_FILE = "records.jsonl"
_POINTS = 20  # points of the learning curve per epoch
_SAVE_SECONDS = 300  # between two saved states within an epoch
_FORMAT = 2


@dataclass(frozen=True)
class FinetuneResult:
    """A trained model: that of the best epoch by validation, and that of the last epoch."""

    model: SpikingModel
    last: SpikingModel
    report: FinetuneReport
    records: tuple[EpochRecord, ...] = field(repr=False)  # the whole learning curve

    @property
    def best_epoch(self) -> float:
        """Epoch of ``model``; 0 if no epoch was better than the model before training."""
        return self.report.best_epoch


def finetune_key(
    model: SpikingModel,
    train: EvalSet,
    val: EvalSet,
    teacher: SpikingModel | None,
    settings: FinetuneSettings,
    run: Run,
) -> str:
    """Return the hash of everything that decides a training. Only the same key can resume it."""
    return digest(
        [
            _FORMAT,
            weights_hash(model),
            train.spec,
            train.transform,
            list(train.ids),
            list(val.ids),
            weights_hash(teacher) if teacher else None,
            settings.to_dict(),
            model.T,
            run.batch,
            run.precision,
        ]
    )


class Training:
    """A training in progress: the model, its optimizer, and the state so far.

    Args:
        model: The model to train a copy of.
        train: Training images.
        val: Validation images.
        teacher: The model to distill from, or None.
        settings: Training settings.
        run: Device, validation batch size, precision, workers.
        folder: Folder for the state and the learning curve, or None.
    """

    def __init__(
        self,
        model: SpikingModel,
        train: EvalSet,
        val: EvalSet,
        teacher: SpikingModel | None,
        settings: FinetuneSettings,
        run: Run,
        folder: str | Path | None,
    ) -> None:
        from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

        self.origin, self.settings, self.run = model, settings, run
        self.train, self.val = train, val
        distills = teacher is not None and settings.alpha > 0
        self.teacher = _laid_out(place(teacher, run)).eval() if teacher and distills else None
        self.key = finetune_key(model, train, val, self.teacher, settings, run)
        self.folder = Path(folder) if folder else None
        self.model: SpikingModel = _laid_out(model).to(run.device, run.dtype)
        self.optimizer = create_optimizer_v2(
            self.model,
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
        )
        augment = Augmentation(settings, model, train)
        self.batches = Batches(train, settings, augment, run)
        self.loss = Loss(self.model, self.teacher, settings, run, augment)
        self.per_epoch = self.batches.per_epoch
        self.total = n_steps(train, settings)
        updates = self._updates(self.total)
        self.schedule = _schedule(self.optimizer, settings, updates)
        self.scaler = torch.amp.GradScaler("cuda", enabled=run.precision == "autocast")
        self.step = self.updates = self.stale = 0
        self.halted = False  # ended by ``stop`` before the last step
        self.seconds = 0.0
        self.losses: list[float] = []  # of the batches of this epoch
        self.saved_at = time.perf_counter()
        self.records: list[EpochRecord] = []
        self.best: dict[str, Tensor] = {}
        self.best_score, self.best_epoch = (-1.0, 0.0), 0.0

    def _updates(self, steps: int) -> int:
        """Return the number of updates in the first ``steps`` steps. Each epoch ends with one."""
        whole, rest = divmod(steps, self.per_epoch)
        each = self.settings.accumulate
        return whole * -(-self.per_epoch // each) + -(-rest // each)

    @property
    def stopped_early(self) -> bool:
        """True if training ended before its last step: out of patience, or on request."""
        patience = self.settings.patience
        tired = self.halted or (patience is not None and self.stale >= patience)
        return tired and self.step < self.total

    @property
    def over(self) -> bool:
        """True if nothing is left to do."""
        return self.step >= self.total or self.stopped_early

    def begin(self, resume: bool, tick: Tick) -> None:
        """Restore the saved state, or evaluate the model before training."""
        if self.folder is not None:
            make_folder(self.folder)
            path = self.folder / STATE_FILE
            if resume and path.exists():
                self._restore(path)
                self._write_curve()
                return
            path.unlink(missing_ok=True)
        started = time.perf_counter()
        self._validate(None, started, tick)
        self._save()

    def run_epoch(self, progress: Progress, tick: Tick, stop: Stop) -> None:
        """Train to the end of the epoch or until stopped, then validate and save the state."""
        started = time.perf_counter()
        first = self.step - self.step % self.per_epoch  # of this epoch
        end = min(first + self.per_epoch, self.total)
        self.batches.keep(tick)
        self.model.train()
        self.optimizer.zero_grad()
        each = max(1, self.per_epoch // _POINTS)
        for x, labels in self.batches.epoch(self.step, end - self.step):
            if stop():
                self.halted = True
                break
            tick()
            self._learn_batch(x, labels, first, end)
            ended = self.step == end
            if (self.step - first) % each == 0 and not ended:
                self._add_record(started, _mean(self.losses[-each:]))
                self._write_curve()
            progress(self.step, self.total, f"epoch {self._epoch:.2f}, loss {self.losses[-1]:.3f}")
            between = (self.step - first) % self.settings.accumulate == 0 and not ended
            if between and time.perf_counter() - self.saved_at > _SAVE_SECONDS:
                self.seconds += time.perf_counter() - started
                started = time.perf_counter()
                self._save()
        if self.losses:
            losses, self.losses = self.losses, []
            self._validate(_mean(losses), started, tick)
            self._save()

    def _learn_batch(self, x: Tensor, labels: Tensor, first: int, end: int) -> None:
        """Learn a batch of the epoch from step ``first`` to ``end``; update if it is due."""
        each, number = self.settings.accumulate, self.step - first
        window_start = number - number % each
        window = min(each, end - first - window_start)
        self.losses.append(self._learn(x, labels, window))
        if number + 1 == window_start + window:
            self._update()
        self.step += 1

    def _learn(self, x: Tensor, labels: Tensor, window: int) -> float:
        """Add the gradients of one of the ``window`` batches of an update. Return its loss."""
        device = self.run.device
        loss = self.loss(x.to(device), labels.to(device), self.step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise JobError(
                f"The loss became {value} at step {self.step + 1}. Lower the learning rate "
                f"({self.settings.lr:g}) and start over. The state after the last epoch is saved."
            )
        self.scaler.scale(loss / window).backward()
        return value

    def _update(self) -> None:
        if self.settings.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.updates += 1
        self.schedule.step_update(self.updates)

    @property
    def _epoch(self) -> float:
        return self.step / self.per_epoch

    def _add_record(
        self, started: float, train_loss: float | None, **validation: Any
    ) -> EpochRecord:
        """Add a point to the learning curve."""
        record = EpochRecord(
            step=self.step,
            epoch=self._epoch,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=self.seconds + time.perf_counter() - started,
            train_loss=train_loss,
            **validation,
        )
        self.records.append(record)
        return record

    def _validate(self, train_loss: float | None, started: float, tick: Tick) -> None:
        """Evaluate on the validation images and update the best epoch."""
        self.model.eval()
        prediction = predict(self.model, self.val, self.run, tick=tick)
        cluster = self.run.batch if self.model.batch_coupled else None
        accuracy = outcome_of(self.val, prediction, prediction.logits, self.run).accuracy(cluster)
        logits, labels = torch.from_numpy(prediction.logits), torch.tensor(self.val.labels)
        loss = float(F.cross_entropy(logits.double(), labels))
        record = self._add_record(started, train_loss, val_loss=loss, val_accuracy=accuracy)
        self.seconds = record.seconds
        score = (accuracy.value, -loss)
        self.stale += 1
        if score > self.best_score:
            self.best_score, self.best_epoch, self.stale = score, self._epoch, 0
            self.best = {k: v.cpu().clone() for k, v in self.model.state_dict().items()}

    # ---- saved state -----------------------------------------------------------------------

    def _write_curve(self) -> None:
        if self.folder is not None:
            lines = [json.dumps(record.to_dict()) + "\n" for record in self.records]
            write_text(self.folder / CURVE_FILE, "".join(lines))

    def _save(self) -> None:
        if self.folder is None:
            return
        state = {
            "key": self.key,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "losses": self.losses,
            "best": self.best,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "step": self.step,
            "updates": self.updates,
            "stale": self.stale,
            "seconds": self.seconds,
            "records": [record.to_dict() for record in self.records],
        }
        write_atomic(self.folder / STATE_FILE, lambda part: _save_state(state, part))
        self._write_curve()  # after the state, so that no point of the curve is trained again
        self.saved_at = time.perf_counter()

    def _restore(self, path: Path) -> None:
        state = _read_state(path, self.key)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.losses = state["losses"]
        self.best, self.best_score = state["best"], state["best_score"]
        self.best_epoch, self.step = state["best_epoch"], state["step"]
        self.updates = state["updates"]
        self.stale, self.seconds = state["stale"], state["seconds"]
        self.records = [EpochRecord.from_dict(record) for record in state["records"]]
        self.schedule.step_update(self.updates)

    def result(self) -> FinetuneResult:
        """Return the best and the last model, each with its provenance."""
        teacher = self.teacher.name if self.teacher is not None else None
        report = FinetuneReport(
            model=self.origin.name,
            settings=self.settings,
            conditions=conditions_of(self.origin, self.train, self.run),
            teacher=teacher,
            best_epoch=self.best_epoch,
            epochs=tuple(r for r in self.records if r.val_accuracy is not None),
            stopped_early=self.stopped_early,
        )
        last = {k: v.cpu() for k, v in self.model.state_dict().items()}
        return FinetuneResult(
            model=_finished(self.origin, self.best, report),
            last=_finished(self.origin, last, report),
            report=report,
            records=tuple(self.records),
        )


def _laid_out(model: SpikingModel) -> SpikingModel:
    """Return a copy whose convolutions have channels last."""
    copied: SpikingModel = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.data = channels_last(parameter.data)
    return copied


def _finished(
    origin: SpikingModel, tensors: dict[str, Tensor], report: FinetuneReport
) -> SpikingModel:
    """Return a copy of a model with trained weights and the training in its provenance."""
    done = copy.deepcopy(origin)
    done.load_state_dict(tensors)
    if done.provenance:
        earlier = done.provenance.get("finetunes", [])
        done.provenance = {**done.provenance, "finetunes": [*earlier, report.to_dict()]}
    return done.eval()


def _schedule(optimizer: torch.optim.Optimizer, settings: FinetuneSettings, updates: int) -> Any:
    """Return timm's schedule with warmup, stepped once per update."""
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    schedule, _ = create_scheduler_v2(  # timm counts "epochs"; here these are updates
        optimizer,
        sched=settings.schedule,
        num_epochs=updates,
        updates_per_epoch=1,
        step_on_epochs=False,
        warmup_epochs=int(settings.warmup * updates),
        warmup_lr=settings.lr / 100,
        min_lr=settings.min_lr,
    )
    return schedule


def _save_state(state: dict[str, Any], path: Path) -> None:
    """Write a state. On a full disk, torch's own writer hides the reason in a ``RuntimeError``."""
    content = io.BytesIO()
    torch.save(state, content)
    path.write_bytes(content.getbuffer())


def _read_state(path: Path, key: str) -> dict[str, Any]:
    """Read a saved training state and check that it belongs to the training ``key``."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["key"]
    except Exception as error:  # torch raises many types of errors for damaged files
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}). Delete it to start over."
        ) from error
    if found != key:
        raise CheckpointError(
            f"{path} belongs to a training with a different model, images or settings. "
            "Choose another folder, or do not resume."
        )
    return state


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
