"""Write a report: the page, and its figures and data as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from psvit_core.errors import OutputError
from psvit_core.files import check_writable, expand, write_text
from psvit_core.records import EpochRecord, ModelSummary, PrunePlan, SensitivityTable
from psvit_core.report.page import drawings, render
from psvit_core.report.sources import RunReport


def check_page_path(path: str | Path) -> Path:
    """Return the path of a page, if one can be written there.

    Raises:
        OutputError: If its suffix is another, or it cannot be written.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"A report is an .html file; got {str(path)!r:.80}. Change the suffix.")
    return check_writable(path)


def write_page(report: RunReport, path: str | Path) -> Path:
    """Write the report as one HTML file.

    Raises:
        OutputError: If the path is no .html file or cannot be written.
    """
    return write_text(check_page_path(path), render(report))


def write_files(report: RunReport, folder: str | Path) -> list[Path]:
    """Write figures as SVG and data as CSV and JSON, as far as the store has them.

    Args:
        report: What the store has of the run.
        folder: Folder of the files; it is made if its parent exists. Files of the same names are
            replaced.

    Returns:
        The files: ``heatmap.svg``, ``front.svg``, ``curve.svg``, ``sweep.csv``, ``front.csv``,
        ``plan.csv``, ``curve.csv``, ``plan.json``.

    Raises:
        OutputError: If they cannot be written.
    """
    place = expand(folder)
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot make the folder {place}: {error.strerror}. Choose another place."
        ) from error
    texts = {f"{name}.svg": d.to_svg(alone=True) for name, d in drawings(report).items()}
    if report.table is not None:
        texts["sweep.csv"] = _sweep_csv(report.table)
    if report.archive is not None:
        texts["front.csv"] = report.archive.to_csv()
    if report.plan is not None:
        texts["plan.csv"] = _plan_csv(report.summary, report.plan)
    if report.curve:
        texts["curve.csv"] = _curve_csv(report.curve)
    written = [write_text(place / name, text) for name, text in texts.items()]
    if report.plan is not None:
        written.append(report.plan.save(place / "plan.json"))
    return written


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()


def _sweep_csv(table: SensitivityTable) -> str:
    columns = "group,prune_ratio,n_pruned,accuracy,accuracy_low,accuracy_high,drop_pp,drop_low,"
    columns += "drop_high,kl,agreement,bytes,sops,n_images"
    return _csv(
        columns.split(","),
        (
            (
                *(r.group_id, r.prune_ratio, r.n_pruned),
                *(r.accuracy.value, r.accuracy.low, r.accuracy.high),
                *(r.drop.value, r.drop.low, r.drop.high),
                *(r.kl, r.agreement, r.size.bytes, r.sops, r.n_images),
            )
            for r in table.rows
        ),
    )


def _plan_csv(summary: ModelSummary, plan: PrunePlan) -> str:
    rows = (
        (g.group_id, g.place, g.title, g.n_units, len(plan.kept.get(g.group_id, range(g.n_units))))
        for g in summary.groups
    )
    return _csv(("group", "block", "title", "units", "kept"), rows)


def _curve_csv(epochs: Sequence[EpochRecord]) -> str:
    columns = "epoch,step,lr,train_loss,val_loss,val_accuracy,val_accuracy_low,val_accuracy_high"
    return _csv(
        columns.split(","),
        (
            (
                *(e.epoch, e.step, e.lr, e.train_loss, e.val_loss),
                *((a.value, a.low, a.high) if (a := e.val_accuracy) else (None, None, None)),
            )
            for e in epochs
        ),
    )
