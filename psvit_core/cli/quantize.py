"""The command ``quantize``: the same network with weights in fewer bits."""

from __future__ import annotations

import argparse
import dataclasses

from psvit_core.cli.options import add_data_arguments, add_model_arguments, parse_path
from psvit_core.cli.output import drop_text, measurement_text
from psvit_core.cli.session import Result, make_session
from psvit_core.files import check_model_file
from psvit_core.tasks.quantize import measure_quantized, write_quantized

#: As they are typed, and as ``STORED_WEIGHTS`` names them.
KINDS = {"int8": "int8", "fp16": "float16", "bf16": "bfloat16"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(command)
    add_data_arguments(command)
    command.add_argument(
        "--weights",
        choices=tuple(KINDS),
        default="int8",
        help="of convolutions and linear layers: int8 with a scale per output channel (default), "
        "fp16 or bf16. Everything else stays fp32",
    )
    command.add_argument(
        "--out",
        required=True,
        type=parse_path,
        metavar="F",
        help=".safetensors file for the quantized model",
    )
    command.add_argument(
        "--measure",
        action="store_true",
        help="measure the written file on all images of the split, against the unpruned network "
        "and against the same network in fp32, and record the result in it",
    )


def quantize(options: argparse.Namespace) -> tuple[Result, str]:
    """Write a model with weights in fewer bits; measure it."""
    check_model_file(options.out)
    session = make_session(options)
    if options.measure:
        session.data  # noqa: B018  # without images it fails here, before the work
    done = write_quantized(session, KINDS[options.weights], options.out)
    found = measure_quantized(session, done.out) if options.measure else None
    measured, alone = (found.measured, found.alone) if found else (None, None)
    result = {
        **dataclasses.asdict(done),
        "out": str(done.out),
        "file_bytes": done.out.stat().st_size,  # with the measurement
        "measurement": measured.to_dict() if measured else None,
        "against_float32": alone.to_dict() if alone else None,
    }
    text = (
        f"{done.out}: {result['file_bytes']:,} bytes. Weights in {done.kind}: "
        f"{done.weights_bytes:,} bytes instead of {done.float32_bytes:,} in float32, saves "
        f"{done.memory_saving:.2%} of the unpruned network's; they change by "
        f"{done.relative_change:.3%}"
    )
    lines = [text]
    if measured and alone and alone.drop:
        lines.append(measurement_text(measured))
        lines.append(f"quantized {drop_text(alone.drop)} against the same network in float32")
    return result, "\n".join(lines)
