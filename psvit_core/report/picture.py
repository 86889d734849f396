"""The place of the network's picture in a report."""

from __future__ import annotations

from psvit_core.report.sources import RunReport


def network_picture(report: RunReport) -> str:
    """Return the picture of the network with the report's plan, as an SVG element.

    Args:
        report: What the store has of the run.

    Returns:
        Empty if there is no picture: the page then has no such section.
    """
    return ""
