import pytest
import torch

from projects.style_transfer.losses import (
    directions,
    patch_distance,
    patches,
    self_similarity,
    sliced_wasserstein,
    structure_distance,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_patches_are_all_squares_of_an_image() -> None:
    image = torch.arange(2 * 4 * 5.0).view(1, 2, 4, 5)
    found = patches(image, 3)
    assert found.shape == (6, 18)
    assert torch.equal(found[4].view(2, 3, 3), image[0, :, 1:4, 1:4])


def test_a_cloud_has_no_distance_to_itself_in_any_order() -> None:
    cloud = torch.randn(50, 4)
    assert float(sliced_wasserstein(cloud, cloud[torch.randperm(50)], directions(16, 4, cloud))) == 0


def test_along_one_line_a_shift_is_its_length() -> None:
    cloud = torch.randn(40, 2)
    along = torch.tensor([[1.0], [0.0]])
    assert float(sliced_wasserstein(cloud, cloud + torch.tensor([0.3, 9.0]), along)) == pytest.approx(0.3, abs=1e-6)


def test_in_one_dimension_it_is_the_distance_that_scipy_finds() -> None:
    from scipy.stats import wasserstein_distance

    one, other = torch.randn(300, 1), torch.rand(300, 1) * 3
    expected = wasserstein_distance(one[:, 0].numpy(), other[:, 0].numpy())
    assert float(sliced_wasserstein(one, other, torch.ones(1, 1))) == pytest.approx(expected, abs=1e-5)
    halved = wasserstein_distance(one[:150, 0].numpy(), other[:, 0].numpy())
    assert float(sliced_wasserstein(one[:150], other, torch.ones(1, 1))) == pytest.approx(halved, abs=2e-2)


def test_it_is_symmetric_also_between_clouds_of_different_size() -> None:
    one, other, along = torch.randn(30, 3), torch.randn(70, 3) + 1, directions(8, 3, torch.empty(0))
    assert float(sliced_wasserstein(one, other, along)) == pytest.approx(float(sliced_wasserstein(other, one, along)))


def test_directions_have_the_length_one() -> None:
    assert torch.allclose(directions(9, 7, torch.empty(0)).norm(dim=0), torch.ones(9))


def test_texture_is_a_distance_even_where_all_colours_are_the_same() -> None:
    noise = torch.rand(1, 1, 32, 32)
    shuffled = noise.flatten()[torch.randperm(1024)].view(1, 1, 32, 32)
    smooth = noise.flatten().sort().values.view(1, 1, 32, 32)
    assert float(patch_distance(smooth, noise)) > 3 * float(patch_distance(shuffled, noise))


def test_a_gradient_step_brings_patches_nearer() -> None:
    moved, wanted = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 8, 8) + 2
    distance = patch_distance(moved, wanted)
    (gradient,) = torch.autograd.grad(distance, moved)
    assert float(patch_distance(moved.detach() - 50 * gradient, wanted)) < float(distance.detach())


def test_colour_casts_and_contrast_are_not_content_but_layout_is() -> None:
    image = torch.randn(2, 3, 16, 16)
    cast = 2 * image + torch.tensor([0.5, -1.0, 2.0])[:, None, None]
    assert float(structure_distance(image, cast)) < 1e-3
    assert float(structure_distance(image, image.flip(3))) > 0.2


def test_every_place_is_like_itself() -> None:
    similarity = self_similarity(torch.randn(2, 3, 8, 8))
    assert similarity.shape == (2, 16, 16)
    assert similarity.diagonal(dim1=1, dim2=2).mean() == pytest.approx(1, abs=1e-3)
