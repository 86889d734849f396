"""Train a network from the beginning, as a configuration file describes it.

Torch is imported inside functions.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psvit_core.callbacks import Progress, Stop, Tick, ignore_progress, keep_going, never_stop
from psvit_core.documents import read_yaml
from psvit_core.errors import CheckpointError, DataError, ModelError, OutputError, RecordError
from psvit_core.files import check_writable, expand, write_atomic, write_text
from psvit_core.records import FinetuneReport, TrainConfig, Transform
from psvit_core.zoo.cards import model_card

if TYPE_CHECKING:
    from psvit_core.data import EvalSet
    from psvit_core.finetune import FinetuneResult
    from psvit_core.runtime import Run
    from psvit_core.zoo.base import SpikingModel


@dataclass(frozen=True, kw_only=True)
class TrainCallbacks:
    """Functions that ``run_train`` calls."""

    progress: Progress = ignore_progress  # after each step
    tick: Tick = keep_going  # before each step; may raise to stop
    stop: Stop = never_stop  # before each step; True ends training and writes the best epoch
    log: Callable[[str], None] = lambda line: None  # with a line after each validation


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The files and the report of ``run_train``."""

    weights: Path  # the best epoch, .safetensors
    last: Path  # the last epoch
    record: Path  # family, arguments and how they were trained, .json
    curve: Path  # the learning curve, one JSON object per line
    report: FinetuneReport
    test: tuple[int, int] | None  # correct and all test images, if they were asked for


def load_config(path: str | Path) -> TrainConfig:
    """Load a configuration file, JSON, TOML (``.toml``) or YAML (``.yaml``).

    Raises:
        ConfigError: If the file is not YAML; the message names the line.
        RecordError: If the file is missing or not such a document.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".yaml", ".yml"):
        return TrainConfig.from_dict(read_yaml(path).data)
    if suffix != ".toml":
        return TrainConfig.load(path)
    try:
        data = tomllib.loads(expand(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise RecordError(f"{path} is not a TOML document ({error}).") from error
    return TrainConfig.from_dict(data)


def run_train(  # public signature
    config: TrainConfig,
    folder: str | Path,
    run: Run | None = None,
    *,
    resume: bool = True,
    test: bool = False,
    callbacks: TrainCallbacks | None = None,
) -> Trained:
    """Train the network of a configuration; continue a stopped training.

    Args:
        config: The network, its images and the hyperparameters.
        folder: Folder for the state, the learning curve and the results. The same folder continues
            a stopped training to the same weights, and a finished one is not repeated.
        run: Device, batch size of validation, precision and decoding processes.
        resume: Continue; otherwise start over.
        test: Evaluate the best epoch on the split ``test``, once, after training.
        callbacks: Called meanwhile.

    Raises:
        CheckpointError: If the folder contains a different training.
        DataError: If the images do not fit the network.
        ModelError: If no network can be built from the configuration.
    """
    from psvit_core.data import load_data
    from psvit_core.finetune import check_images, check_settings, finetune
    from psvit_core.runtime import Run

    callbacks, out = callbacks or TrainCallbacks(), expand(folder)
    run = run or Run(batch=config.batch)
    check_settings(config.settings)
    model, transform = build(config)
    _make_folder(out)
    check_writable(out / f"{config.name}.json")

    def load(split: str, limit: int | None = None) -> EvalSet:
        return load_data(config.data, split=split, transform=transform, limit=limit)

    train, val = load("train", config.settings.train_images), load("val")
    check_images(model, train, val, config.settings)
    result = finetune(
        model,
        train,
        val,
        settings=config.settings,
        folder=out,
        resume=resume,
        run=run,
        progress=_logged(callbacks, out),
        tick=callbacks.tick,
        stop=callbacks.stop,
    )
    correct = count_correct(result.model, load("test"), run, callbacks.tick) if test else None
    return _write(config, out, result, len(val), correct)


def build(config: TrainConfig) -> tuple[SpikingModel, Transform]:
    """Return the network of a configuration at its beginning, and the transform of its images.

    Raises:
        ModelError: If it names both a model and a family or neither, or a part that is unknown.
        CheckpointError: If the file of weights does not fit the network.
    """
    import torch

    from psvit_core.zoo.registry import build_model

    if (config.model is None) == (config.family is None):
        raise ModelError(
            f"{config.name} must name a registered model or a family, and not both; got model "
            f"{config.model!r} and family {config.family!r}."
        )
    family, arguments, transform = config.family, config.arguments, config.transform
    if config.model is not None:
        card = model_card(config.model)
        family, arguments = card.family, {**card.arguments, **config.arguments}
        transform = transform or card.transform
    if transform is None:
        raise DataError(f"{config.name} names a family, so it needs a transform of its images.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.settings.seed)
        model = build_model(str(family), **arguments)
    model.name = config.name
    _set_start(model, config.start)
    if config.weights is not None:
        _load_weights(model, config.weights)
    return model, transform


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot write {folder}: {error.strerror}.") from error


def _set_start(model: SpikingModel, start: dict[str, float]) -> None:
    from torch.nn import init

    for end, value in start.items():
        found = [p for name, p in model.named_parameters() if name.endswith(end)]
        if not found:
            raise ModelError(f"{model.name} has no parameter whose name ends with {end!r}.")
        for parameter in found:
            init.constant_(parameter, value)


def _load_weights(model: SpikingModel, path: str) -> None:
    from psvit_core.zoo.tensors import read_tensors

    tensors = read_tensors(expand(path)).tensors
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit {model.name}: {cause}") from error


def count_correct(
    model: SpikingModel, data: EvalSet, run: Run, tick: Tick = keep_going
) -> tuple[int, int]:
    """Return the number of images that a model classifies correctly, and of all images."""
    import numpy as np

    from psvit_core.evaluate import place, predict

    logits = predict(place(model, run), data, run, tick=tick).logits
    return int((logits.argmax(1) == np.array(data.labels)).sum()), len(data)


def _logged(callbacks: TrainCallbacks, folder: Path) -> Progress:
    """Return a progress callback that also logs each validation that the curve has got."""
    from psvit_core.finetune import CURVE_FILE
    from psvit_core.records import read_curve

    logged = [r.epoch for r in read_curve(folder / CURVE_FILE) if r.val_accuracy is not None]

    def progress(done: int, total: int, what: str) -> None:
        callbacks.progress(done, total, what)
        if done % 10:
            return
        for record in read_curve(folder / CURVE_FILE):
            if record.val_accuracy is not None and record.epoch not in logged:
                logged.append(record.epoch)
                loss = "" if record.train_loss is None else f", loss {record.train_loss:.3f}"
                accuracy = f"validation accuracy {record.val_accuracy.value:.2%}"
                callbacks.log(f"epoch {record.epoch:g}{loss}, {accuracy}, {record.seconds:.0f} s")

    return progress


def _write(
    config: TrainConfig,
    folder: Path,
    result: FinetuneResult,
    n_val: int,
    test: tuple[int, int] | None,
) -> Trained:
    import torch
    from safetensors.torch import save_file

    from psvit_core.finetune import CURVE_FILE

    best, report = result.model, result.report
    files: list[Path] = []
    for model, name in ((best, config.name), (result.last, f"{config.name}.last")):
        tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
        path = folder / f"{name}.safetensors"
        files.append(write_atomic(path, lambda part, t=tensors: save_file(t, part)))  # type: ignore[misc]
    accuracy, settings = report.best_accuracy, report.settings
    training: dict[str, Any] = {
        "command": f"psvit train {config.name}.json" + (" --test" if test else ""),
        "seed": settings.seed,
        "epochs": settings.epochs,
        "best_epoch": report.best_epoch,
        "seconds": round(report.epochs[-1].seconds),
        "val_correct": round(accuracy.value * n_val),
        "val_images": n_val,
        **({"test_correct": test[0], "test_images": test[1]} if test else {}),
        "parameters": sum(p.numel() for p in best.parameters()),
        "autocast": settings.autocast,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    document = {
        "family": best.family,
        "arguments": best.arguments,
        "training": training,
        "config": dataclasses.replace(config, settings=settings).to_dict(),
    }
    record = write_text(folder / f"{config.name}.json", json.dumps(document, indent=1) + "\n")
    return Trained(
        weights=files[0],
        last=files[1],
        record=record,
        curve=folder / CURVE_FILE,
        report=report,
        test=test,
    )
