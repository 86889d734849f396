"""Latency of pruned networks relative to the unpruned one, beside the ratio of their MACs.

    python benchmarks/latency.py [--quick] [--json]

Networks as this program runs them in torch, and their ONNX graphs in onnxruntime, on one thread and
on all cores. Every group loses the same ratio of units (one uniform ratio that reaches the saving);
``round to 8`` makes every width a multiple of 8, as vector units like it. The networks of a row run
by turns, so that other load on the machine meets all of them. Weights do not matter here: sizes
without included weights have random ones.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch
from torch import nn

from benchmarks._report import options, report
from psvit_core.export.onnx_file import OnnxNetwork, finish, traced_proto
from psvit_core.export.traced import plain_network, random_images
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.metrics.profile import latencies_in_turns
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.registry import build_model

SAVINGS = (0.25, 0.5, 0.7)
ROUNDINGS = (1, 8, 16)
_STEPS = 30  # bisections of the ratio


@dataclass(frozen=True)
class Case:
    """A model and the batches that it is timed with."""

    model: str
    batches: tuple[int, ...]
    onnx: bool = True


CASES = (
    Case("sdt_v1_digits", (1, 32)),
    Case("e_spikeformer_digits", (1, 32)),
    Case("sdt_v1_cifar10", (1, 32)),
    Case("spikformer_8_384", (1,)),
    Case("meta_spikeformer_15m", (1,)),
)


def main() -> None:
    """Time every case; print the table."""
    chosen = options(__doc__ or "")
    if chosen.quick:
        rows = list(rows_of(Case("sdt_v1_digits", (1,), onnx=False), (0.5,), (1, 8)))
    else:
        rows = [row for case in CASES for row in rows_of(case, SAVINGS, ROUNDINGS)]
    settings = {"threads": thread_counts(), "savings": SAVINGS, "roundings": ROUNDINGS}
    report("latency", rows, settings, chosen)


def thread_counts() -> list[int]:
    """Return one thread, and as many as there are cores."""
    return list(dict.fromkeys((1, os.cpu_count() or 1)))


def rows_of(
    case: Case, savings: Sequence[float], roundings: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yield one row for each engine, thread count, batch and plan of a model."""
    card = model_card(case.model)
    torch.manual_seed(0)
    model = load_model(case.model) if card.weights else build_model(card.family, **card.arguments)
    model.eval()
    summary = summarize(model, {"l2": rank(model, "l2")})
    plans = {
        (saving, step): uniform_plan(summary, saving, step)
        for saving in savings
        for step in roundings
    }
    networks = [model, *(apply_plan(model, plan).eval() for plan in plans.values())]
    for engine, threads, subjects in engines(networks, onnx=case.onnx):
        for batch in case.batches:
            times = latencies_in_turns(subjects, random_images(model, batch))
            conditions = {
                "model": case.model,
                "engine": engine,
                "threads": threads,
                "batch": batch,
                "unpruned (ms)": round(times[0], 2),
            }
            for (saving, step), ms in zip(plans, times[1:], strict=True):
                ratios = of_plan(summary, plans[saving, step])
                found = {"saving": saving, "round to": step, **ratios}
                yield conditions | found | {"latency ratio": round(ms / times[0], 3)}
            print(*conditions.values(), file=sys.stderr, flush=True)


def of_plan(summary: ModelSummary, plan: PrunePlan) -> dict[str, float]:
    """Return what a plan saves and leaves by arithmetic."""
    whole, size = plan_size(summary, None), plan_size(summary, plan)
    return {
        "bytes saved": round(1 - size.bytes / whole.bytes, 3),
        "MAC ratio": round(size.macs / whole.macs, 3),
    }


def uniform_plan(summary: ModelSummary, saving: float, round_to: int) -> PrunePlan:
    """Return the plan of one ratio for all groups that saves at least ``saving`` of the bytes."""

    def plan(ratio: float) -> PrunePlan:
        ratios = {group.group_id: ratio for group in summary.groups}
        return plan_from_ratios(summary, ratios, criterion="l2", round_to=round_to)

    low, high = 0.0, 0.99
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if memory_saving(summary, plan(middle)) < saving:
            low = middle
        else:
            high = middle
    return plan(high)


def engines(
    networks: Sequence[SpikingModel], *, onnx: bool
) -> Iterator[tuple[str, int, list[nn.Module]]]:
    """Yield (engine, threads, the networks ready to run)."""
    for threads in thread_counts():
        torch.set_num_threads(threads)
        yield "torch", threads, list(networks)
    if onnx:
        graphs = [graph_of(network) for network in networks]
        for threads in thread_counts():
            yield "onnxruntime", threads, [OnnxNetwork(graph, threads) for graph in graphs]


def graph_of(model: SpikingModel) -> bytes:
    """Return a network's ONNX graph."""
    proto = traced_proto(model, plain_network(model), random_images(model, 2))
    finish(proto, model)
    content: bytes = proto.SerializeToString()
    return content


if __name__ == "__main__":
    main()
