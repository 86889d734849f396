"""How far an exported graph agrees with the network that it was traced from.

In float32, two programs that sum in another order differ in the last bits. Where a potential is
that close to its threshold, a spike flips, and whatever depends on it follows. So logits may differ
without any fault. Three comparisons tell rounding from faults:

- Whole network: predictions and logits of all images.
- Layer by layer, on a few images: every layer gets the spikes that torch computed, so that no flip
  spreads. The layer's currents must then agree within rounding, and each flip is one single spike.
- Where the logits of most images differ, torch in float64 against torch in float32 says how much
  this network's rounding explains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from psvit_core.errors import ExportError
from psvit_core.export.traced import WithSpikes

Array = npt.NDArray[np.float64]
#: Program that maps images (B, C, H, W) to logits (B, num_classes).
Network = Callable[[Tensor], Tensor]
#: Takes one image, torch's spikes by call of a neuron; returns logits, then current and spikes of
#: each call. None for a current that the graph does not have by itself.
Layers = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor | None]]

ROUNDING = 1e-3  # of an image's largest logit: logits that differ by less are called equal
#: Of the largest value of a layer. Sums that cancel have reached 1.5e-4 (E-SpikeFormer's unfolded
#: convolutions); a wrong operation changes values by their own size.
LAYER_ROUNDING = 1e-2
MOST_FLIPS = 0.01  # of a run's single spikes, each layer given torch's
_LAYER_IMAGES = 4  # compared layer by layer
_BATCH = 8
_MORE = 4.0  # times what float64 changes


@dataclass(frozen=True, kw_only=True)
class LayerAgreement:
    """Comparison layer by layer, each layer given torch's spikes."""

    n_images: int
    n_layers: int  # calls of neuron layers
    n_outputs: int  # of neurons, over images and time steps
    spikes_torch: float  # sum of these outputs; integer neurons give levels
    spikes_export: float
    n_flips: int  # outputs that differ
    max_current_difference: float  # relative to the layer's largest current


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Comparison of an exported file with the network in torch, in float32."""

    images: str  # what they are
    n_images: int
    n_other_predictions: int
    n_equal_logits: int  # images whose logits agree within rounding
    max_logit_difference: float
    largest_logit: float
    layers: LayerAgreement | None  # None: not compared


def compare(
    model: Network, export: Network, images: Tensor, what: str, *, batch: int | None = None
) -> Agreement:
    """Run a model and its export on images, and compare their logits.

    Args:
        model: The network in torch.
        export: What was written.
        images: (n, C, H, W), or frames (n, T, C, H, W).
        what: What the images are.
        batch: Images of one call of both; None where the number does not matter.

    Raises:
        ExportError: If the export's logits are not finite while the model's are.
    """
    expected, got = _logits(model, images, batch), _logits(export, images, batch)
    if not np.isfinite(got).all():
        raise ExportError("The exported file returns NaN or infinite logits. Nothing was written.")
    return Agreement(
        images=what,
        n_images=len(images),
        n_other_predictions=int((expected.argmax(1) != got.argmax(1)).sum()),
        n_equal_logits=int((_distances(expected, got) <= ROUNDING).sum()),
        max_logit_difference=float(np.abs(expected - got).max()),
        largest_logit=float(np.abs(expected).max()),
        layers=None,
    )


def check_logits(
    model: Network,
    export: Network,
    network: nn.Module,
    images: Tensor,
    *,
    allowed: float,
    batch: int | None = None,
) -> None:
    """Check that rounding explains how the logits of the median image differ.

    Args:
        model: The network in torch, in its own precision.
        export: What was written.
        network: The same network as a module of plain operations, which is run in float64.
        images: As for ``compare``.
        allowed: Difference that needs no explanation, relative to an image's largest logit.
        batch: As for ``compare``.

    Raises:
        ExportError: If it does not.
    """
    expected = _logits(model, images, batch)
    found = float(np.median(_distances(expected, _logits(export, images, batch))))
    if found <= allowed:
        return
    double = copy.deepcopy(network).double()
    explained = float(np.median(_distances(expected, _logits(double, images, batch))))
    if found > max(allowed, _MORE * explained):
        raise ExportError(
            f"The exported file computes something else: for half of {len(images)} images, a logit "
            f"differs by {found:.2g} of the largest or more. Rounding explains {explained:.2g}, as "
            "torch in float64 shows. Nothing was written. Please report this with the model."
        )


def compare_layers(network: WithSpikes, export: Layers, images: Tensor) -> LayerAgreement:
    """Compare a traced network layer by layer with what was traced, on the first few images.

    Args:
        network: In plain torch operations.
        export: Runs the same layers, each on the spikes that it is given.
        images: As for ``compare``.

    Raises:
        ExportError: If a layer's currents or its spikes differ by more than rounding explains.
    """
    images = images[:_LAYER_IMAGES]
    n_layers = n_outputs = n_flips = 0
    totals, worst = [0.0, 0.0], 0.0
    for image in images.split(1):
        with torch.no_grad():
            logits, *expected = network(image)
        given = expected[1::2]
        got_logits, *got = export(image, given)
        worst = max(worst, _current_difference("the head", logits, got_logits))
        n_layers = len(given)
        for call, (spikes, fired) in enumerate(zip(given, got[1::2], strict=True)):
            where = f"neuron layer {call + 1} of {n_layers}"
            difference = _current_difference(where, expected[2 * call], got[2 * call])
            worst = max(worst, difference)
            assert fired is not None
            n_outputs += spikes.numel()
            n_flips += int((spikes != fired).sum())
            totals[0] += float(spikes.double().sum())
            totals[1] += float(fired.double().sum())
    if n_flips > MOST_FLIPS * n_outputs:
        raise ExportError(
            f"The exported neurons compute something else: {n_flips:,} of {n_outputs:,} outputs "
            f"differ on the same inputs; rounding flips at most {MOST_FLIPS:.0%}. Nothing was "
            "written. Please report this with the model."
        )
    return LayerAgreement(
        n_images=len(images),
        n_layers=n_layers,
        n_outputs=n_outputs,
        spikes_torch=totals[0],
        spikes_export=totals[1],
        n_flips=n_flips,
        max_current_difference=worst,
    )


def _current_difference(where: str, expected: Tensor, got: Tensor | None) -> float:
    """Return the largest difference, relative to the layer's largest value.

    Raises:
        ExportError: If rounding does not explain it.
    """
    if got is None:
        return 0.0
    scale = float(expected.abs().max()) or 1.0
    difference = float((expected - got).abs().max()) / scale
    if not difference <= LAYER_ROUNDING:  # NaN, too
        raise ExportError(
            f"The exported file computes something else: on the same spikes, the input of {where} "
            f"differs by {difference:.2g} of its largest value; rounding explains less than "
            f"{LAYER_ROUNDING:g}. Nothing was written. Please report this with the model."
        )
    return difference


def _logits(network: Network, images: Tensor, batch: int | None) -> Array:
    """Return logits, (n, num_classes), in float64, computed in the network's precision."""
    kind = torch.float64 if _is_double(network) else images.dtype
    with torch.no_grad():
        parts = [network(part.to(kind)) for part in images.split(batch or _BATCH)]
    return torch.cat(parts).double().numpy()


def _is_double(network: Network) -> bool:
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    return any(p.dtype == torch.float64 for p in parameters)


def _distances(expected: Array, got: Array) -> Array:
    """Return each image's largest difference of a logit, relative to its largest logit."""
    scale = np.maximum(np.abs(expected).max(1), np.finfo(np.float32).tiny)
    distances: Array = np.abs(expected - got).max(1) / scale
    return distances
