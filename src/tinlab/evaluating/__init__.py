"""Measure a run on a split: logits are computed and saved once, and read after that."""

from __future__ import annotations

from pathlib import Path

from tinlab import runs
from tinlab.classifier import load
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import Metrics, measure
from tinlab.evaluation.predict import Predictions, predict_split
from tinlab.training import checkpoint


def evaluate(
    path: str | Path, *, split: str = "val", pack: Pack | None = None, device: str = "auto"
) -> Metrics:
    """Measure the run in folder `path` on a labelled split. Raises TinlabError where that cannot be done."""
    predictions = predictions_of(path, split=split, pack=pack, device=device)
    if (predictions.labels < 0).any():
        raise TinlabError(f"the labels of '{split}' were never published, so nothing can be measured on it")
    return measure(predictions.logits, predictions.labels)


def predictions_of(
    path: str | Path, *, split: str = "val", pack: Pack | None = None, device: str = "auto"
) -> Predictions:
    """The run's logits on `split`: the saved ones, if of its last checkpoint, or else new ones, saved.

    `pack` is by default the one that the run was trained on; another one must have the same classes, and is
    measured anew. Raises TinlabError where there is no checkpoint, pack or split.
    """
    run = runs.open_run(path)
    last = checkpoint.latest(run.path)
    if last is None:
        raise TinlabError(f"{path} has no checkpoint yet; go on with: tinlab train --resume {path}")
    digest = pack.digest if pack else run.pack_digest
    about = {"step": str(int(last.name.removeprefix("step-")))}
    wanted = {**about, "split": split, "pack_digest": digest}
    own = digest == run.pack_digest
    place = (
        run.path / "predictions" / (f"{split}.safetensors" if own else f"{split}-{digest[:12]}.safetensors")
    )
    if place.is_file():
        saved = Predictions.load(place)
        if saved.about == wanted:
            return saved
    pack = pack or Pack.open(run.pack)
    if pack.digest != digest:
        raise TinlabError(
            f"{pack.path} has changed since {path} was trained on it; name its pack with --data"
        )
    if [c.id for c in pack.info.classes] != [c.id for c in run.classes]:
        raise TinlabError(f"{pack.path} has other classes than {path} was trained on")
    if pack.info.image_size != run.preprocessing.image_size:
        raise TinlabError(
            f"{pack.path} has images of {pack.info.image_size} pixels and {path} takes "
            f"{run.preprocessing.image_size}; pack the source with that --image-size"
        )
    classifier = load(path, device)
    predictions = predict_split(
        classifier.model, run.preprocessing, pack.split(split), run.recipe.compute, classifier.device, about
    )
    predictions.save(place)
    return predictions
