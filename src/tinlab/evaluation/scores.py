"""The three numbers of a row of results, each with its interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tinlab.evaluation.intervals import mean_interval
from tinlab.evaluation.metrics import Judged, bootstrap_interval_percent, top_k_percent


@dataclass(frozen=True)
class Scores:
    """Top-1 and top-5 in percent and the mean cross-entropy in nats, with 95% percentile bootstrap intervals
    over images. The interval of top-1 is that of `metrics.measure`."""

    images: int
    top1_percent: float
    top1_interval_percent: tuple[float, float]
    top5_percent: float
    top5_interval_percent: tuple[float, float]
    loss: float
    loss_interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def scores(judged: Judged, *, seed: int = 0) -> Scores:
    """The scores of judged images."""
    images = len(judged.labels)
    right, near = (int((judged.rank < k).sum()) for k in (1, 5))
    return Scores(
        images=images,
        top1_percent=top_k_percent(judged, 1),
        top1_interval_percent=bootstrap_interval_percent(right, images, seed=seed),
        top5_percent=top_k_percent(judged, 5),
        top5_interval_percent=bootstrap_interval_percent(near, images, seed=seed),
        loss=float(judged.loss.mean()),
        loss_interval=mean_interval(judged.loss, seed=seed),
    )
