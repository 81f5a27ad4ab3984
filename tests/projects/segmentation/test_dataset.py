from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from projects.segmentation.dataset import SegmentationData, network_input, resized_mask
from projects.segmentation.folders import FolderPair, Sample
from projects.segmentation.framing import natural_size
from tests.projects.segmentation.conftest import survey


def test_a_sample_is_an_image_in_0_to_1_and_a_mask_of_zeros_and_ones(blobs: tuple[Sample, ...]) -> None:
    image, mask = SegmentationData(blobs, (32, 48), channels=1)[0]
    assert (image.shape, mask.shape) == ((1, 32, 48), (1, 32, 48))
    assert image.dtype == mask.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_a_sample_of_the_right_size_is_what_the_files_hold(blobs: tuple[Sample, ...]) -> None:
    image, mask = SegmentationData(blobs, (40, 56), channels=1)[2]
    np.testing.assert_array_equal(image[0] * 255, np.asarray(Image.open(blobs[2].image), np.float32))
    np.testing.assert_array_equal(mask[0] * 255, np.asarray(Image.open(blobs[2].mask)))


@pytest.mark.parametrize("room", [0, 30_000, 2**30], ids=["nothing kept", "one sample kept", "all kept"])
def test_what_is_kept_in_memory_changes_no_value(blobs: tuple[Sample, ...], room: int) -> None:
    data = SegmentationData(blobs, (40, 56), 1, cache_bytes=room)
    fresh = SegmentationData(blobs, (40, 56), 1, cache_bytes=0)
    for _ in range(2):
        for index in range(len(data)):
            torch.testing.assert_close(data[index], fresh[index], rtol=0, atol=0)


def test_only_as_much_is_kept_as_there_is_room_for(tmp_path: Path, blobs: tuple[Sample, ...]) -> None:
    sample_bytes = 2 * 40 * 56 * 4
    data = SegmentationData(blobs, (40, 56), 1, cache_bytes=2 * sample_bytes)
    for index in range(6):
        data[index]
    for sample in blobs:
        sample.image.unlink()
    assert data[0][0].shape == data[1][0].shape == (1, 40, 56)
    with pytest.raises(ValueError, match="cannot be decoded"):
        data[2]


def test_a_colour_image_becomes_grey_by_its_luma_and_a_grey_one_colour_by_repetition() -> None:
    red = np.zeros((3, 8, 8), np.float32)
    red[0] = 1
    assert network_input(red, (8, 8), 1).tolist() == torch.full((1, 8, 8), 0.299).tolist()
    assert torch.equal(network_input(red[:1], (8, 8), 3), torch.ones(3, 8, 8))


def test_shrinking_an_image_keeps_what_lies_between_the_pixels_that_are_left() -> None:
    lines = np.tile(np.array([1, 0, 0, 0], np.float32), (1, 64, 16))
    shrunk = network_input(lines, (16, 16), 1)
    assert shrunk.mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("size", [(8, 8), (24, 24), (48, 80)])
def test_a_resized_mask_stays_binary_and_in_place(size: tuple[int, int]) -> None:
    mask = np.zeros((24, 24), bool)
    mask[6:18, 12:] = True
    resized = resized_mask(mask, size)[0]
    assert set(resized.unique().tolist()) == {0.0, 1.0}
    rows, columns = np.nonzero(resized.numpy())
    assert (rows.min() / size[0], (rows.max() + 1) / size[0]) == pytest.approx((0.25, 0.75), abs=0.07)
    assert (columns.min() / size[1], (columns.max() + 1) / size[1]) == pytest.approx((0.5, 1.0), abs=0.07)


@pytest.mark.parametrize(
    ("own", "working"),
    [((112, 96), (112, 96)), ((100, 100), (96, 96)), ((1000, 2000), (128, 256)), ((5, 60), (16, 64))],
)
def test_the_natural_size_is_the_images_own_in_multiples_of_eight_and_256_at_most(
    folders: FolderPair, own: tuple[int, int], working: tuple[int, int]
) -> None:
    for stem in "ab":
        Image.fromarray(np.zeros(own, np.uint8)).save(folders.images / f"{stem}.png")
        Image.fromarray(np.ones(own, np.uint8)).save(folders.masks / f"{stem}.png")
    assert natural_size(survey(folders).samples) == working
