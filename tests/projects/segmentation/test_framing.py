from dataclasses import replace

import numpy as np
import pytest
import torch

from projects.segmentation.folders import Sample
from projects.segmentation.framing import (
    Framing,
    crops_an_epoch,
    framing,
    natural_crop,
    other_scale,
    random_crop,
    windowed,
)


@pytest.fixture
def tiles(blobs: tuple[Sample, ...]) -> tuple[Sample, ...]:
    return tuple(replace(sample, height=96, width=96) for sample in blobs)


def chosen(samples: tuple[Sample, ...], **given: object) -> Framing:
    return framing(samples, **{"resize": "auto", "image_size": None, "crop_size": None, **given})


def test_pictures_keep_their_scale_unless_a_size_is_given(tiles: tuple[Sample, ...]) -> None:
    assert chosen(tiles) == Framing((96, 96))
    assert chosen(tiles, image_size=(96, 96)) == Framing((96, 96)), "the pictures have that size already"
    assert chosen(tiles, image_size=(48, 48)) == Framing((48, 48), (48, 48), (0.5, 0.5))
    assert chosen(tiles, resize="stretch") == Framing((96, 96), (96, 96), (1.0, 1.0))
    assert chosen(tiles, resize="none", crop_size=(64, 32)) == Framing((64, 32))
    assert chosen(tiles, resize="stretch", image_size=(48, 48), crop_size=(24, 24)) == Framing(
        (24, 24), (48, 48), (0.5, 0.5)
    )


@pytest.mark.parametrize(
    ("own", "crop"), [((112, 96), (112, 96)), ((100, 50), (104, 56)), ((1000, 2000), (256, 256)), ((5, 60), (16, 64))]
)
def test_a_crop_is_as_large_as_the_median_picture_and_256_at_most(
    tiles: tuple[Sample, ...], own: tuple[int, int], crop: tuple[int, int]
) -> None:
    samples = [replace(sample, height=own[0], width=own[1]) for sample in tiles]
    assert natural_crop(samples) == crop
    assert natural_crop(samples, square=True) == (min(crop), min(crop))


def test_as_many_crops_are_drawn_as_cover_a_picture(tiles: tuple[Sample, ...]) -> None:
    large = [replace(sample, height=512, width=512) for sample in tiles]
    assert crops_an_epoch(tiles, Framing((96, 96))) == 1
    assert crops_an_epoch(large, Framing((256, 256))) == 4
    assert crops_an_epoch(large, Framing((32, 32))) == 16


def test_a_crop_is_the_same_part_of_image_and_mask_and_comes_from_everywhere() -> None:
    numbers = torch.arange(20 * 30, dtype=torch.float32).view(1, 20, 30)
    torch.manual_seed(0)
    corners = set()
    for _ in range(200):
        image, mask = random_crop(numbers, numbers, (16, 16))
        assert torch.equal(image, mask)
        corners.add(int(image[0, 0, 0]))
    assert len(corners) == 5 * 15 or len(corners) > 50


def test_a_picture_that_is_too_small_is_continued_and_void_there() -> None:
    image, mask = random_crop(torch.full((1, 5, 40), 0.7), torch.ones(1, 5, 40), (16, 16))
    assert image.shape == mask.shape == (1, 16, 16)
    assert image.unique().tolist() == pytest.approx([0.7])
    assert (mask == 1).sum() == 5 * 16
    assert (mask == -1).sum() == 11 * 16


@pytest.mark.parametrize("size", [(32, 32), (50, 70), (20, 100), (9, 9)])
def test_windows_see_every_pixel_at_its_own_place(size: tuple[int, int]) -> None:
    seen = []

    def net(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape[2:]))
        return 2 * images

    images = torch.rand(2, 1, *size)
    torch.testing.assert_close(windowed(net, images, (32, 32)), 2 * images)
    assert set(seen) == {(32, 32)}


def test_sizes_of_another_scale_are_found() -> None:
    frame = Framing((96, 96), (96, 96), (1.0, 1.0))
    assert other_scale(frame, [(96, 96), (100, 90), (512, 512), (96, 200)]) == [(512, 512), (96, 200)]
    assert other_scale(Framing((96, 96)), [(512, 512)]) == [], "nothing is scaled"
    assert other_scale(replace(frame, scale=(0.0, 0.0)), [(512, 512)]) == [], (
        "an earlier version did not note its scale"
    )
    assert np.isfinite(frame.scale).all()
