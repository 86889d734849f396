"""The command ``export``: a network as files that need nothing of this package."""

from __future__ import annotations

import argparse

from psvit_core.cli.options import add_model_arguments, parse_path
from psvit_core.cli.session import Result, make_session

FORMATS = ("torch",)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(command)
    command.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="torch (default): a Python file with the network's definition and a .safetensors file "
        "with its weights, which need only torch and safetensors",
    )
    command.add_argument(
        "--spikingjelly",
        action="store_true",
        help="use SpikingJelly's LIF neuron, so that the file needs SpikingJelly too",
    )
    command.add_argument(
        "--out",
        required=True,
        type=parse_path,
        metavar="F",
        help=".py file; the weights are written beside it",
    )


def export(options: argparse.Namespace) -> tuple[Result, str]:
    """Write a model's definition and weights."""
    from psvit_core.export import check_export_path, export_torch

    check_export_path(options.out, options.model)
    session = make_session(options)
    done = export_torch(session.model, options.out, spikingjelly=options.spikingjelly)
    needs = ["torch", "safetensors", *(["spikingjelly"] if options.spikingjelly else [])]
    result = {
        "format": options.format,
        "out": str(done.code),
        "weights": str(done.weights),
        "code_bytes": done.code.stat().st_size,
        "weights_bytes": done.weights.stat().st_size,
        "needs": needs,
    }
    text = (
        f"{done.code}: the network's definition, {done.weights}: its weights "
        f"({result['weights_bytes']:,} bytes). Both together need {', '.join(needs)}: "
        f"pip install {' '.join(needs)}"
    )
    return result, text
