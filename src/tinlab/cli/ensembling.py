"""Commands that make answers of one or many runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinlab import terminal
from tinlab.cli.common import AsJson, Device, OtherDataOption, app, no_folder
from tinlab.errors import TinlabError

if TYPE_CHECKING:
    from tinlab.evaluating.ensemble import Ensembles


@app.command()
def ensemble(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, two or more.")],
    split: Annotated[str, typer.Option(help="Which labelled split is measured.")] = "val",
    rule: Annotated[
        str | None, typer.Option(help="The rule that --out keeps.  [default: probabilities]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Keep the ensemble, for submit.")
    ] = None,
    data: OtherDataOption = None,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Let several runs answer together: votes, means, weights and selections, and what each gains."""
    from tinlab.data.places import open_data
    from tinlab.evaluating.ensemble import DEFAULT_RULE, compare_rules, save_ensemble
    from tinlab.evaluation.ensemble import RULES

    if rule is not None and out is None:
        raise TinlabError("--rule chooses what --out keeps; name a file with --out")
    if rule is not None and rule not in RULES:
        raise TinlabError(f"there is no rule '{rule}'; there are: {', '.join(RULES)}")
    no_folder(out, "ensemble.json")
    found = compare_rules(
        runs, split=split, pack=open_data(data) if data is not None else None, device=device
    )
    if out is not None:
        save_ensemble(found, out, rule or DEFAULT_RULE)
    if json:
        terminal.show_json({**found.to_json(), "ensemble": str(out.resolve()) if out else None})
        return
    _show(found)
    if out is not None:
        terminal.show(f"ensemble: {out.resolve()} ({rule or DEFAULT_RULE})")


def _show(found: Ensembles) -> None:
    terminal.show_table(
        ("", "member", "top-1", "top-5", "loss", "tune top-1"),
        [
            (
                i + 1,
                Path(member.run).resolve().name,
                f"{member.top1_percent:.2f}%",
                f"{member.top5_percent:.2f}%",
                f"{member.loss:.4f}",
                "" if member.tune_top1_percent is None else f"{member.tune_top1_percent:.2f}%",
            )
            for i, member in enumerate(found.members)
        ],
        right=("", "top-1", "top-5", "loss", "tune top-1"),
        title=f"{found.split}, {found.images:,} images",
    )
    for note in found.notes:
        terminal.show(f"note: {note}")
    rows = []
    for row in found.rows:
        how = row.combination
        weights = ""
        if how is not None and how.pool != "vote" and row.rule not in ("probabilities", "logits"):
            weights = " ".join(f"{weight:.2f}" for weight in how.weights)
            weights += f", T {how.temperature:.2f}" if how.pool == "logits" else ""
        rows.append(
            (
                row.rule,
                "–" if row.top1_percent is None else f"{row.top1_percent:.2f}%",
                "–" if row.top5_percent is None else f"{row.top5_percent:.2f}%",
                "–" if row.loss is None else f"{row.loss:.4f}",
                "–" if row.gain is None else f"{row.gain:+.2f} ({row.gain_low:+.2f} to {row.gain_high:+.2f})",
                "; ".join(text for text in (weights, row.note) if text),
            )
        )
    terminal.show()
    terminal.show_table(
        ("rule", "top-1", "top-5", "loss", "gain over the best member, points", "weights, or why none"),
        rows,
        right=("top-1", "top-5", "loss", "gain over the best member, points"),
    )
    terminal.show()
    for line in explain(found):
        terminal.out.print(terminal.plain(line), markup=False)


def explain(found: Ensembles) -> list[str]:
    """What the tables mean, in sentences."""
    best = f"member {found.best + 1}"
    if found.fitted_on_tune:
        first = (
            f"The best member on tune is {best}. It decides a vote's ties first; weights and selections were "
            "fitted on tune alone."
        )
    else:
        first = (
            f"{best.capitalize()} is the best member on {found.split} (for comparison alone: it was picked "
            "by what it is measured on). The order in which the members were named decides a vote's ties."
        )
    numbers = [
        f"{'unknown' if value is None else format(value, '.2f')} {what}"
        for value, what in (
            (found.mean_error_correlation, "over images"),
            (found.mean_class_error_correlation, "over classes"),
        )
    ]
    second = (
        f"Two members' errors correlate by {' and '.join(numbers)} on average; of members that are equally "
        "good, those gain more whose errors correlate less. "
        f"{found.any_right_percent:.2f}% of the images are right in at least one member and "
        f"{found.all_right_percent:.2f}% in all."
    )
    return [first, second]


@app.command()
def submit(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|ENSEMBLE.json", help="A run folder, or what 'ensemble --out' wrote."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file of answers.")] = Path("submission.txt"),
    split: Annotated[str, typer.Option(help="Which images; val is for trying it.")] = "test",
    data: OtherDataOption = None,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Write the challenge's file of answers: a line for each test image, checked before it stands there."""
    from tinlab.data.places import open_data
    from tinlab.evaluating.submission import submit as write_answers

    no_folder(out, "submission.txt")
    made = write_answers(
        source, out, split=split, pack=open_data(data) if data is not None else None, device=device
    )
    if json:
        shown = {"submission": str(out.resolve()), "split": split, "images": made.images}
        terminal.show_json({**shown, "top1_percent": made.top1_percent, "notes": list(made.notes)})
        return
    scores = "" if made.top1_percent is None else f"; it scores {made.top1_percent:.2f}%"
    terminal.show(f"submission: {out.resolve()} ({made.images:,} images of {split}{scores})")
    for note in made.notes:
        terminal.show(f"note: {note}")
