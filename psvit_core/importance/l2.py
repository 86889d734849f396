"""L2 norm of filters (the criterion of PrimeSVT, arXiv 2606.03428)."""

from psvit_core.importance._base import FilterNorm


class L2(FilterNorm):
    """Euclidean norm of a unit's filters."""

    name = "l2"
    order = 2
