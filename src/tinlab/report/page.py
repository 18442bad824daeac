"""The report: a single HTML file that opens from a disk and asks nothing of a network.

Of one run it is read from top to bottom: the verdict, how training went, what the network knows and where it
errs, what it looks at, and how to repeat it. Of several it begins with their comparison, of a study with the
study's table.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.files import plain, write_text
from tinlab.report.knobs import shown
from tinlab.report.phrases import percent
from tinlab.report.record import read_run
from tinlab.report.sections import Source, gather, sections
from tinlab.report.versus import versus

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


@dataclass(frozen=True)
class StudyPart:
    """What a study's own part of a page shows; `chart` is an <svg> element that is trusted, all else is not.

    `lines` are (line, its mean as shown, its difference as shown), `fields` (path, a value a recipe), `rows`
    (row, how it ended).
    """

    name: str
    summary: str
    verdict: str
    seeds: tuple[int, ...]
    lines: Sequence[tuple[Any, str, str]]
    note: str
    fields: Sequence[tuple[str, Sequence[str]]]
    rows: Sequence[tuple[Any, str]]
    chart: str

    @property
    def recipes(self) -> list[str]:
        """The recipes' names, in the order of `lines`."""
        return [line.recipe for line, _, _ in self.lines]


def write_report(
    runs: Path | Sequence[Path],
    *,
    out: Path | None = None,
    pack: Pack | None = None,
    explain: bool = True,
    study: StudyPart | None = None,
    device: str = "auto",
) -> Path:
    """Write the report of the run or runs in these folders to `out`, and return its path.

    `out` is by default RUN/report.html of a single run, and report.html in the working folder of several.
    `pack` gives the example images; by default each run's own, and where that is gone the page names images
    by their row. With `explain`, a handful of images stands beside maps of what the network looks at, which
    takes some seconds. `study` stands on top.

    Raises TinlabError where a file of a run is missing or damaged, where `pack` is not the one that was
    predicted, where a run is named twice, or where `out` cannot be written.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise TinlabError("a run is named twice; give different runs")
    if not folders and study is None:
        raise TinlabError("there is no run to report on; name one")
    sources = [gather(read_run(folder), pack, device) for folder in folders]
    alone = len(folders) == 1 and study is None
    target = Path(out) if out is not None else folders[0] / "report.html" if alone else Path("report.html")
    html = render(sources, explain=explain, study=study)
    try:
        write_text(target, html)
    except OSError as error:
        raise TinlabError(f"{target} cannot be written ({error.strerror}); choose another place") from error
    return target


def render(sources: Sequence[Source], *, explain: bool = True, study: StudyPart | None = None) -> str:
    """The page's HTML. Raises TinlabError as `write_report` does."""
    if len(sources) == 1 and study is None:
        return render_template("page.html", run=sections(sources[0], explain=explain))
    together = versus(sources, explain=explain) if len(sources) > 1 else None
    letters = [line.letter for line in together["lines"]] if together else ["A"] * len(sources)
    # The maps stand in the comparison; of a single run within a study, in its own section.
    each = [sections(source, explain=explain and together is None) for source in sources]
    return render_template(
        "several.html", study=study, together=together, runs=list(zip(letters, each, strict=True))
    )


def render_template(name: str, **values: Any) -> str:
    """One of the templates beside this file, with the style and the script that every page has."""
    from markupsafe import Markup

    script = (HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template(name)
        .render(
            **values,
            style=Markup((HERE / "page.css").read_text("utf-8")),
            script=Markup(script),
            script_digest=digest,
        )
    )


def _harmless(value: Any) -> Any:
    """`value` without characters that turn a line of text around or that no page may hold."""
    return plain(value) if type(value) is str else value


def environment() -> Environment:
    """Where templates come from. Whatever they are given is escaped, but for what figures.py drew (`safe` in
    the templates), a study's chart, and what lies beside this file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(percent=percent, shown=shown)
    return found
