"""One training: its model, its optimiser, where it stands, what is kept of it."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.data import EvalSet
from psvit_core.errors import CheckpointError, JobError
from psvit_core.evaluate import Tick, conditions_of, outcome_of, place, predict
from psvit_core.files import write_text, write_whole
from psvit_core.finetune.augment import Augmentation, random_state, set_random_state
from psvit_core.records import EpochRecord, FinetuneReport, FinetuneSettings
from psvit_core.runtime import Run
from psvit_core.store import digest
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

Progress = Callable[[int, int, str], None]  # (steps done, steps in all, what)

STATE_FILE, CURVE_FILE = "state.pt", "records.jsonl"
_POINTS = 20  # of the curve within an epoch
_FORMAT = 1


@dataclass(frozen=True)
class FinetuneResult:
    """A trained model: the best epoch's by validation, and the last one's."""

    model: SpikingModel
    last: SpikingModel
    report: FinetuneReport
    records: tuple[EpochRecord, ...] = field(repr=False)  # the whole curve

    @property
    def best_epoch(self) -> float:
        """Which epoch ``model`` is of; 0: none was better than the model as it came."""
        return self.report.best_epoch


def finetune_key(
    model: SpikingModel,
    train: EvalSet,
    val: EvalSet,
    teacher: SpikingModel | None,
    settings: FinetuneSettings,
    run: Run,
) -> str:
    """Hash of all that decides a training's course: the same key may be resumed."""
    return digest(
        [
            _FORMAT, weights_hash(model), train.spec, train.transform, list(train.ids),
            list(val.ids), weights_hash(teacher) if teacher else None, settings.to_dict(),
            model.T, run.batch, run.precision,
        ]
    )  # fmt: skip


class Training:
    """One training: its model, its optimiser, where it stands."""

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
        from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

        self.origin, self.settings, self.run = model, settings, run
        self.train, self.val = train, val
        distils = teacher is not None and settings.alpha > 0
        self.teacher = place(teacher, run).eval() if teacher is not None and distils else None
        self.key = finetune_key(model, train, val, self.teacher, settings, run)
        self.folder = Path(folder) if folder else None
        self.model: SpikingModel = copy.deepcopy(model).to(run.device, run.dtype)
        self.optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.per_epoch = max(1, len(train) // settings.batch)
        self.total = max(1, round(settings.epochs * self.per_epoch))
        updates = self._updates(self.total)
        self.schedule, _ = create_scheduler_v2(  # its "epochs" are updates here
            self.optimizer, sched="cosine", num_epochs=updates, updates_per_epoch=1,
            step_on_epochs=False, warmup_epochs=int(settings.warmup * updates),
            warmup_lr=settings.lr / 100, min_lr=0.0,
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler("cuda", enabled=run.precision == "autocast")
        self.augment = Augmentation(settings, model, train)
        self.step = self.updates = self.stale = 0
        self.halted = False  # asked to end before the last step
        self.seconds = 0.0
        self.records: list[EpochRecord] = []
        self.best: dict[str, Tensor] = {}
        self.best_score, self.best_epoch = (-1.0, 0.0), 0.0

    def _updates(self, steps: int) -> int:
        """Updates in the first ``steps`` steps; an epoch's end is always an update."""
        whole, rest = divmod(steps, self.per_epoch)
        each = self.settings.accumulate
        return whole * -(-self.per_epoch // each) + -(-rest // each)

    @property
    def stopped_early(self) -> bool:
        """Whether it ended before the last step: ``patience`` ran out, or it was asked to."""
        patience = self.settings.patience
        tired = self.halted or (patience is not None and self.stale >= patience)
        return tired and self.step < self.total

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.step >= self.total or self.stopped_early

    def begin(self, resume: bool, tick: Tick) -> None:
        """Go on from the state that is kept, or measure the model as it came."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / STATE_FILE
            if resume and path.exists():
                self._restore(path)
                self._write_curve()
                return
            path.unlink(missing_ok=True)
        started = time.perf_counter()
        self._validate(None, started, tick)
        self._keep()

    def run_epoch(self, progress: Progress, tick: Tick, stop: Callable[[], bool]) -> None:
        """Train to the end of the present epoch, or to a stop; validate, keep the state."""
        s, started = self.settings, time.perf_counter()
        n_steps = min(self.per_epoch, self.total - self.step)
        order = torch.randperm(len(self.train))[: n_steps * s.batch]
        part = self.train.take(order.tolist())
        self.model.train()
        losses: list[float] = []
        self.optimizer.zero_grad()
        each = max(1, self.per_epoch // _POINTS)
        inputs = part.batches(s.batch, self.run.dtype, self.run.workers)
        for number, x in enumerate(inputs):
            if stop():
                self.halted = True
                break
            tick()
            labels = torch.tensor(part.labels[number * s.batch :][: len(x)])
            first = number - number % s.accumulate
            window = min(s.accumulate, n_steps - first)
            losses.append(self._learn(x, labels, window))
            if number + 1 == first + window:
                self._update()
            self.step += 1
            ended = number + 1 == n_steps
            if (number + 1) % each == 0 and not ended:
                self._note(started, _mean(losses[-each:]))
                self._write_curve()
            progress(self.step, self.total, f"epoch {self._epoch:.2f}, loss {losses[-1]:.3f}")
        if losses:
            self._validate(_mean(losses), started, tick)
            self._keep()

    def _learn(self, x: Tensor, labels: Tensor, window: int) -> float:
        """Add one batch's gradients, as one of ``window`` batches; its loss."""
        s, device = self.settings, self.run.device
        x, target = self.augment(x.to(device), labels.to(device))
        with self.run.autocast:
            logits = self.model(x)
            soft = 0.0 if target.is_floating_point() else s.label_smoothing  # mixup smooths
            loss = F.cross_entropy(logits, target, label_smoothing=soft)
            if self.teacher is not None:
                with torch.no_grad():
                    wished = self.teacher(x)
                loss = (1 - s.alpha) * loss + s.alpha * distillation(logits, wished, s.temperature)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise JobError(
                f"The loss became {value} at step {self.step + 1}. Lower the learning rate "
                f"({s.lr:g}); the state after the last epoch is kept."
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

    def _note(self, started: float, train_loss: float | None, **validation: Any) -> EpochRecord:
        """Add a point to the curve."""
        record = EpochRecord(
            step=self.step, epoch=self._epoch, lr=self.optimizer.param_groups[0]["lr"],
            seconds=self.seconds + time.perf_counter() - started, train_loss=train_loss,
            **validation,
        )  # fmt: skip
        self.records.append(record)
        return record

    def _validate(self, train_loss: float | None, started: float, tick: Tick) -> None:
        """Measure on the validation images; remember the best."""
        self.model.eval()
        prediction = predict(self.model, self.val, self.run, tick=tick)
        cluster = self.run.batch if self.model.batch_coupled else None
        accuracy = outcome_of(self.val, prediction, prediction.logits, self.run).accuracy(cluster)
        logits, labels = torch.from_numpy(prediction.logits), torch.tensor(self.val.labels)
        loss = float(F.cross_entropy(logits.double(), labels))
        record = self._note(started, train_loss, val_loss=loss, val_accuracy=accuracy)
        self.seconds = record.seconds
        score = (accuracy.value, -loss)
        self.stale += 1
        if score > self.best_score:
            self.best_score, self.best_epoch, self.stale = score, self._epoch, 0
            self.best = {k: v.cpu().clone() for k, v in self.model.state_dict().items()}

    # ---- what is kept ----------------------------------------------------------------------

    def _write_curve(self) -> None:
        if self.folder is not None:
            lines = [json.dumps(record.to_dict()) + "\n" for record in self.records]
            write_text(self.folder / CURVE_FILE, "".join(lines))

    def _keep(self) -> None:
        if self.folder is None:
            return
        state = {
            "key": self.key,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(),
            "best": self.best,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "step": self.step,
            "updates": self.updates,
            "stale": self.stale,
            "seconds": self.seconds,
            "records": [record.to_dict() for record in self.records],
        }
        write_whole(self.folder / STATE_FILE, lambda part: torch.save(state, part))
        self._write_curve()  # after the state: what the curve shows is not trained again

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            key = state["key"]
        except Exception as error:  # torch raises many kinds for damaged files
            raise CheckpointError(
                f"{path} is damaged ({type(error).__name__}). Delete it to train anew."
            ) from error
        if key != self.key:
            raise CheckpointError(
                f"{path} is of a training of another model, with other images or other settings. "
                "Choose another folder, or do not resume."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"])
        self.best, self.best_score = state["best"], state["best_score"]
        self.best_epoch, self.step, self.updates = (
            state["best_epoch"], state["step"], state["updates"],
        )  # fmt: skip
        self.stale, self.seconds = state["stale"], state["seconds"]
        self.records = [EpochRecord.from_dict(record) for record in state["records"]]
        self.schedule.step_update(self.updates)

    def result(self) -> FinetuneResult:
        """The models, each with its provenance."""
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
            model=self._finished(self.best, report),
            last=self._finished(last, report),
            report=report,
            records=tuple(self.records),
        )

    def _finished(self, tensors: dict[str, Tensor], report: FinetuneReport) -> SpikingModel:
        done = copy.deepcopy(self.origin)
        done.load_state_dict(tensors)
        if done.provenance:
            earlier = done.provenance.get("finetunes", [])
            done.provenance = {**done.provenance, "finetunes": [*earlier, report.to_dict()]}
        return done.eval()


def distillation(logits: Tensor, wished: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the softened outputs, mean over images, times temperature squared.

    Source:
        Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(wished / temperature, dim=1)
    kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return kl * temperature**2


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
