"""Top-5 accuracy and confusions, against results by hand."""

from __future__ import annotations

import numpy as np

from psvit_core.stats import wilson_interval
from psvit_core.storage.predictions import MOST_CONFUSIONS, Outcome, top5_accuracy


def outcome(labels: list[int], predictions: list[int]) -> Outcome:
    n = len(labels)
    return Outcome(
        ids=np.array([f"image-{i}" for i in range(n)]),
        labels=np.array(labels),
        predictions=np.array(predictions),
        kl=np.zeros(n),
        sops=np.zeros(n),
    )


def test_confusions_by_hand() -> None:
    baseline = outcome([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0])
    pruned = outcome([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 2, 0])
    assert pruned.confusions(baseline, ("cat", "dog", "owl")) == (
        ("dog", "owl", 2, 0),
        ("cat", "dog", 2, 1),
        ("owl", "cat", 1, 1),
    )
    assert pruned.confusions(baseline, ("cat", "dog"))[0] == ("dog", "2", 2, 0)  # no such name
    assert baseline.confusions(baseline, ("cat", "dog", "owl"))[0][2:] == (1, 1)


def test_confusions_are_limited() -> None:
    labels = list(range(2 * MOST_CONFUSIONS))
    off = outcome(labels, [label + 1 for label in labels])
    right = outcome(labels, labels)
    assert len(off.confusions(right, [str(label) for label in range(1000)])) == MOST_CONFUSIONS


def test_top5_from_20_classes_up() -> None:
    logits = np.zeros((4, 20))
    logits[0, 3] = 1  # the best of its image
    logits[1, :4], logits[1, 7] = 9, 1  # the fifth
    logits[2, :5], logits[2, 7] = 9, 1  # the sixth
    logits[3, 1:] = 2  # the last of all
    found = top5_accuracy(logits, [3, 7, 7, 0])
    low, high = wilson_interval(2, 4)
    assert found is not None and (found.value, found.low, found.high) == (0.5, low, high)
    assert top5_accuracy(logits[:, :19], [3, 7, 7, 0]) is None
