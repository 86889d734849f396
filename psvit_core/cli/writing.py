"""Arguments of the commands that write a pruned file: ``prune`` and ``finetune``."""

from __future__ import annotations

import argparse

from psvit_core.cli.options import (
    add_data_arguments,
    add_model_arguments,
    add_recovery_arguments,
    parse_path,
)
from psvit_core.records import FinetuneSettings


def add_prune_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prune``."""
    add_model_arguments(command)
    add_data_arguments(command)
    add_recovery_arguments(command)
    command.add_argument(
        "--plan", required=True, type=parse_path, metavar="F", help="plan file written by plan"
    )
    command.add_argument(
        "--out",
        required=True,
        type=parse_path,
        metavar="F",
        help=".safetensors file for the pruned model",
    )
    command.add_argument(
        "--measure",
        action="store_true",
        help="measure the written file on all images of the split, and record the result in it",
    )


def add_finetune_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``finetune``."""
    default = FinetuneSettings()
    add_model_arguments(command)
    add_data_arguments(command, batch=f"{default.batch}, in training")
    command.add_argument(
        "--plan", type=parse_path, metavar="F", help="prune MODEL by this plan first"
    )
    add_recovery_arguments(command)
    command.add_argument(
        "--out",
        required=True,
        type=parse_path,
        metavar="F",
        help=".safetensors file for the best epoch's model",
    )

    def add(name: str, kind: type, text: str) -> None:
        value = getattr(default, name)
        shown = "" if value is None else f" (default {value})"
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{text}{shown}")

    add("epochs", float, "number of epochs; may be a fraction")
    add("lr", float, "peak learning rate")
    add("accumulate", int, "batches per weight update")
    add("weight_decay", float, "weight decay of all but biases and BatchNorms")
    add("warmup", float, "fraction of the updates with a rising learning rate")
    add("clip", float, "maximum norm of the gradient; 0 does not clip")
    add("label_smoothing", float, "label smoothing")
    add("augment", str, "auto, affine, crop, flip or none")
    add("mixup", float, "alpha of mixup; 0 turns it off")
    add("erase", float, "probability of random erasing")
    add("alpha", float, "weight of the distillation loss")
    add("temperature", float, "temperature of the distillation")
    add("patience", int, "stop after this many epochs without a better validation accuracy")
    add("train_images", int, "train on a stratified subset of this many images")
    _teacher_arguments(command)
    command.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue a stopped training with the same settings",
    )


def _teacher_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--distil-from",
        dest="teacher",
        type=parse_path,
        metavar="MODEL",
        help="a model's name or file, none, or original (default): the unpruned model, if its "
        "weights are available",
    )
    command.add_argument(
        "--distil-checkpoint",
        dest="teacher_checkpoint",
        type=parse_path,
        metavar="F",
        help="weights for a registered name in --distil-from",
    )
