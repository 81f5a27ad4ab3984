import math

import pytest
import torch
from torch import Tensor

from projects.style_transfer.transport import StyleMaps, barycentre, gaussian_map, points


def covariance(seed: int, size: int = 4) -> Tensor:
    factors = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factors @ factors.T + 0.1 * torch.eye(size, dtype=torch.float64)


def latents(seed: int, shift: float, strength: list[float]) -> Tensor:
    drawn = torch.randn(8, len(strength), 16, 16, generator=torch.Generator().manual_seed(seed))
    return shift + drawn * torch.tensor(strength)[:, None, None]


def test_the_map_gives_the_other_covariance_and_is_symmetric_and_positive() -> None:
    source, target = covariance(0), covariance(1)
    found = gaussian_map(source, target)
    assert torch.allclose(found @ source @ found.T, target)
    assert torch.allclose(found, found.T)
    assert torch.linalg.eigvalsh(found).min() > 0


def test_in_one_dimension_the_map_is_the_ratio_of_the_deviations() -> None:
    one, nine = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[9.0]], dtype=torch.float64)
    assert float(gaussian_map(one, nine)) == pytest.approx(3)


def test_the_barycentre_lies_in_the_middle_of_two() -> None:
    one, other = covariance(0), covariance(1)
    middle = (torch.eye(4, dtype=torch.float64) + gaussian_map(one, other)) / 2
    assert torch.allclose(barycentre(torch.stack([one, other])), middle @ one @ middle, atol=1e-8)


def test_deviations_that_share_their_axes_have_the_mean_deviation_as_their_barycentre() -> None:
    found = barycentre(torch.stack([torch.diag(torch.tensor([1.0, 4.0, s])) for s in (1.0, 9.0, 25.0)]).double())
    assert found.diagonal().sqrt().tolist() == pytest.approx([1, 2, 3], abs=1e-6)


def test_between_two_styles_the_latents_take_mean_and_covariance_of_the_other() -> None:
    one, other = latents(0, 0.5, [1.0, 2.0, 0.5]), latents(1, -1.0, [3.0, 1.0, 1.0])
    maps = StyleMaps.fit([one, other], 0.0)
    styles = torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.long)
    moved = points(maps.from_barycentre(maps.to_barycentre(one, styles[0]), styles[1]))
    assert torch.allclose(moved.mean(0), points(other).mean(0), atol=1e-4)
    assert torch.allclose(torch.cov(moved.T), torch.cov(points(other).T), atol=1e-3)


def test_the_way_back_undoes_the_way_there() -> None:
    clouds = [latents(seed, seed, [1.0, 2.0, 0.01 + seed]) for seed in range(3)]
    maps = StyleMaps.fit(clouds, 0.1)
    styles = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    assert torch.allclose(maps.from_barycentre(maps.to_barycentre(clouds[0], styles), styles), clouds[0], atol=1e-4)


def test_channels_without_variance_are_not_blown_up() -> None:
    grey, coloured = latents(0, 0.0, [1.0, 0.0]), latents(1, 0.0, [1.0, 1.0])
    maps = StyleMaps.fit([grey, coloured], 0.25)
    assert float(maps.maps[0, 1, 1]) <= (1 + math.sqrt(1.25 / 0.25)) / 2 + 0.01


def test_a_picture_is_known_by_its_latents() -> None:
    clouds = [latents(0, 0.0, [1.0, 2.0]), latents(1, 0.0, [2.0, 1.0]), latents(2, 1.5, [1.0, 1.0])]
    maps = StyleMaps.fit(clouds, 0.01)
    assert [int(maps.scores(cloud[:1]).argmax()) for cloud in clouds] == [0, 1, 2]


def test_its_state_makes_another_one_the_same() -> None:
    maps = StyleMaps.fit([latents(0, 0.0, [1.0, 2.0]), latents(1, 0.0, [2.0, 1.0])], 0.1)
    again = StyleMaps.of(maps.state_dict())
    assert all(torch.equal(again.state_dict()[name], value) for name, value in maps.state_dict().items())
