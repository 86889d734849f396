"""A run as one HTML page that opens without a network, with its figures and data as files.

``sources`` collects what the store has, ``figures`` draws it as SVG, ``page`` fills the template.
"""

from __future__ import annotations

from psvit_core.report.sources import RunReport, StoredJob, collect
from psvit_core.report.writing import check_page_path, write_files, write_page

__all__ = ["RunReport", "StoredJob", "check_page_path", "collect", "write_files", "write_page"]
