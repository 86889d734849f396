"""The picture of the network in a report."""

from __future__ import annotations

from psvit_core.picture import bytes_values, network_svg, sensitivity_values
from psvit_core.report.sources import RunReport


def network_picture(report: RunReport) -> str:
    """Return the picture of the network, as an SVG element.

    What the report's plan removes is hatched. Colours show the sweep's sensitivity; without a
    sweep, bytes.

    Args:
        report: What the store has of the run.
    """
    table = report.table
    values = sensitivity_values(table.rows) if table else bytes_values(report.summary)
    drawing = network_svg(report.summary, report.plan, values)
    return drawing.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)  # as in all HTML
