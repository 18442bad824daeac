"""Write the pages that results.csv stands behind: RESULTS.md, docs/what-helps.md, and the figures."""

from __future__ import annotations

from pathlib import Path

from tinlab.errors import TinlabError
from tinlab.files import refused, write_text
from tinlab.papers.charts import error_curves
from tinlab.papers.page import curve_of, figure_of, results_page, what_helps_page
from tinlab.papers.registry import PAPERS
from tinlab.results import read_results


def write_pages(results: Path, folder: Path | None = None) -> list[Path]:
    """Write RESULTS.md, docs/what-helps.md and results/figures/ into `folder`, by default the one that holds
    the folder of `results`, and return their paths. Raises TinlabError where they cannot be written."""
    folder = results.resolve().parent.parent if folder is None else folder
    lines = read_results(results)
    texts = {
        folder / "RESULTS.md": results_page(results),
        folder / "docs" / "what-helps.md": what_helps_page(results),
    }
    written = []
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            written.append(path)
        for row in (row for paper in PAPERS for row in paper.rows):
            curve, place = curve_of(row, results, lines), figure_of(row, results, lines)
            if curve is not None and place is not None:
                error_curves(curve, row, folder / place)
                written.append(folder / place)
    except OSError as error:
        said = refused(error) or f"{folder} cannot be written: {error.strerror or error}"
        raise TinlabError(said) from error
    return written
