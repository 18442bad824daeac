"""Views and their mean, against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinlab.errors import TinlabError
from tinlab.evaluation.tta import TTA, View, averaged, view, views


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2), (1, -2)])
def test_a_view_is_a_cut_of_the_padded_image(down: int, right: int) -> None:
    images = torch.randint(0, 256, (2, 7, 9, 3), dtype=torch.uint8)
    padded = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    expected = padded[:, 2 - down : 9 - down, 2 - right : 11 - right]
    assert np.array_equal(view(images, View(False, down, right)).numpy(), expected)
    assert np.array_equal(view(images, View(True, down, right)).numpy(), expected[:, :, ::-1])


def test_the_first_view_is_the_image_itself() -> None:
    images = torch.randint(0, 256, (1, 6, 6, 3), dtype=torch.uint8)
    for seen in TTA.values():
        assert torch.equal(view(images, seen[0]), images)
        assert len(set(seen)) == len(seen)
    assert set(TTA["flip"]) < set(TTA["shift"])
    assert len(TTA["shift"]) == 10


def test_probabilities_are_averaged() -> None:
    """A network that looks at the left edge alone."""
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    images[:, :, 0] = 200

    def classify(seen: torch.Tensor) -> torch.Tensor:
        bright = (seen[:, 0, 0, 0] > 100).float()
        return torch.stack([3 * bright, 1 - bright, torch.zeros(len(seen))], 1)

    expected = (torch.tensor([3.0, 0, 0]).softmax(0) + torch.tensor([0.0, 1, 0]).softmax(0)) / 2
    assert averaged(classify, images, "flip")[0].softmax(0).numpy() == pytest.approx(expected.numpy())


def test_probabilities_of_nought_stay_finite() -> None:
    found = averaged(
        lambda x: torch.tensor([[0.0, 1e30]]), torch.zeros(1, 4, 4, 3, dtype=torch.uint8), "flip"
    )
    assert torch.isfinite(found).all()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(TinlabError, match="there are: flip, shift"):
        views("five_crop")
