"""Structured pruning of spiking vision transformers: the library behind the PSViT explorer.

Importing this package is fast and does not import torch; names load their modules on first use.

Example:
    >>> import psvit_core as psvit
    >>> psvit.list_models(shipped=True)
    ['sdt_v1_digits', 'e_spikeformer_digits', 'meta_spikeformer_digits']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psvit_core.batch import run_config
    from psvit_core.custom import check_groups, register_model
    from psvit_core.data import EvalSet, load_data
    from psvit_core.errors import PsvitError
    from psvit_core.evaluate import measure
    from psvit_core.export import export_nir, export_onnx, export_pt2, export_torch
    from psvit_core.groups import find_groups, plan_from_kept
    from psvit_core.metrics.fits import check_fit
    from psvit_core.pareto import ParetoArchive
    from psvit_core.picture import network_svg
    from psvit_core.planners import make_plan
    from psvit_core.records import ChannelGroup, Measurement, PrunePlan, SensitivityTable
    from psvit_core.runtime import Run
    from psvit_core.sensitivity.sweep import sweep
    from psvit_core.storage.store import Store
    from psvit_core.surgery import apply_plan, silenced
    from psvit_core.workspace import Workspace, write_report
    from psvit_core.zoo.cards import list_models, model_card
    from psvit_core.zoo.checkpoint import load_model
    from psvit_core.zoo.pruned import save_pruned
    from psvit_core.zoo.quantized import quantize_weights
    from psvit_core.zoo.registry import build_model

_HOMES = {
    "ChannelGroup": "records",
    "EvalSet": "data",
    "Measurement": "records",
    "ParetoArchive": "pareto",
    "PrunePlan": "records",
    "PsvitError": "errors",
    "Run": "runtime",
    "SensitivityTable": "records",
    "Store": "storage.store",
    "Workspace": "workspace",
    "apply_plan": "surgery",
    "build_model": "zoo.registry",
    "check_fit": "metrics.fits",
    "check_groups": "custom",
    "export_nir": "export",
    "export_onnx": "export",
    "export_pt2": "export",
    "export_torch": "export",
    "find_groups": "groups",
    "list_models": "zoo.cards",
    "load_data": "data",
    "load_model": "zoo.checkpoint",
    "make_plan": "planners",
    "measure": "evaluate",
    "model_card": "zoo.cards",
    "network_svg": "picture",
    "plan_from_kept": "groups",
    "quantize_weights": "zoo.quantized",
    "register_model": "custom",
    "run_config": "batch",
    "save_pruned": "zoo.pruned",
    "silenced": "surgery",
    "sweep": "sensitivity.sweep",
    "write_report": "workspace",
}

__all__ = [
    "ChannelGroup",
    "EvalSet",
    "Measurement",
    "ParetoArchive",
    "PrunePlan",
    "PsvitError",
    "Run",
    "SensitivityTable",
    "Store",
    "Workspace",
    "apply_plan",
    "build_model",
    "check_fit",
    "check_groups",
    "export_nir",
    "export_onnx",
    "export_pt2",
    "export_torch",
    "find_groups",
    "list_models",
    "load_data",
    "load_model",
    "make_plan",
    "measure",
    "model_card",
    "network_svg",
    "plan_from_kept",
    "quantize_weights",
    "register_model",
    "run_config",
    "save_pruned",
    "silenced",
    "sweep",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'psvit_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"psvit_core.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
