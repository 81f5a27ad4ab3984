from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from projects.segmentation.labels import UnclearLabels
from projects.segmentation.pixels import UnreadablePixels, read_image, read_values
from tests.projects.segmentation.conftest import read_mask

Draw = Callable[..., NDArray[np.uint8]]
LOSSLESS = ("png", "bmp", "tif", "tiff", "PNG")


@pytest.mark.parametrize("ending", LOSSLESS)
def test_a_grey_image_reads_the_same_from_every_lossless_format(tmp_path: Path, draw: Draw, ending: str) -> None:
    grey = draw(8, 6)
    Image.fromarray(grey).save(file := tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read_image(file), grey[None] / np.float32(255))


@pytest.mark.parametrize("ending", LOSSLESS)
def test_a_colour_image_reads_the_same_from_every_lossless_format(tmp_path: Path, draw: Draw, ending: str) -> None:
    colour = draw(8, 6, 3)
    Image.fromarray(colour).save(file := tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read_image(file), colour.transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize("ending", ["jpg", "jpeg"])
def test_a_jpeg_reads_as_what_was_saved_but_for_its_losses(tmp_path: Path, ending: str) -> None:
    ramp = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    Image.fromarray(ramp).save(file := tmp_path / f"a.{ending}", quality=95)
    np.testing.assert_allclose(read_image(file), ramp[None] / 255, atol=3 / 255)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_read_as_eight_of_the_same_brightness(tmp_path: Path, draw: Draw, ending: str) -> None:
    grey = draw(8, 6)
    Image.fromarray(grey.astype(np.uint16) * 257).save(file := tmp_path / f"a.{ending}")
    np.testing.assert_allclose(read_image(file), grey[None] / 255, rtol=1e-6)


def test_a_palette_reads_as_its_colours(tmp_path: Path, draw: Draw) -> None:
    indexed = Image.fromarray(draw(8, 6, 3)).quantize(16)
    indexed.save(file := tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_image(file), np.asarray(indexed.convert("RGB")).transpose(2, 0, 1) / np.float32(255)
    )


def test_transparency_of_an_image_is_ignored(tmp_path: Path, draw: Draw) -> None:
    pixels = draw(8, 6, 4)
    Image.fromarray(pixels).save(file := tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(file), pixels[..., :3].transpose(2, 0, 1) / np.float32(255))


def test_a_photograph_is_turned_as_its_camera_noted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right of the stored rows
    Image.new("L", (48, 32)).save(file := tmp_path / "a.jpg", exif=exif)
    assert read_image(file).shape == (1, 48, 32)


SQUARE = np.zeros((16, 16), bool)
SQUARE[4:12, 6:14] = True


@pytest.mark.parametrize(
    "pixels",
    [
        SQUARE,
        SQUARE.astype(np.uint8),
        SQUARE.astype(np.uint8) * 255,
        np.where(SQUARE, 128, 127).astype(np.uint8),
        SQUARE.astype(np.uint16),
        SQUARE.astype(np.uint16) * 255,
        SQUARE.astype(np.uint16) * 65535,
        np.where(SQUARE, 32768, 32767).astype(np.uint16),
        SQUARE[..., None] * np.array([255, 0, 0], np.uint8),
        np.where(SQUARE[..., None], np.uint8(255), np.array([255, 255, 255, 0], np.uint8)),
        np.dstack([np.full((16, 16), 255, np.uint8), SQUARE.astype(np.uint8) * 255]),
    ],
    ids=[
        "one bit",
        "0 and 1",
        "0 and 255",
        "around half of white",
        "16 bit, 0 and 1",
        "16 bit, 0 and 255",
        "16 bit, 0 and white",
        "16 bit, around half of white",
        "red on black",
        "white on transparent white",
        "grey with the mask as transparency",
    ],
)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_every_way_to_write_a_mask_means_the_same(tmp_path: Path, pixels: NDArray[np.generic], ending: str) -> None:
    Image.fromarray(pixels).save(file := tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read_mask(file), SQUARE)


@pytest.mark.parametrize(
    ("first", "second"),
    [((0, 0, 0), (128, 0, 0)), ((0, 0, 0), (255, 255, 255)), ((30, 0, 60), (250, 230, 30))],
    ids=["label colours", "black and white", "light on dark colours"],
)
def test_of_a_palette_mask_the_first_entry_is_background(
    tmp_path: Path, first: tuple[int, int, int], second: tuple[int, int, int]
) -> None:
    indexed = Image.fromarray(SQUARE.astype(np.uint8)).convert("P")
    indexed.putpalette([*first, *second])
    indexed.save(file := tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(file), SQUARE)


def test_a_palette_mask_with_white_first_is_read_by_its_brightness(tmp_path: Path) -> None:
    indexed = Image.fromarray((~SQUARE).astype(np.uint8)).convert("P")
    indexed.putpalette([255, 255, 255, 0, 0, 0])
    indexed.save(file := tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(file), SQUARE)


@pytest.mark.parametrize(
    "colours", [[0, 0, 0, 255, 255, 255], [255, 255, 255, 0, 0, 0]], ids=["black first", "white first"]
)
@pytest.mark.parametrize("foreground", [False, True])
def test_a_palette_mask_of_one_colour_is_read_by_its_brightness(
    tmp_path: Path, colours: list[int], foreground: bool
) -> None:
    index = colours[0::3].index(255 if foreground else 0)
    indexed = Image.fromarray(np.full((4, 4), index, np.uint8)).convert("P")
    indexed.putpalette(colours)
    indexed.save(file := tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(file), np.full((4, 4), foreground))


def test_the_fringes_of_a_jpeg_mask_fall_to_one_side(tmp_path: Path) -> None:
    Image.fromarray(SQUARE.astype(np.uint8) * 255).save(file := tmp_path / "a.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(file)))) > 2
    np.testing.assert_array_equal(read_mask(file), SQUARE)


def test_a_map_of_several_labels_is_no_binary_mask(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    Image.fromarray(labels).save(plain := tmp_path / "a.png")
    indexed = Image.fromarray(labels).convert("P")
    indexed.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 0, 0, 128])
    indexed.save(coloured := tmp_path / "b.png")
    for file in (plain, coloured):
        with pytest.raises(UnclearLabels, match="more than two values"):
            read_mask(file)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, draw: Draw, ending: str) -> None:
    Image.fromarray(draw(64, 64, 3)).save(file := tmp_path / f"a.{ending}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UnreadablePixels):
        read_image(file)


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_file_that_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (file := tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadablePixels, match="not a picture"):
        read_image(file)


def test_several_pages_are_refused(tmp_path: Path, draw: Draw) -> None:
    first, second = Image.fromarray(draw(4, 4)), Image.fromarray(draw(4, 4))
    first.save(file := tmp_path / "a.tif", save_all=True, append_images=[second])
    with pytest.raises(UnreadablePixels, match="2 pages"):
        read_image(file)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(file := tmp_path / "a.tif")
    with pytest.raises(UnreadablePixels, match="floating-point"):
        read_image(file)


@pytest.mark.parametrize("values", [(0.0, 0.5), (0.0, np.nan), (-1.0, 0.0)])
def test_a_mask_of_numbers_that_are_no_labels_says_what_to_save(tmp_path: Path, values: tuple[float, float]) -> None:
    Image.fromarray(np.array([values], np.float32)).save(file := tmp_path / "a.tif")
    with pytest.raises(UnreadablePixels, match=r"values from .* Save classes or labels as integers"):
        read_values(file)


def test_signed_pixels_are_refused_when_one_is_negative(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1, 5]], np.int32)).save(file := tmp_path / "a.tif")
    with pytest.raises(UnreadablePixels, match="-1 to 5"):
        read_image(file)


# --- masks whose values are not white


@pytest.mark.parametrize(
    ("kind", "photometric"),
    [
        *((kind, "minisblack") for kind in (bool, np.uint8, np.uint16, np.int32, np.float32)),
        *((kind, "miniswhite") for kind in (bool, np.uint8, np.uint16)),
    ],
)
def test_a_mask_of_tifffile_holds_what_was_written(tmp_path: Path, kind: type, photometric: str) -> None:
    tifffile.imwrite(file := tmp_path / "a.tif", SQUARE.astype(kind), photometric=photometric)
    np.testing.assert_array_equal(read_mask(file), SQUARE)


@pytest.mark.parametrize("options", [{}, {"compression": "group4"}, {"tiffinfo": {262: 0}}], ids=str)
def test_a_one_bit_tiff_of_other_programs_is_read_as_a_viewer_shows_it(tmp_path: Path, options: dict[str, Any]) -> None:
    Image.fromarray(SQUARE).save(file := tmp_path / "a.tif", **options)
    np.testing.assert_array_equal(read_mask(file), SQUARE)


@pytest.mark.parametrize(
    ("background", "foreground"),
    [((0, 0, 0), (255, 0, 0)), ((255, 255, 255), (255, 0, 0)), ((0, 0, 90), (0, 200, 0)), ((9, 9, 9), (40, 40, 40))],
    ids=str,
)
@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp"])
def test_two_colours_are_background_and_foreground(
    tmp_path: Path, background: tuple[int, ...], foreground: tuple[int, ...], ending: str
) -> None:
    pixels = np.where(SQUARE[..., None], np.array(foreground, np.uint8), np.array(background, np.uint8))
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(pixels).save(file := tmp_path / f"a.{ending}", **options)
    np.testing.assert_array_equal(read_mask(file), SQUARE)


def test_values_of_a_palette_of_colours_are_its_indices(tmp_path: Path) -> None:
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    picture.save(file := tmp_path / "a.png")
    np.testing.assert_array_equal(read_values(file).values, indices)


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_is_an_image(tmp_path: Path, lossless: bool) -> None:
    ramp = np.repeat(np.add.outer(np.arange(64), np.arange(48))[..., None], 3, axis=2).astype(np.uint8)
    Image.fromarray(ramp).save(file := tmp_path / "a.webp", lossless=lossless, quality=95)
    np.testing.assert_allclose(read_image(file), ramp.transpose(2, 0, 1) / 255, atol=6 / 255)
    assert read_values(file).lossy != lossless
