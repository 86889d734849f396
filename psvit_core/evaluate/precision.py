"""The check that predictions in a reduced precision are those of float32.

A neuron fires or not, so that rounding flips single spikes, and sometimes a prediction. How often
is a matter of the network and its images. So a sample of the images runs in float32, too, and the
result says how many predictions are equal.
"""

from __future__ import annotations

from collections.abc import Callable

from psvit_core.data import EvalSet
from psvit_core.evaluate.inference import Prediction
from psvit_core.records import PrecisionCheck
from psvit_core.runtime import Run
from psvit_core.storage.predictions import Array

SAMPLE = 256  # images


def n_sampled(n_images: int, cluster: int | None, wanted: int = SAMPLE) -> int:
    """Return how many of some images are compared.

    Args:
        n_images: All images.
        cluster: Batch size if the images of a batch influence each other: whole batches run.
        wanted: Images at least, if there are as many.
    """
    return min(n_images, -(-wanted // cluster) * cluster if cluster else wanted)


def check_precision(
    predicted: Callable[[EvalSet, Run], Prediction],
    data: EvalSet,
    logits: Array,
    run: Run,
    cluster: int | None,
) -> PrecisionCheck | None:
    """Compare predictions with float32 on the first images; None if the precision is not reduced.

    Args:
        predicted: Runs the measured network on images.
        data: The measured images; their first ones are a fair sample.
        logits: Of all images, (n_images, num_classes).
        run: Device, batch, precision of the measurement.
        cluster: Batch size if the images of a batch influence each other.
    """
    if not run.is_reduced:
        return None
    n_images = n_sampled(len(data), cluster)
    exact = predicted(data.take(range(n_images)), run.exact).logits
    equal = exact.argmax(axis=1) == logits[:n_images].argmax(axis=1)
    return PrecisionCheck(n_images=n_images, n_equal=int(equal.sum()))
