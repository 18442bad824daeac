"""Write the pages that results.csv stands behind: RESULTS.md, those in docs/, and the figures."""

from __future__ import annotations

from pathlib import Path

from tinlab.errors import TinlabError
from tinlab.files import refused, write_text
from tinlab.papers.helps import what_helps_page
from tinlab.papers.page import results_page
from tinlab.papers.pictures import pictures
from tinlab.papers.sources import sources_page


def write_pages(results: Path, folder: Path | None = None) -> list[Path]:
    """Write RESULTS.md, docs/what-helps.md, docs/papers.md and results/figures/ into `folder`, and return
    their paths.

    By default `folder` is the one above the folder `results` that the file is in, or the file's own where
    that is called otherwise. Raises TinlabError where they cannot be written, or a remark cannot be read.
    """
    if folder is None:
        own = results.resolve().parent
        folder = own.parent if own.name == "results" else own
    texts = {
        folder / "RESULTS.md": results_page(results),
        folder / "docs" / "what-helps.md": what_helps_page(results),
        folder / "docs" / "papers.md": sources_page(),
    }
    written = []
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            written.append(path)
        for picture in pictures(results).values():
            picture.draw(folder / picture.place)
            written.append(folder / picture.place)
    except OSError as error:
        said = refused(error) or f"{folder} cannot be written: {error.strerror or error}"
        raise TinlabError(said) from error
    return written
