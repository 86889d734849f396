"""Latency of pruned networks relative to the unpruned one, beside the ratio of their MACs.

    python benchmarks/latency.py [--quick] [--json]

Networks as this program runs them in torch, and their ONNX graphs in onnxruntime, on one thread and
on all cores. Every group loses the same ratio of units (one uniform ratio that reaches the saving);
``round to 8`` makes every width a multiple of 8, as vector units like it. The networks of a row run
by turns, so that other load on the machine meets all of them. Weights do not matter here: sizes
without included weights have random ones. Full-size networks take long, so they have fewer plans
and fewer runs, and a batch of 32 only in torch, on all cores, with the plan that saves half:
onnxruntime keeps the peak memory of each network, several gigabytes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch
from torch import nn

from benchmarks._latency_page import NEXT, section
from benchmarks._report import options, replace_section, report, stored
from psvit_core.export.onnx_file import OnnxNetwork, finish, traced_proto
from psvit_core.export.traced import plain_network, random_images
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.metrics.profile import latencies_in_turns, machine
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

#: Saving and rounding.
Choice = tuple[float, int]
ALL_CHOICES = tuple((saving, step) for saving in SAVINGS for step in ROUNDINGS)
FEW_CHOICES = ((0.25, 1), (0.5, 1), (0.7, 1), (0.5, 8), (0.5, 16))


@dataclass(frozen=True)
class Case:
    """A model, and what it is timed with."""

    model: str
    #: Plans for each batch size.
    batches: dict[int, tuple[Choice, ...]] = field(
        default_factory=lambda: dict.fromkeys((1, 32), ALL_CHOICES)
    )
    #: Plans that also become ONNX graphs, which takes about ten seconds each.
    onnx: tuple[Choice, ...] = FEW_CHOICES
    #: Timed runs of each network; None: for about a second.
    runs: int | None = None
    #: Time batches above one in torch on all cores only.
    few_large: bool = False

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All plans."""
        return tuple(dict.fromkeys(one for some in self.batches.values() for one in some))


def full_size(model: str, onnx: tuple[Choice, ...] = ((0.5, 1), (0.5, 8))) -> Case:
    """Return the case of a network at 224 px."""
    batches = {1: FEW_CHOICES, 32: ((0.5, 1),)}
    return Case(model, batches, onnx=onnx, runs=3, few_large=True)


CASES = (
    Case("sdt_v1_digits"),
    Case("e_spikeformer_digits"),
    Case("sdt_v1_cifar10"),
    full_size("sdt_v1_8_384"),
    full_size("spikformer_8_384"),
    full_size("meta_spikeformer_15m", onnx=((0.5, 1),)),  # a graph takes a minute
)
QUICK = Case("sdt_v1_digits", {1: ((0.5, 1), (0.5, 8))}, onnx=())


def main() -> None:
    """Time every case; print the table, and write the section of a full run."""
    chosen = options(__doc__ or "")
    settings = {"machine": machine().to_dict(), "threads": thread_counts(), "load": os.getloadavg()}
    rows = [row for case in ((QUICK,) if chosen.quick else CASES) for row in rows_of(case)]
    report("latency", rows, settings, chosen)
    if not chosen.quick:
        page = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
        replace_section(page, section(stored("latency")), NEXT)


def thread_counts() -> list[int]:
    """Return one thread, and as many as there are cores."""
    return list(dict.fromkeys((1, os.cpu_count() or 1)))


def rows_of(case: Case) -> Iterator[dict[str, Any]]:
    """Yield one row for each engine, thread count, batch and plan of a model."""
    card = model_card(case.model)
    torch.manual_seed(0)
    model = load_model(case.model) if card.weights else build_model(card.family, **card.arguments)
    model.eval()
    summary = summarize(model, {"l2": rank(model, "l2")})
    plans = {choice: uniform_plan(summary, *choice) for choice in case.choices}
    networks: dict[Choice | None, SpikingModel] = {None: model}
    networks |= {choice: apply_plan(model, plan).eval() for choice, plan in plans.items()}
    for engine, threads, subjects in engines(networks, case.onnx):
        for batch, all_choices in case.batches.items():
            choices = [choice for choice in all_choices if choice in subjects]
            if batch > 1 and case.few_large and (engine, threads) != ("torch", thread_counts()[-1]):
                continue
            some = [subjects[None], *(subjects[choice] for choice in choices)]
            times = latencies_in_turns(some, random_images(model, batch), runs=case.runs)
            conditions = {
                "model": case.model,
                "engine": engine,
                "threads": threads,
                "batch": batch,
                "unpruned (ms)": round(times[0], 2),
            }
            for (saving, step), ms in zip(choices, times[1:], strict=True):
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
    networks: dict[Choice | None, SpikingModel], onnx: Sequence[Choice]
) -> Iterator[tuple[str, int, dict[Choice | None, nn.Module]]]:
    """Yield (engine, threads, the networks ready to run by plan; None: unpruned).

    Args:
        networks: The networks by plan.
        onnx: Plans that also run in onnxruntime; none: nothing does.
    """
    for threads in thread_counts():
        torch.set_num_threads(threads)
        yield "torch", threads, dict(networks)
    if onnx:
        graphs = {choice: graph_of(networks[choice]) for choice in (None, *onnx)}
        for threads in thread_counts():
            yield "onnxruntime", threads, {c: OnnxNetwork(g, threads) for c, g in graphs.items()}


def graph_of(model: SpikingModel) -> bytes:
    """Return a network's ONNX graph."""
    proto = traced_proto(model, plain_network(model), random_images(model, 2))
    finish(proto, model)
    content: bytes = proto.SerializeToString()
    return content


if __name__ == "__main__":
    main()
