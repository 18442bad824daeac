"""Write the pages that results.csv stands behind: RESULTS.md, those in docs/, and the figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tinlab.errors import TinlabError
from tinlab.files import only_one, refused, write_text
from tinlab.papers.helps import what_helps_page
from tinlab.papers.page import results_page
from tinlab.papers.pictures import pictures
from tinlab.papers.sources import sources_page

PAGES: dict[str, Callable[[Path], str]] = {
    "RESULTS.md": results_page,
    "docs/what-helps.md": what_helps_page,
    "docs/papers.md": lambda results: sources_page(),
}
"""Page -> its text, from results.csv."""
OWN = "`tinlab results` writes this page "
"""How each of them begins, below its heading."""


def write_pages(results: Path, folder: Path | None = None, option: str = "--file") -> list[Path]:
    """Write RESULTS.md, docs/what-helps.md, docs/papers.md and results/figures/ into `folder`, and return
    their paths. Other processes that change `results` or write its pages wait meanwhile, so that no page is
    left that is older than the rows.

    By default `folder` is the one above the folder `results` that the file is in, or the file's own where
    that is called otherwise. Raises TinlabError where they cannot be written, where a remark cannot be read,
    and as `check_pages` does.
    """
    folder = folder or _folder(results)
    written = []
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
        with only_one(results.parent):
            check_pages(results, folder, option)
            texts = {folder / name: page(results) for name, page in PAGES.items()}
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


def check_pages(results: Path, folder: Path | None = None, option: str = "--file") -> None:
    """Raise TinlabError where a page of somebody else's stands where `write_pages` would write one; `option`
    names another place."""
    folder = folder or _folder(results)
    for path in (folder / name for name in PAGES):
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = [file.readline(1000) for _ in range(3)]
        if any(lines) and not (lines[0].startswith("# ") and lines[2].startswith(OWN)):
            raise TinlabError(
                f"{path} is no page that tinlab wrote, and would be replaced; move it aside, or name another "
                f"place with {option}"
            )


def _folder(results: Path) -> Path:
    own = results.resolve().parent
    return own.parent if own.name == "results" else own
