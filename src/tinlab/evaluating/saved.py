"""A run's predictions: the saved ones, if of its last checkpoint, or else new ones, saved.

    RUN/predictions/val.safetensors          the logits on val
    RUN/predictions/flip/val.safetensors     with test-time augmentation of this name
    RUN/predictions/corruptions/val.json     see tinlab.evaluating.corrupted

Of a pack that is not the run's own, the file's name also has the pack's digest.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tinlab import runs
from tinlab.classifier import load
from tinlab.data.pack import Pack, Split
from tinlab.errors import TinlabError
from tinlab.evaluation.logits import Predictions
from tinlab.evaluation.predict import Progress, predict_split
from tinlab.evaluation.tta import views
from tinlab.runs import Run
from tinlab.training import checkpoint


@dataclass(frozen=True)
class Measured:
    """A run's last checkpoint and a split of a pack: what its predictions are of."""

    run: Run
    step: int
    split: str
    pack: Pack | None
    """None: the run's own, which is opened only where something must be predicted."""
    pack_digest: str

    @property
    def about(self) -> dict[str, str]:
        """What the predictions say of themselves."""
        return {"step": str(self.step), "split": self.split, "pack_digest": self.pack_digest}

    def place(self, kind: str | None, ending: str) -> Path:
        """The file of the predictions of this `kind`, or of the plain ones where that is None."""
        own = self.pack_digest == self.run.pack_digest
        name = self.split if own else f"{self.split}-{self.pack_digest[:12]}"
        folder = self.run.path / "predictions"
        return (folder if kind is None else folder / kind) / f"{name}{ending}"

    def opened(self) -> Split:
        """The split, its files as they were packed. Raises TinlabError where the pack is gone, has changed,
        is damaged, or does not fit the run."""
        pack, run = self.pack or Pack.open(self.run.pack), self.run
        if pack.digest != self.pack_digest:
            raise TinlabError(
                f"{pack.path} has changed since {run.path} was trained on it; name its pack with --data"
            )
        if [c.id for c in pack.info.classes] != [c.id for c in run.classes]:
            raise TinlabError(f"{pack.path} has other classes than {run.path} was trained on")
        if pack.info.image_size != run.preprocessing.image_size:
            raise TinlabError(
                f"{pack.path} has images of {pack.info.image_size} pixels and {run.path} takes "
                f"{run.preprocessing.image_size}; pack the source with that --image-size"
            )
        found = pack.split(self.split)
        found.verify_once()
        return found


def measured(path: str | Path, *, split: str = "val", pack: Pack | None = None) -> Measured:
    """The last checkpoint of the run in folder `path`. Raises TinlabError where there is none."""
    run = runs.open_run(path)
    last = checkpoint.latest(run.path)
    if last is None:
        quoted = shlex.quote(str(path))
        raise TinlabError(f"{path} has no checkpoint yet; go on with: tinlab train --resume {quoted}")
    step = checkpoint.step_of(last)
    return Measured(run, step, split, pack, pack.digest if pack else run.pack_digest)


def saved_predictions(
    path: str | Path, *, split: str = "val", pack: Pack | None = None, tta: str | None = None
) -> Predictions | None:
    """The saved predictions of the run's last checkpoint; None where there are none."""
    return _saved(measured(path, split=split, pack=pack), tta)


def predictions_of(
    path: str | Path,
    *,
    split: str = "val",
    pack: Pack | None = None,
    device: str = "auto",
    tta: str | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """The run's logits on `split`: the saved ones, if of its last checkpoint, or else new ones, saved.

    `pack` is by default the one that the run was trained on; another one must have the same classes, and is
    measured anew. With `tta`, a name from `tinlab.evaluation.tta.TTA`, they are logs of mean probabilities.
    Raises TinlabError where there is no checkpoint, pack or split.
    """
    if tta is not None:
        views(tta)
    wanted = measured(path, split=split, pack=pack)
    if (saved := _saved(wanted, tta)) is not None:
        return saved
    found = wanted.opened()
    run, classifier = wanted.run, load(path, device)
    predictions = predict_split(
        classifier.model,
        run.preprocessing,
        found,
        run.recipe.compute,
        classifier.device,
        {"step": str(classifier.step)},
        tta=tta,
        progress=progress,
    )
    predictions.save(wanted.place(tta, ".safetensors"))
    return predictions


def at_one_step(run: Run, *found: Predictions) -> int:
    """The step that all of `found`, predictions of `run`, are of. Raises TinlabError where a training that
    goes on has moved the run meanwhile."""
    steps = [int(one.about["step"]) for one in found]
    for step in steps:
        same_step(run, steps[0], step)
    return steps[0]


def same_step(run: Run, step: int, now: int) -> None:
    """Raise TinlabError where `now`, the step of what was measured of `run`, is not `step`."""
    if now != step:
        raise TinlabError(
            f"{run.path} went on meanwhile, from step {step} to {now}, and what was measured is of both; "
            "give the command again"
        )


def _saved(wanted: Measured, tta: str | None) -> Predictions | None:
    place = wanted.place(tta, ".safetensors")
    if not place.is_file():
        return None
    saved = Predictions.load(place)
    if saved.logits.shape[1] != len(wanted.run.classes):
        raise TinlabError(
            f"{place} has scores of {saved.logits.shape[1]} classes, and the run {len(wanted.run.classes)}; "
            "remove it and evaluate again"
        )
    about = wanted.about if tta is None else {**wanted.about, "tta": tta}
    return saved if saved.about == about else None
