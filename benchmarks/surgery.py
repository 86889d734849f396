"""Groups and surgery of full-size models: seconds, and memory as a multiple of the model.

    python benchmarks/surgery.py [--quick] [--json]

For comparison, torch-pruning's DepGraph builds its graph and groups on the same model and prunes
the same share of every group. It is traced at 64 px with the neurons stubbed and its
expand-mapping off; otherwise it groups spiking attention wrongly. It ties q, k and v and so has
fewer groups; only times are compared. Each model is measured in a separate process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch
from torch import nn

from benchmarks._report import options, report
from psvit_core.groups import find_groups, summarize
from psvit_core.importance import rank
from psvit_core.neurons import LIF
from psvit_core.plan.build import plan_from_ratios
from psvit_core.surgery import apply_plan, stored_bytes
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.registry import build_model

MODELS = ("meta_spikeformer_15m", "spikformer_8_512", "meta_spikeformer_55m")
RATIO = 0.3


def main() -> None:
    """Measure every model in a separate process."""
    if len(sys.argv) > 2 and sys.argv[1] == "--one":
        print(json.dumps(measure(sys.argv[2])))
        return
    chosen = options(__doc__ or "")
    rows = []
    for name in MODELS[:1] if chosen.quick else MODELS:
        command = [sys.executable, __file__, "--one", name]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    report("surgery", rows, {"prune_ratio": RATIO, "threads": 1, "px": 224}, chosen)


def measure(name: str) -> dict[str, Any]:
    """Measure one model and return its row."""
    torch.set_num_threads(1)
    card = model_card(name)
    model = build_model(card.family, **card.arguments)
    groups, groups_seconds = timed(lambda: find_groups(model))
    ranking, rank_seconds = timed(lambda: {"l2": rank(model, "l2")})
    summary, summary_seconds = timed(lambda: summarize(model, ranking))
    ratios = {g.group_id: RATIO for g in groups}
    plan = plan_from_ratios(summary, ratios, criterion="l2")
    before = peak_bytes()
    small, surgery_seconds = timed(lambda: apply_plan(model, plan))
    size = stored_bytes(model)
    return {
        "model": name,
        "parameters": f"{card.parameters / 1e6:.1f} M",
        "groups": len(groups),
        "find groups (s)": round(groups_seconds, 2),
        "rank (s)": round(rank_seconds, 2),
        "summary (s)": round(summary_seconds, 2),
        "surgery (s)": round(surgery_seconds, 2),
        "added memory / model": round((peak_bytes() - before) / size, 2),
        "bytes left": f"{stored_bytes(small) / size:.1%}",
        **torch_pruning(name),
    }


def torch_pruning(name: str) -> dict[str, Any]:
    """Return torch-pruning's seconds for the same model and share."""
    import torch_pruning as tp

    card = model_card(name)
    model = build_model(card.family, **{**card.arguments, "img_size_h": 64, "img_size_w": 64})
    roots = {"root_module_types": [nn.Conv1d, nn.Conv2d, nn.Linear], "ignored_layers": [model.head]}
    mapping = "torch_pruning.dependency.index_mapping.update_expand_index_mapping"
    with (
        mock.patch.object(LIF, "forward", lambda self, x: x * 1.0),
        mock.patch(mapping, lambda graph, node: None),
    ):
        start = time.perf_counter()
        graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 3, 64, 64))
        count = len(list(graph.get_all_groups(**roots)))
        built = time.perf_counter()
        for group in graph.get_all_groups(**roots):
            layer, prune = group[0].dep.target.module, group[0].dep.handler
            units = range(int(graph.get_out_channels(layer) * RATIO))
            graph.get_pruning_group(layer, prune, list(units)).prune()
        done = time.perf_counter()
    return {
        "DepGraph groups": count,
        "DepGraph graph (s)": round(built - start, 2),
        "DepGraph surgery (s)": round(done - built, 2),
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Run ``work`` and return its result and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def peak_bytes() -> int:
    """Return the peak resident bytes of this process so far (Linux reports kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
