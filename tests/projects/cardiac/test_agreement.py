import pytest
import torch

from projects.cardiac import agreement


def square(top: int, left: int, side: int = 8) -> torch.Tensor:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_dice_of_masks() -> None:
    assert agreement.dice(square(4, 4), square(4, 4)) == 1
    assert agreement.dice(square(4, 4), square(4, 8)) == 0.5
    assert agreement.dice(square(4, 4), square(20, 20)) == 0
    assert agreement.dice(square(4, 4), torch.zeros(32, 32, dtype=torch.bool)) == 0
    empty = torch.zeros(2, 32, 32, dtype=torch.bool)
    assert agreement.mean_dice(empty, torch.stack([square(4, 4), empty[0]])) == 0.5


def test_contours_at_a_distance_are_that_far_apart() -> None:
    assert agreement.hd95(square(4, 4), square(4, 9), 1.5) == pytest.approx(7.5)
    assert agreement.hd95(square(4, 4), square(4, 4), 1.5) == 0


def test_an_empty_mask_has_no_distance() -> None:
    empty = torch.zeros(32, 32, dtype=torch.bool)
    assert agreement.hd95(square(4, 4), empty, 1.5) is None
    assert agreement.mean_hd95(torch.stack([square(4, 4)] * 2), torch.stack([square(4, 6), empty]), 1.0) == 2
    assert agreement.mean_hd95(empty[None], empty[None], 1.0) is None


def test_the_error_counts_within_the_mask_only() -> None:
    field, within = torch.zeros(1, 2, 32, 32), square(4, 4)[None]
    true = field.clone()
    true[:, 0, 4:12, 4:12], true[:, 1, 4:12, 4:12] = 3, 4
    assert agreement.endpoint_error(field, true, within) == 5
    assert agreement.endpoint_error(field, true, ~within) == 0


def test_folds_are_counted_in_percent() -> None:
    determinant = torch.ones(1, 10, 10)
    determinant[0, 0, :4] = torch.tensor([0.0, -1.0, -2.0, 0.5])
    assert agreement.folded_percent(determinant) == 3
