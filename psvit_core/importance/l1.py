"""L1 norm of filters (Li et al. 2017, Pruning Filters for Efficient ConvNets, arXiv 1608.08710)."""

from psvit_core.importance._base import FilterNorm


class L1(FilterNorm):
    """Sum of the absolute weights of a unit's filters."""

    name = "l1"
    order = 1
