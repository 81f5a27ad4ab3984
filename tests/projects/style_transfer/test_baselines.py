import numpy as np
import pytest
import torch
from torch import Tensor

from projects.style_transfer.baselines import baselines
from projects.style_transfer.transport import points


def crops(seed: int, mean: list[float], spread: float) -> Tensor:
    drawn = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    drawn[:, 1] += drawn[:, 0]
    return (torch.tensor(mean)[:, None, None] + spread * drawn).clamp(0, 1)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return crops(0, [0.3, 0.4, 0.5], 0.08), crops(1, [0.6, 0.5, 0.4], 0.1)


def test_identity_leaves_pictures_as_they_are(pair: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(baselines(pair)["identity"](pair[0], 0, 1), pair[0])


def test_the_matrix_gives_pictures_the_colours_of_the_other_style(pair: tuple[Tensor, Tensor]) -> None:
    moved, wanted = (points(one) for one in (baselines(pair)["colour matrix"](pair[0], 0, 1), pair[1]))
    assert torch.allclose(moved.mean(0), wanted.mean(0), atol=0.01)
    assert torch.allclose(torch.cov(moved.T), torch.cov(wanted.T), atol=2e-3)


def test_grey_pictures_are_not_given_garish_colours(pair: tuple[Tensor, Tensor]) -> None:
    grey = pair[0][:, :1].expand(-1, 3, -1, -1)
    tinted = grey + 0.01 * torch.randn(grey.shape, generator=torch.Generator().manual_seed(2))
    moved = baselines([grey, pair[1]])["colour matrix"](tinted, 0, 1)
    assert float((moved - moved.mean(1, keepdim=True)).std()) < 0.15


def test_the_histogram_gives_each_channel_the_values_of_the_other_style(pair: tuple[Tensor, Tensor]) -> None:
    moved, wanted = (points(one).numpy() for one in (baselines(pair)["histogram"](pair[0], 0, 1), pair[1]))
    shares = [0.1, 0.5, 0.9]
    assert np.allclose(np.quantile(moved, shares, axis=0), np.quantile(wanted, shares, axis=0), atol=0.01)
