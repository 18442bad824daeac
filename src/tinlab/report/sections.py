"""What a report says of one run, section by section: the values that the templates show, by name."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinlab.classifier import Classifier
from tinlab.data.pack import BOTH, Pack, Split
from tinlab.errors import TinlabError
from tinlab.evaluating import Evaluation, evaluate, saved_predictions
from tinlab.evaluation.calibration import Calibration, calibrated
from tinlab.evaluation.metrics import Judged, Metrics, judge, measure
from tinlab.evaluation.scores import scores
from tinlab.report import network, wording
from tinlab.report.against import paper_sentence
from tinlab.report.curves import run_charts
from tinlab.report.examples import Examples, matching_split
from tinlab.report.figures import reliability_chart, sorted_bars
from tinlab.report.knobs import knob_groups, provenance_counts, shown, with_edits, with_own_values
from tinlab.report.phrases import duration
from tinlab.report.record import RunRecord, number
from tinlab.runs import open_run, pack_of, seen, whether_seen

ENDS_SHOWN = 5
"""How many of the best and of the worst classes are shown with images."""
SURE = 0.9
VIEW_WORDS = {
    "flip": "mean over the image and its mirror image",
    "shift": "mean over ten mirrored and shifted views",
}
"""What test-time augmentations do, by name."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """One run as it was read: its folder's record, its pack or why there is none, its network or why there is
    none, and what was measured and saved of it besides its plain predictions."""

    record: RunRecord
    pack: Pack | None
    no_pack: str
    classifier: Classifier | None
    no_classifier: str
    evaluation: Evaluation | None
    metrics: Metrics | None
    judged: Judged | None

    @property
    def split(self) -> Split | None:
        """The predicted split of the pack; without predictions, val."""
        if self.pack is None:
            return None
        if self.record.predictions is None or not self.record.predictions.labelled:
            return self.pack.split("val") if "val" in self.pack.splits else None
        return matching_split(self.pack, self.record, self.record.predictions)


def gather(record: RunRecord, pack: Pack | None, device: str) -> Source:
    """Everything that there is of a run. `pack` is by default its own, where that is still as it was.

    Raises TinlabError where predictions cannot be judged, or `pack` is not the one that was predicted, or is
    damaged.
    """
    predictions = record.predictions if record.predictions and record.predictions.labelled else None
    no_pack = ""
    if pack is None:
        try:
            pack = pack_of(open_run(record.path))
            if (shown := predictions.split if predictions else "val") in (*pack.splits, BOTH):
                pack.split(shown).verify_once()
        except TinlabError as error:
            pack, no_pack = None, brief(error)
    metrics = judged = evaluation = None
    if predictions is not None:
        try:
            judged = judge(predictions.logits, predictions.labels)
            metrics = measure(predictions.logits, predictions.labels)
        except TinlabError as error:
            file = record.path / "predictions" / f"{predictions.split}.safetensors"
            raise TinlabError(f"{file}: {error}") from error
        evaluation = _saved_evaluation(record.path, predictions.split)
    classifier, no_classifier = None, ""
    try:
        classifier = network.opened(record, device)
    except TinlabError as error:
        no_classifier = brief(error)
    source = Source(record, pack, no_pack, classifier, no_classifier, evaluation, metrics, judged)
    if (split := source.split) is not None:  # which refuses a pack that does not fit
        split.verify_once()
    return source


def brief(error: TinlabError, most: int = 240) -> str:
    """What an error says, as part of a sentence: some list every layer of a network."""
    text = str(error).rstrip(".")
    return text if len(text) <= most else f"{text[:most].rsplit(' ', 1)[0]} …"


def sections(source: Source, *, explain: bool = True) -> dict[str, Any]:
    """Everything that the templates show of one run, by name. What there is nothing of is None or empty."""
    record, metrics = source.record, source.metrics
    recipe = record.recipe
    told = with_edits(recipe)
    paper = _dict(recipe.get("paper"))
    return {
        "title": str(recipe.get("name") or record.path.name),
        "folder": record.path.name,
        "recipe": recipe,
        "paper": paper,
        "result": record.result or {},
        "environment": record.environment,
        "resumed": wording.resumptions(record),
        "pack_facts": record.pack,
        "damaged_lines": record.damaged_lines,
        "verdict": wording.verdict(record, metrics),
        "basis": wording.basis(record),
        "notes": wording.notes_of(source.evaluation),
        "tiles": _tiles(record, metrics),
        "charts": run_charts(record),
        "points": record.held_out,
        "sizes": wording.sizes_sentence(record),
        "gap": wording.gap_sentence(record),
        "augments": wording.augments(record),
        "comparison": _against_paper(record, metrics),
        "paper_lead": paper_sentence(record, metrics) if paper.get("reported") else "",
        "groups": knob_groups(with_own_values(told)),
        "provenance": provenance_counts(told),
        "predictions": record.predictions,
        "metrics": metrics,
        "no_pack": source.no_pack,
        "repeat": repeat_command(record),
        **_measured(source),
        **_looked_into(source, explain),
    }


def _measured(source: Source) -> dict[str, Any]:
    """What can be said of single classes and images; all None without labelled predictions."""
    record, metrics, judged = source.record, source.metrics, source.judged
    predictions = record.predictions
    if metrics is None or judged is None or predictions is None:
        names = (
            "accuracy", "accuracy_lead", "class_rows", "classes_lead", "best", "worst", "class_bars",
            "confusions", "confusions_lead", "errors", "errors_lead", "doubted", "reliability", "calibration",
            "calibration_table", "temperature", "temperature_note", "robustness", "robustness_lead",
            "suspects", "labels_lead",
        )  # fmt: skip
        return {**dict.fromkeys(names), "pictured": False}
    evaluation, split = source.evaluation, source.split
    examples = Examples(predictions, judged, record.classes, split)
    rows = examples.class_rows(metrics, pictured=ENDS_SHOWN)
    ends = min(ENDS_SHOWN, len(rows) // 2)  # with few classes, none is both among the best and the worst
    confusions = examples.confusions(metrics)
    plain = scores(judged)
    augmented = evaluation.tta if evaluation else {}
    sure = int((judged.confidence[~judged.correct] > SURE).sum())
    suspects = examples.suspects()
    doubted = {card.index for card in suspects}
    errors = examples.errors()
    above = {example.index for example in errors} & doubted
    robustness = evaluation.robustness if evaluation else None
    return {
        "accuracy": [("as it is", plain), *((VIEW_WORDS.get(n, n), of) for n, of in augmented.items())],
        "accuracy_lead": wording.accuracy_sentence(predictions.split, plain, augmented),
        "class_rows": rows,
        "classes_lead": wording.classes_sentence(rows),
        "best": rows[:ends],
        "worst": rows[::-1][:ends],
        "class_bars": sorted_bars(
            [row.top1_percent for row in rows],
            label=f"Accuracy of every class, best to worst. {wording.classes_sentence(rows)}",
        ),
        "confusions": confusions,
        "confusions_lead": wording.confusions_sentence(confusions, metrics),
        "errors": errors,
        "doubted": above if len(above) < len(errors) else set(),
        "errors_lead": wording.errors_sentence(metrics, len(errors), sure),
        **_calibration(predictions.logits, predictions.labels, judged, evaluation),
        "robustness": robustness,
        "robustness_lead": wording.robustness_sentence(robustness) if robustness else "",
        "suspects": examples.with_pictures([card for card in suspects if card.index not in above]),
        "labels_lead": wording.labels_sentence(
            metrics.images,
            len(suspects),
            len(above),
            len(errors),
            predictions.split,
            _seen(record, predictions.split),
        ),
        "pictured": split is not None,
    }


def _calibration(
    logits: np.ndarray, labels: np.ndarray, judged: Judged, evaluation: Evaluation | None
) -> dict[str, Any]:
    plain = evaluation.calibration if evaluation else calibrated(logits, labels, judged=judged)
    fitted = evaluation.temperature if evaluation else None
    shown_ones: list[tuple[str, Calibration]] = [("as it is", plain)]
    if fitted is not None:
        shown_ones.append((f"logits / {fitted.temperature:.3f}", fitted.after))
    return {
        "reliability": [
            (
                name,
                reliability_chart(
                    found.reliability,
                    label=f"Reliability chart, {name}. {wording.calibration_sentence(found)}",
                ),
            )
            for name, found in shown_ones
        ],
        "calibration": wording.calibration_sentence(plain, fitted),
        "calibration_table": shown_ones,
        "temperature": fitted,
        "temperature_note": evaluation.temperature_note if evaluation else None,
    }


def _looked_into(source: Source, explain: bool) -> dict[str, Any]:
    """What the network looks at, its filters and what was pruned; each with why it is missing where it is."""
    found: dict[str, Any] = {
        "explained": (), "explained_lead": "", "no_maps": "", "filters": None, "filters_lead": "",
        "no_filters": "", "pruning": None, "pruning_lead": "",
    }  # fmt: skip
    classifier, split = source.classifier, source.split
    if classifier is None:
        return {**found, "no_maps": f"The network could not be opened: {source.no_classifier}."}
    try:
        sheet = network.filter_sheet(classifier)
        found["filters"] = sheet
        found["filters_lead"] = wording.filters_sentence(
            sheet.shown, sheet.of, sheet.filter_height, sheet.filter_width, sheet.layer
        )
    except TinlabError as error:
        found["no_filters"] = f"There is no picture of them: {brief(error)}."
    if (cut := network.pruning(source.record, classifier)) is not None:
        found["pruning"], found["pruning_lead"] = cut, wording.pruning_sentence(cut)
    if not explain:
        found["no_maps"] = (
            "No image was explained, as asked for; tinlab report makes maps without --no-explain."
        )
    elif split is None:
        found["no_maps"] = "Without the pack there are no images to explain."
    else:
        indices = source.record.predictions.indices if source.record.predictions else None
        try:
            made = network.explained(classifier, network.picked(split, indices, source.judged))
        except TinlabError as error:
            found["no_maps"] = f"No image could be explained: {brief(error)}."
        else:
            found["explained"] = made
            found["explained_lead"] = wording.explained_sentence(sum(e.right for e in made), len(made))
    return found


def repeat_command(record: RunRecord) -> str:
    """The command that trains the same again from the run's own recipe file, wherever it is typed."""
    words = ["tinlab", "train", str(record.path.resolve() / "recipe.json")]
    run_seed = number((record.result or {}).get("seed"))
    with suppress(TinlabError):  # a run whose other files are gone
        run = open_run(record.path)
        words += ["--data", run.pack]
        if run.weights_path is not None and run.weights_path != run.recipe.model.weights:
            words += ["--set", f"model.weights={run.weights_path}"]
        run_seed = run.seed
    if run_seed is not None:
        words += ["--seed", f"{run_seed:.0f}"]
    return shlex.join(words)


def _saved_evaluation(run: Path, split: str) -> Evaluation | None:
    """What `evaluate` says of the saved predictions; None where there are none of the last checkpoint."""
    try:
        return evaluate(run, split=split) if saved_predictions(run, split=split) is not None else None
    except TinlabError:
        return None  # an unfinished or older run: the plain predictions still stand


def _tiles(record: RunRecord, metrics: Metrics | None) -> list[tuple[str, str, str]]:
    """(label, value, small print) of the key numbers that are known."""
    result = record.result or {}
    tiles: list[tuple[str, str, str]] = []

    def add(label: str, value: float | None, text: str, small: str = "") -> None:
        if value is not None:
            tiles.append((label, text.format(value), small))

    if metrics:
        low, high = metrics.top1_interval_percent
        add("Top-1", metrics.top1_percent, "{:.2f}%", f"{low:.2f} to {high:.2f}%")
        if metrics.classes > 5:  # below that it says nothing
            add("Top-5", metrics.top5_percent, "{:.2f}%", "any of the first five")
        add("Cross-entropy", metrics.loss, "{:.3f}", f"chance is {math.log(metrics.classes):.2f}")
        add("Calibration error", metrics.calibration_error_percent, "{:.2f}%", "expected, 15 bins")
    else:
        add("Top-1", number(result.get("top1_percent")), "{:.2f}%")
        add("Top-5", number(result.get("top5_percent")), "{:.2f}%")
        add("Cross-entropy", number(result.get("loss")), "{:.3f}")
    seconds, elapsed = number(result.get("train_seconds")), number(result.get("elapsed_seconds"))
    if seconds is not None:
        tiles.append(
            (
                "Training time",
                duration(seconds),
                f"{duration(elapsed)} in all" if elapsed else "",
            )
        )
    steps = number(result.get("steps"))
    add("Epochs", number(result.get("epochs")), "{:.4g}", f"{steps:,.0f} steps" if steps is not None else "")
    add("Images a second", number(result.get("images_per_second")), "{:,.0f}", "while training")
    parameters = number(result.get("parameters"))
    if parameters is not None:
        short = f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters / 1e3:.1f} k"
        tiles.append(("Parameters", short, f"{parameters:,.0f}"))
    blocks, ran = number(result.get("blocks")), number(result.get("measured_blocks"))
    expected = number(result.get("expected_blocks"))
    if blocks is not None and ran is not None and expected is not None:
        tiles.append(("Depth", f"{ran:.2f} of {blocks:.0f}", f"blocks a step; {expected:.2f} expected"))
    return tiles


def _against_paper(record: RunRecord, metrics: Metrics | None) -> list[tuple[str, str, str]]:
    """(measure, the paper's value, this run's) for everything that the recipe's paper reports."""
    here: dict[str, str] = {}
    result = record.result or {}
    split = record.predictions.split if metrics and record.predictions else result.get("split")
    for field in ("top1_percent", "top5_percent", "loss"):
        value = getattr(metrics, field) if metrics else number(result.get(field))
        if value is not None:
            here[f"{split}_{field}"] = f"{value:.2f}"
    if metrics:
        low, high = metrics.top1_interval_percent
        here[f"{split}_top1_percent"] += f" ({low:.2f} to {high:.2f})"
    reported = _dict(_dict(record.recipe.get("paper")).get("reported"))
    return [(_measure(name), shown(value), here.get(name, "")) for name, value in reported.items()]


def _measure(name: str) -> str:
    """`val_top1_percent` as people write it: val, top-1, %."""
    words = name.replace("top1", "top-1").replace("top5", "top-5").split("_")
    unit = " (%)" if words[-1] == "percent" else ""
    return " ".join(words[:-1] if unit else words) + unit


def _seen(record: RunRecord, split: str) -> bool | None:
    """Whether the network was trained on images of `split`, here or where its weights are from; None where
    that is not known."""
    try:
        return whether_seen(seen(open_run(record.path), split))
    except TinlabError:  # a run whose other files are gone
        return split in str(_dict(record.recipe.get("data")).get("train_split", "train")).split("+")


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
