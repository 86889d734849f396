"""The command ``export``: a network as files that need nothing of this package."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.cli.options import add_model_arguments, parse_path
from psvit_core.cli.session import Result, make_session
from psvit_core.errors import OutputError
from psvit_core.files import expand_spec
from psvit_core.tasks.graph import CHECK_IMAGES, images_to_check

if TYPE_CHECKING:
    from psvit_core.export.checked import TracedExport

FORMATS = ("torch", "onnx", "pt2", "nir")
#: What each graph is checked with.
_RUNTIMES = {"onnx": "onnxruntime", "pt2": "torch", "nir": "a simulation of its nodes"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(command)
    command.add_argument(
        "--format",
        choices=FORMATS,
        help="torch (default): a Python file with the network's definition and a .safetensors file "
        "with its weights, which need only torch and safetensors; onnx: an ONNX file for "
        "onnxruntime and others; pt2: a graph of torch.export, which needs only torch; nir: a NIR "
        "graph of a network of your own, for neuromorphic tools. Without it, the suffix of "
        "--out decides",
    )
    command.add_argument(
        "--spikingjelly",
        action="store_true",
        help="with torch: use SpikingJelly's LIF neuron, so that the file needs SpikingJelly too",
    )
    command.add_argument(
        "--data",
        type=expand_spec,
        metavar="SPEC",
        help="with onnx, pt2 and nir: validation images to compare the file and torch on, as in "
        "`evaluate` (default: seeded random images)",
    )
    command.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help=f"with --data: a stratified subset of N images (default {CHECK_IMAGES})",
    )
    command.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="with pt2: the file takes N images at a time and no other number, for programs that "
        "cannot read an open one, and for networks whose images influence each other (default: "
        "any number)",
    )
    command.add_argument(
        "--out",
        required=True,
        type=parse_path,
        metavar="F",
        help=".py, .onnx, .pt2 or .nir file; the weights of a .py file are written beside it",
    )


def export(options: argparse.Namespace) -> tuple[Result, str]:
    """Write a model for a place without this program."""
    suffix = Path(options.out).suffix.removeprefix(".")
    options.format = options.format or (suffix if suffix in _RUNTIMES else FORMATS[0])
    _check_options(options)
    return _torch(options) if options.format == "torch" else _traced(options)


def _check_options(options: argparse.Namespace) -> None:
    """Raise ``OutputError`` for options of other formats."""
    if options.format == "torch" and (options.data or options.limit is not None):
        raise OutputError(
            "--data and --limit choose the images that --format onnx, pt2 and nir are checked on. "
            "Omit them for --format torch."
        )
    if options.format != "torch" and options.spikingjelly:
        raise OutputError(
            f"--format {options.format} contains no neurons of SpikingJelly. Omit --spikingjelly, "
            "or use --format torch."
        )
    if options.batch is not None and options.format != "pt2":
        raise OutputError(
            "--batch is for --format pt2. The other formats take any number of images."
        )
    if options.limit is not None and not options.data:
        raise OutputError("--limit is a number of images of --data. Give --data, too.")


def _torch(options: argparse.Namespace) -> tuple[Result, str]:
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


def _traced(options: argparse.Namespace) -> tuple[Result, str]:
    from psvit_core.export import export_nir, export_onnx, export_pt2
    from psvit_core.export.checked import as_result, as_text, check_traced_path
    from psvit_core.export.nir_file import check_nir_packages
    from psvit_core.export.onnx_file import check_onnx_packages

    check_traced_path(options.out, f".{options.format}", options.model)
    checks = {"onnx": check_onnx_packages, "nir": check_nir_packages}
    if options.format in checks:
        checks[options.format]()
    pt2 = functools.partial(export_pt2, batch=options.batch)
    writers: dict[str, Callable[..., TracedExport]]
    writers = {"onnx": export_onnx, "pt2": pt2, "nir": export_nir}
    options.limit = options.limit or CHECK_IMAGES
    session = make_session(options)
    given = session.subject.data is not None
    images, what = images_to_check(session, options.limit) if given else (None, "")
    done = writers[options.format](session.model, options.out, images, what=what)
    result = {"format": options.format, **as_result(done)}
    return result, as_text(done, _RUNTIMES[options.format])
