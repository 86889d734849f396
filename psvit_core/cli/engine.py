"""The engine that a command's options ask for."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from psvit_core.jobs.engine import Engine, Subject
from psvit_core.store import Store

Result = dict[str, Any]


def make_engine(options: argparse.Namespace) -> Engine:
    """The engine of a command's options; warnings go to stderr."""
    from psvit_core.runtime import use_default_threads

    use_default_threads()
    subject = Subject(
        model=options.model,
        checkpoint=options.checkpoint,
        data=getattr(options, "data", None),
        split=getattr(options, "split", "val"),
        limit=getattr(options, "limit", None),
        batch=getattr(options, "batch", None),
        precision=getattr(options, "precision", "float32"),
        device=getattr(options, "device", "cpu"),
        time_steps=getattr(options, "time_steps", None),
        image_size=options.image_size,
        num_heads=options.num_heads,
        ema=options.ema,
        workers=getattr(options, "workers", 0),
        bad_images=getattr(options, "bad_images", "stop"),
        plugin=_absolute(options.plugin),
    )
    return Engine(subject, Store(), warn=lambda text: print(f"psvit: {text}", file=sys.stderr))


def given(options: argparse.Namespace, *others: str) -> str:
    """Options about a model and its images that are not at their defaults, in words; or nothing.

    Args:
        options: Of a command.
        others: Further options to look for, with None as default.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(Subject) if f.name != "model"}
    defaults |= dict.fromkeys(others)
    there = [n for n, default in defaults.items() if getattr(options, n, default) != default]
    return ", ".join(f"--{name.replace('_', '-')}" for name in there)


def _absolute(plugin: str | None) -> str | None:
    """A plugin's file as any process finds it; a module's name as it is."""
    return str(Path(plugin).resolve()) if plugin and Path(plugin).suffix == ".py" else plugin
