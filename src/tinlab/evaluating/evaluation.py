"""Everything that tinlab measures of one run on one split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tinlab.data.pack import BOTH, Pack
from tinlab.errors import TinlabError
from tinlab.evaluating.corrupted import Robustness, robustness_of, saved_robustness_of
from tinlab.evaluating.saved import at_one_step, measured, predictions_of, saved_predictions
from tinlab.evaluation.calibration import Calibration, TemperatureScaling, calibrated, temperature_scaling
from tinlab.evaluation.classes import ClassAccuracy, ConfusedPair, class_accuracies, confused_pairs
from tinlab.evaluation.logits import Predictions
from tinlab.evaluation.metrics import Metrics, judge, measure
from tinlab.evaluation.scores import Scores, scores
from tinlab.evaluation.tta import TTA
from tinlab.runs import Run, Seen, another_source, seen, whether_seen

Watch = Callable[[str, int, int], None]
"""Told what is being predicted, images done, and images in all."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a run's last checkpoint (after `step` steps) on a split.

    `metrics` and `scores` are of the plain predictions: the numbers that count. `tta` has the scores with
    test-time augmentation, name -> scores. `temperature` is None where none was fitted, and
    `temperature_note` then says why. `classes` come best first, `confusions` most frequent first.
    `robustness` is None where it was not measured. `notes` say what else a reader must know.
    """

    run: str
    recipe: str
    seed: int
    split: str
    step: int
    pack_digest: str
    metrics: Metrics
    scores: Scores
    calibration: Calibration
    temperature: TemperatureScaling | None
    temperature_note: str | None
    classes: tuple[ClassAccuracy, ...]
    confusions: tuple[ConfusedPair, ...]
    tta: dict[str, Scores]
    robustness: Robustness | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values: the scores and metrics at the top, the rest beneath names of their own.

        `classes_by_accuracy` are all classes, best first; `confusions` are pairs with words.
        """
        return {
            "run": self.run,
            "recipe": self.recipe,
            "seed": self.seed,
            "split": self.split,
            "step": self.step,
            "pack_digest": self.pack_digest,
            **self.metrics.to_json(),
            **self.scores.to_json(),
            "calibration": self.calibration.to_json(),
            "temperature": self.temperature.to_json() if self.temperature else None,
            "temperature_note": self.temperature_note,
            "classes_by_accuracy": [row.to_json() for row in self.classes],
            "confusions": [row.to_json() for row in self.confusions],
            "tta": {name: found.to_json() for name, found in self.tta.items()},
            "robustness": self.robustness.to_json() if self.robustness else None,
            "notes": list(self.notes),
        }


def evaluate(
    path: str | Path,
    *,
    split: str = "val",
    pack: Pack | None = None,
    device: str = "auto",
    tta: bool | None = None,
    calibrate: bool | None = None,
    corruptions: bool | None = None,
    images: int | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Measure the run in folder `path` on a labelled split.

    Logits are computed and saved once. `tta`, `calibrate` (fit a temperature on `tune`) and `corruptions`
    need more of them: True computes and saves what is missing, None takes what was saved before, False leaves
    it out. `images` limits the corruptions to so many images of the split.

    Raises TinlabError where there is no run, checkpoint, pack, split or label.
    """
    if images is not None and not corruptions:
        raise TinlabError("images limits the corruptions, and is given without them; ask for both")
    wanted = measured(path, split=split, pack=pack)
    predict = partial(predictions_of, path, pack=pack, device=device)
    predictions = predict(split=split, progress=_named(watch, split))
    _labelled(predictions, split)
    logits, labels, indices = predictions.logits, predictions.labels, predictions.indices
    judged = judge(logits, labels)
    plain = calibrated(logits, labels, judged=judged)

    augmented, together = {}, [predictions]
    for name in TTA:
        seen = (
            predict(split=split, tta=name, progress=_named(watch, f"{split}, {name}"))
            if tta
            else saved_predictions(path, split=split, pack=pack, tta=name)
            if tta is None
            else None
        )
        if seen is not None:
            together.append(seen)
            augmented[name] = scores(judge(seen.logits, seen.labels))

    temperature, note = None, why_no_temperature(wanted.run, split, wanted.pack_digest)
    if note is None:
        tune = (
            predict(split="tune", progress=_named(watch, "tune"))
            if calibrate
            else saved_predictions(path, split="tune", pack=pack)
            if calibrate is None
            else None
        )
        if tune is None:
            note = "no temperature was fitted: that needs the logits on tune, which were not asked for"
        else:
            _labelled(tune, "tune")
            together.append(tune)
            temperature = temperature_scaling(
                logits, labels, tune.logits, tune.labels, measured_on=split, fitted_on="tune", before=plain
            )

    found = None
    if corruptions:
        found = robustness_of(
            wanted, images=images, device=device, progress=_named(watch, f"{split}, corrupted")
        )
    elif corruptions is None:
        found = saved_robustness_of(wanted)

    return Evaluation(
        run=str(path),
        recipe=wanted.run.recipe.name,
        seed=wanted.run.seed,
        split=split,
        step=at_one_step(wanted.run, *together),
        pack_digest=wanted.pack_digest,
        metrics=measure(logits, labels),
        scores=scores(judged),
        calibration=plain,
        temperature=temperature,
        temperature_note=note,
        classes=class_accuracies(judged, indices, wanted.run.classes),
        confusions=confused_pairs(judged, indices, wanted.run.classes),
        tta=augmented,
        robustness=found,
        notes=notes(wanted.run, split, pack),
    )


def why_no_temperature(run: Run, split: str, pack_digest: str) -> str | None:
    """Why a temperature fitted on `tune` would not be honest, in one sentence; None where it is."""
    shown = whether_seen(seen(run, "tune"))
    if shown is None:
        return f"no temperature was fitted: {_origin_unknown(run)}, which may have been tune too"
    if shown:
        return (
            "no temperature was fitted: the network was trained on tune too, and val is not fitted on; "
            "train with data.train_split 'train' for one"
        )
    if pack_digest != run.pack_digest:
        return (
            "no temperature was fitted: tune of another pack may hold images that the network was trained on"
        )
    if split in ("tune", BOTH):
        return f"no temperature was fitted: it is fitted on tune, and would be measured on {split} itself"
    return None


def notes(run: Run, split: str, pack: Pack | None = None) -> tuple[str, ...]:
    """What a reader of the run's numbers on this split, of `pack` or of the run's own, must know."""
    found = [_note(one, run, split) for one in seen(run, split, pack)]
    if pack is not None and another_source(run, pack):
        found.append("this is another data set than the network was trained on")
    return tuple(dict.fromkeys(found))


def _note(shown: Seen, run: Run, split: str) -> str:
    if shown.how == "split":
        return f"the network was trained on images of {split}: this says how well it knows what it was shown"
    if shown.how == "pack":
        return (
            f"{shown.images:,} of the {shown.of:,} images of {split} are among the training images of "
            "another pack that the network was trained on: on these this says how well it knows what it was "
            "shown"
        )
    if shown.before:
        return f"{_origin_unknown(run)}, which may have been images of {split}"
    return (
        "this is another pack than the network was trained on, and that one cannot be opened: some of the "
        f"images of {split} may have been trained on"
    )


def _origin_unknown(run: Run) -> str:
    weights = run.recipe.beginning(0).weights
    return f"it is not known what the weights that the network began with ({weights}) were trained on"


def _labelled(predictions: Predictions, split: str) -> None:
    if (predictions.labels < 0).any():
        raise TinlabError(f"the labels of '{split}' were never published, so nothing can be measured on it")


def _named(watch: Watch | None, what: str) -> Callable[[int, int], None] | None:
    return None if watch is None else partial(watch, what)
