"""Measure runs: logits are computed and saved once, and everything else reads them."""

from tinlab.evaluating.comparing import Comparison, compare
from tinlab.evaluating.corrupted import Robustness, robustness, saved_robustness
from tinlab.evaluating.evaluation import Evaluation, evaluate
from tinlab.evaluating.saved import predictions_of, saved_predictions

__all__ = [
    "Comparison", "Evaluation", "Robustness", "compare", "evaluate", "predictions_of", "robustness",
    "saved_predictions", "saved_robustness",
]  # fmt: skip
