import pytest
import torch
from torch import Tensor

from projects.segmentation.augment import Augmentation


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """An asymmetric image and the mask of its bright pixels."""
    image = torch.arange(64.0).reshape(1, 8, 8) / 64
    return image, (image > 0.6).float()


def outcomes(augmentation: Augmentation, pair: tuple[Tensor, Tensor], times: int = 60) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [augmentation(*pair) for _ in range(times)]


def test_by_default_nothing_changes(pair: tuple[Tensor, Tensor]) -> None:
    image, mask = Augmentation()(*pair)
    assert image is pair[0]
    assert mask is pair[1]


@pytest.mark.parametrize(
    ("augmentation", "kinds"),
    [
        (Augmentation(flips="horizontal"), 2),
        (Augmentation(flips="both"), 4),
        (Augmentation(quarter_turns=True), 4),
        (Augmentation(flips="both", quarter_turns=True), 8),
    ],
)
def test_image_and_mask_are_mirrored_and_turned_alike_into_every_position(
    augmentation: Augmentation, kinds: int, pair: tuple[Tensor, Tensor]
) -> None:
    seen = outcomes(augmentation, pair)
    assert len({tuple(image.flatten().tolist()) for image, _ in seen}) == kinds
    for image, mask in seen:
        torch.testing.assert_close(mask, (image > 0.6).float())


def test_horizontal_flips_keep_up_where_it_is(pair: tuple[Tensor, Tensor]) -> None:
    for image, _ in outcomes(Augmentation(flips="horizontal"), pair):
        assert image[0, 0].max() < image[0, -1].min()


def test_brightness_and_noise_leave_the_mask_alone(pair: tuple[Tensor, Tensor]) -> None:
    for image, mask in outcomes(Augmentation(brightness=0.2, noise=0.1), pair):
        assert mask is pair[1]
        assert not torch.equal(image, pair[0])


def test_brightness_and_noise_are_measured_by_the_deviation_of_the_images(pair: tuple[Tensor, Tensor]) -> None:
    dim = pair[0] * 1e-3
    for image, _ in outcomes(Augmentation(brightness=0.2, noise=0.1, deviation=float(dim.std())), (dim, pair[1])):
        assert (image - dim).abs().max() < 2 * dim.std()


def test_the_same_seed_changes_alike(pair: tuple[Tensor, Tensor]) -> None:
    everything = Augmentation(flips="both", quarter_turns=True, brightness=0.2, noise=0.1)
    for one, other in zip(outcomes(everything, pair), outcomes(everything, pair), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
