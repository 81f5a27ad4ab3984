from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mltrain.errors import DataError
from projects.segmentation.folders import pictures_in
from projects.style_transfer.pictures import (
    StyleCrops,
    as_pixels,
    padded,
    random_crop,
    read_picture,
    read_pictures,
)


@pytest.mark.parametrize("size", [(300, 120), (50, 70), (64, 64), (1000, 33)])
def test_the_shorter_side_is_scaled_and_the_shape_kept(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "picture.png")
    picture = read_picture(tmp_path / "picture.png", 48)
    width, height = size
    assert picture.dtype == torch.uint8
    assert min(picture.shape[1:]) == 48
    assert picture.shape[2] / picture.shape[1] == pytest.approx(width / height, rel=0.03)
    assert picture[:, 5, 5].tolist() == [10, 200, 30]


def test_without_a_shorter_side_the_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    assert np.array_equal(read_picture(tmp_path / "picture.png", None).permute(1, 2, 0).numpy(), pixels)


def test_webp_is_read_and_an_animated_one_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True)
    assert pictures_in(tmp_path) == [tmp_path / "a.webp"]
    assert np.array_equal(read_picture(tmp_path / "a.webp", None).permute(1, 2, 0).numpy(), pixels)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "b.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"b\.webp holds 2 pages"):
        read_pictures([tmp_path / "b.webp"], None)


def test_a_picture_too_small_to_show_a_style_is_refused_with_its_size(tmp_path: Path) -> None:
    Image.new("RGB", (90, 5)).save(tmp_path / "tiny.png")
    with pytest.raises(
        DataError, match=r"tiny\.png is 5 x 90 pixels; its shorter side needs at least 6 for short_side=48"
    ):
        read_pictures([tmp_path / "tiny.png"], 48)
    assert read_picture(tmp_path / "tiny.png", 40).shape == (3, 40, 720)
    assert read_picture(tmp_path / "tiny.png", None).shape == (3, 5, 90)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.new("L", (40, 40), 77).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png", 32).unique().tolist() == [77]


def test_all_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    Image.new("RGB", (40, 40)).save(files[1])
    files[0].write_text("no picture")
    files[2].write_bytes(files[1].read_bytes()[:60])
    with pytest.raises(DataError, match=r"(?s)2 of 3 pictures.*a\.png is not a picture.*c\.png cannot be decoded"):
        read_pictures(files, 32)


def test_a_crop_is_a_piece_of_the_picture_or_of_its_mirror_image() -> None:
    picture = torch.arange(3 * 40 * 50).view(3, 40, 50)
    for _ in range(10):
        crop = random_crop(picture, 32)
        crop = crop if crop[0, 0, 1] > crop[0, 0, 0] else crop.flip(2)
        top, left = divmod(int(crop[0, 0, 0]), 50)
        assert torch.equal(crop, picture[:, top : top + 32, left : left + 32])


def test_crops_avoid_places_where_there_is_nothing() -> None:
    picture = torch.zeros(3, 64, 640, dtype=torch.uint8)
    picture[:, :, 320:] = torch.randint(256, (64, 320), dtype=torch.uint8)
    torch.manual_seed(0)
    empty = sum(float(random_crop(picture, 32).float().std()) == 0 for _ in range(100))
    assert empty < 10  # half of all places are


def test_an_item_is_a_crop_of_every_style() -> None:
    styles = [[torch.full((3, 40, 40), value, dtype=torch.uint8)] for value in (0, 51, 255)]
    item = StyleCrops(styles, 32, 7)[3]
    assert item.shape == (3, 3, 32, 32)
    assert item.mean((1, 2, 3)).tolist() == pytest.approx([0, 0.2, 1])
    assert len(StyleCrops(styles, 32, 7)) == 7


def test_padding_reaches_the_next_multiple_and_changes_nothing_of_what_was_there() -> None:
    images = torch.rand(2, 3, 17, 32)
    assert padded(images, 16).shape == (2, 3, 32, 32)
    assert torch.equal(padded(images, 16)[:, :, :17], images)


def test_pixels_outside_of_white_and_black_are_cut_off() -> None:
    image = torch.tensor([-1.0, 0.5, 2.0])[:, None, None].expand(3, 2, 2)
    assert as_pixels(image)[0, 0].tolist() == [0, 128, 255]
