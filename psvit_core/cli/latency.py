"""The command ``latency``: how long each layer takes, and what a plan saves of it."""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from psvit_core.cli.options import add_model_arguments, parse_path
from psvit_core.cli.session import Result, make_session
from psvit_core.files import check_writable
from psvit_core.plan.latency import REST, PredictedLatency
from psvit_core.records import LatencyTable, PrunePlan
from psvit_core.tasks.latency import measure_latency
from psvit_core.tasks.session import summarize_model

_SHOWN = 12  # layers that the text lists


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(command)
    command.add_argument(
        "--plan", type=parse_path, metavar="F", help="also predict the times of this plan"
    )
    command.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images that run at once (default 1)"
    )
    command.add_argument(
        "--precision", default="float32", help="float32 (default), float64 or autocast"
    )
    command.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    command.add_argument(
        "--out", type=parse_path, metavar="F", help="also write the table, for plan --latency"
    )


def latency(options: argparse.Namespace) -> tuple[Result, str]:
    """Measure a model's layers at a grid of widths; predict a plan's times."""
    if options.out:
        check_writable(options.out)
    plan = PrunePlan.load(options.plan) if options.plan else None
    session = make_session(options)
    if plan is not None:
        summary = summarize_model(session)
        plan.check(summary.groups, summary.weights_hash)
    with tqdm(unit="network", file=sys.stderr, disable=None) as bar:

        def show(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.update(done - bar.n)

        table = measure_latency(session, options.batch, show)
    if options.out:
        table.save(options.out)
    predicted = PredictedLatency(table)
    whole, small = predicted.layers(None), predicted.layers(plan) if plan else None
    result: Result = {
        "table": table.to_dict(),
        "unpruned_ms": table.total_ms,
        "layers": whole,
        "predicted_ms": predicted(plan) if plan else None,
        "predicted_saving": predicted.saving(plan) if plan else None,
        "predicted_layers": small,
    }
    return result, _text(table, predicted, plan)


def _text(table: LatencyTable, predicted: PredictedLatency, plan: PrunePlan | None) -> str:
    m = table.machine
    whole = predicted.layers(None)
    small = predicted.layers(plan) if plan else {}
    layers = table.total_ms - table.rest_ms
    conditions = (
        f"batch {table.batch}, T = {table.T}, {table.precision}, on {m.processor} "
        f"({m.on_threads}, torch {m.torch})"
    )
    lines = [f"{table.model}, {conditions}"]
    lines.append(
        f"unpruned  {table.total_ms:.2f} ms measured: {layers:.2f} in {len(table.layers)} layers, "
        f"{table.rest_ms:.2f} between them"
    )
    if plan is not None:
        lines.append(
            f"plan      {predicted(plan):.2f} ms predicted, saves {predicted.saving(plan):.1%}"
        )
    largest = sorted(table.layers, key=lambda layer: -whole[layer.name])
    for layer in largest[:_SHOWN]:
        after = f" -> {small[layer.name]:8.3f}" if small else ""
        lines.append(f"  {whole[layer.name]:8.3f}{after} ms  {layer.name} ({layer.kind})")
    if len(largest) > _SHOWN:
        lines.append(f"  and {len(largest) - _SHOWN} more (--json lists all)")
    after = f" -> {small[REST]:8.3f}" if small else ""
    lines.append(f"  {whole[REST]:8.3f}{after} ms  {REST}")
    return "\n".join(lines)
