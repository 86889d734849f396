"""Names that users choose from, each list defined once.

``importance``, ``planners``, ``recover`` and ``pareto`` implement them;
``tests/records/test_names.py`` compares both sides.
"""

from __future__ import annotations

#: Planners; see ``psvit_core.planners``.
POLICIES = ("uniform", "psvit", "prime", "optimal")
#: Groups that a planner may prune: all, all but the residual streams, or the better of both.
SCOPES = ("all", "inner", "best")
#: Recovery methods that need no training; see ``psvit_core.recover``.
RECOVERIES = ("none", "bn", "lsq", "both", "stages", "stages_bn", "auto")
#: Recoveries whose sweep measures cells as pruned: they refit no layer.
_NO_REFIT = ("none", "bn")


def sweep_recovery(method: str) -> str:
    """Return the recovery of a sweep's cells under a recovery of plans.

    A cell's readers are refitted by least squares (``lsq``), whatever else follows in a plan.

    Args:
        method: One of ``RECOVERIES``.
    """
    return "none" if method in _NO_REFIT else "lsq"


#: Importance criteria that use weights only, and those that need calibration images.
WEIGHT_CRITERIA = ("l1", "l2", "l2_group", "fpgm", "bn_scale", "random")
IMAGE_CRITERIA = ("firing_rate", "activation_weight", "taylor", "reconstruction")
CRITERIA = (*WEIGHT_CRITERIA, *IMAGE_CRITERIA)
#: Resources that are exact functions of the group widths, and all resources a plan can save.
CLOSED_FORMS = ("memory", "memory_int8", "macs")
RESOURCES = (*CLOSED_FORMS, "energy", "latency")
#: Families whose MACs and SOPs were counted by another rule before -> the present rule's number.
#: Attention is counted as ``q (k^T v)`` there, as the published models compute it. The number is
#: part of the keys of their results, so that numbers by both rules are never compared.
_COUNTING = {
    "spikformer_imagenet": 2,
    "sdt_v2": 2,
    "qkformer_imagenet": 2,
    "qkformer_cifar": 2,
    "custom": 2,  # spikes of all time steps of a loop
}


def counting_of(family: str) -> int:
    """Return the number of the rule by which a family's MACs and SOPs are counted."""
    return _COUNTING.get(family, 1)


#: Forms of weights with fewer bits than float32; see ``psvit_core.quantize``.
STORED_WEIGHTS = ("int8", "float16", "bfloat16")

#: Horizontal axes of a Pareto front; less is better. Units: bytes, MACs, pJ, SOPs, ms, bytes.
AXES = ("bytes", "macs", "energy", "sops", "latency", "peak")
