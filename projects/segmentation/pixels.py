"""Reading one image or one mask, whatever picture format it came in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""File name endings that are read, in lower case."""

_MOST_LABELS = 32
"""Masks whose largest value is above 1 and below this hold labels, not brightness."""


class UnreadablePixels(ValueError):
    """A file that is no picture, is cut short, or holds values that are no image and no mask."""


@dataclass(frozen=True, kw_only=True)
class _Raster:
    """Decoded pixels.

    ``values`` are (H, W) or (H, W, 3), or indices (H, W) into the colours ``palette`` (256, 3); ``white`` is the
    largest value that their type means; ``opaque`` (H, W) is given where the picture has transparency.
    """

    values: NDArray[Any]
    white: int = 255
    palette: NDArray[np.uint8] | None = None
    opaque: NDArray[np.bool_] | None = None


def read_image(path: Path) -> NDArray[np.float32]:
    """The image as (C, H, W) float32 in [0, 1], C = 1 for grey and 3 for colour; 1 is white in 8 and 16 bits alike.

    A palette is resolved to its colours, transparency is ignored, and a photograph's EXIF orientation is applied.

    Raises:
        UnreadablePixels: the file cannot be decoded to its last row.
    """
    raster = _decoded(path)
    values = raster.values if raster.palette is None else raster.palette[raster.values]
    scaled = values.astype(np.float32) / np.float32(raster.white)
    return scaled[None] if scaled.ndim == 2 else np.ascontiguousarray(scaled.transpose(2, 0, 1))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """The mask as (H, W), true in the foreground.

    Foreground is what is above one half of white (127 of 255), so that the grey fringes of a JPEG fall to one side;
    or above zero where the only values are 0 and 1. Of a coloured mask the brightest channel counts, of a palette of
    colours every index but the first, and what is transparent is background.

    Raises:
        UnreadablePixels: the file cannot be decoded, or holds labels 0, 1, 2 … and so is no binary mask.
    """
    raster = _decoded(path)
    if raster.palette is not None:
        foreground = _foreground_of_palette(raster.values, raster.palette)
    else:
        values = raster.values if raster.values.ndim == 2 else raster.values.max(axis=2)
        foreground = _foreground(values, raster.white)
    return foreground if raster.opaque is None else foreground & raster.opaque


def _foreground(values: NDArray[Any], white: int) -> NDArray[np.bool_]:
    most = int(values.max())
    if 1 < most < _MOST_LABELS:
        raise UnreadablePixels(f"holds labels up to {most}; a binary mask holds 0 and 1, or 0 and {white}")
    # Masks of 0 and 255 are also found in 16-bit files.
    threshold = 0 if most <= 1 else 127 if most <= 255 else white // 2
    return np.asarray(values > threshold)


def _foreground_of_palette(indices: NDArray[Any], palette: NDArray[np.uint8]) -> NDArray[np.bool_]:
    used = palette[np.unique(indices)]
    # Black-and-white pictures are stored with either colour first; in a palette of label colours background is first.
    if (used == used[:, :1]).all() and (used.max() == 0 or used.max() > 127):
        return np.asarray(palette[indices][..., 0] > 127)
    most = int(indices.max())
    if most > 1:
        raise UnreadablePixels(f"holds the palette's labels up to {most}; a binary mask holds 0 and 1")
    return np.asarray(indices > 0)


def _decoded(path: Path) -> _Raster:
    try:
        with Image.open(path) as picture:
            pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
            if pages > 1:
                raise UnreadablePixels(f"holds {pages} pages; a file holds one picture")
            return _raster(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise UnreadablePixels("is not a picture in a known format") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadablePixels(f"cannot be decoded: {error}") from None


def _raster(picture: Image.Image) -> _Raster:
    if picture.mode.startswith("I;16"):
        return _Raster(values=np.asarray(picture), white=65535)
    if picture.mode == "I":
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadablePixels(
                f"holds values from {values.min()} to {values.max()}; 8 or unsigned 16 bits are read"
            )
        return _Raster(values=values, white=65535)
    if picture.mode == "F":
        raise UnreadablePixels("holds floating-point pixels; 8 or unsigned 16 bits are read")
    opaque = np.asarray(picture.convert("RGBA").getchannel("A")) > 127 if picture.has_transparency_data else None
    if picture.mode == "P":
        colours = np.zeros((256, 3), np.uint8)
        given = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)
        colours[: len(given)] = given
        return _Raster(values=np.asarray(picture), palette=colours, opaque=opaque)
    # Also turns one bit into 0 and 255, and CMYK and the like into colours.
    plain = picture.convert("L" if picture.mode in ("1", "L", "LA", "La") else "RGB")
    return _Raster(values=np.asarray(plain), opaque=opaque)
