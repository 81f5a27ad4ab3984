"""Read one image or mask of any supported format."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from projects.segmentation.labels import Content, Labels
from projects.segmentation.values import COLOUR

FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""File name endings that are read, in lower case."""

_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
_PHOTOMETRIC, _DESCRIPTION, _SOFTWARE = 262, 270, 305
_TABLE = 1 << 16


class UnreadablePixels(ValueError):
    """The file is no picture, truncated, or of invalid values."""


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
    lossy: bool = False


def read_image(path: Path) -> NDArray[np.float32]:
    """Read an image as (C, H, W) float32 in [0, 1].

    C is 1 for grey and 3 for colour; 1.0 is white in 8 and 16 bits alike. A palette is resolved to its
    colours, transparency is ignored, and a photograph's EXIF orientation is applied.

    Raises:
        UnreadablePixels: the file cannot be decoded to its last row.
    """
    raster = _decoded(path)
    values = raster.values if raster.palette is None else raster.palette[raster.values]
    scaled = values.astype(np.float32) / np.float32(raster.white)
    return scaled[None] if scaled.ndim == 2 else np.ascontiguousarray(scaled.transpose(2, 0, 1))


@dataclass(frozen=True)
class Mask:
    """The values (H, W) stored in a mask; ``lossy`` if its format changes values."""

    values: NDArray[np.integer]
    lossy: bool

    def content(self, name: str) -> Content:
        """Count the pixels of each value."""
        if self.values.min() >= 0 and self.values.max() < _TABLE:
            counts = np.bincount(self.values.ravel())
            return Content(name, {int(value): int(counts[value]) for value in np.flatnonzero(counts)}, self.lossy)
        values, counts = np.unique(self.values, return_counts=True)
        return Content(name, dict(zip(values.tolist(), counts.tolist(), strict=True)), self.lossy)


def read_values(path: Path) -> Mask:
    """Read the values of a mask; a colour is ``COLOUR + 0xRRGGBB``.

    A palette of greys stands for these, any other for its indices. One bit is 0 and 255. What is transparent is 0. In a
    TIFF of tifffile or ImageJ the stored numbers count, also where its header calls 0 white; in any other picture, what
    a viewer shows.

    Raises:
        UnreadablePixels: the file cannot be decoded, or holds numbers that are no whole ones.
    """
    raster = _decoded(path, mask=True)
    values = raster.values
    if raster.palette is not None:
        is_grey = (raster.palette == raster.palette[:, :1]).all()
        values = raster.palette[values][..., 0] if is_grey else values
    elif values.ndim == 3:
        values = values.max(axis=2) if raster.lossy else _packed(values)
    if raster.opaque is not None:
        values = np.where(raster.opaque, values, 0)
    return Mask(values, raster.lossy)


def read_classes(path: Path, labels: Labels) -> NDArray[np.int16]:
    """Read the class (H, W) of each pixel; 0 is background, -1 void.

    Raises:
        UnreadablePixels: as in `read_values`.
    """
    mask = read_values(path)
    return labels.indices(mask.values, lossy=mask.lossy)


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Colours (H, W, 3) as numbers: greys as they are, others as ``COLOUR + 0xRRGGBB``."""
    red, green, blue = np.moveaxis(colours.astype(np.int64), 2, 0)
    grey = (red == green) & (green == blue)
    packed: NDArray[np.int64] = np.where(grey, red, COLOUR + (red << 16 | green << 8 | blue))
    return packed


def _decoded(path: Path, *, mask: bool = False) -> _Raster:
    try:
        with Image.open(path) as picture:
            pages = getattr(picture, "n_frames", 1) if picture.format in ("TIFF", "WEBP") else 1
            if pages > 1:
                raise UnreadablePixels(f"holds {pages} pages; a file holds one picture")
            lossy, inverted = _is_lossy(picture, path), mask and _is_inverted(picture)
            raster = _raster(ImageOps.exif_transpose(picture), mask=mask)
            values = 255 - raster.values if inverted else raster.values
            return replace(raster, values=values, lossy=lossy)
    except UnidentifiedImageError:
        raise UnreadablePixels("is not a picture in a known format") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadablePixels(f"cannot be decoded: {error}") from None


def _is_lossy(picture: Image.Image, path: Path) -> bool:
    if picture.format == "WEBP":
        return b"VP8 " in _chunks(path)  # VP8L holds exact pixels
    return picture.format in ("JPEG", "MPO") or picture.info.get("compression") in _LOSSY_TIFF


def _chunks(path: Path) -> set[bytes]:
    """Chunk names of a RIFF file, such as a WebP."""
    names = set()
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            names.add(head[:4])
            length = int.from_bytes(head[4:], "little")
            file.seek(length + length % 2, os.SEEK_CUR)
    return names


def _is_inverted(picture: Image.Image) -> bool:
    """Whether Pillow inverts numbers written by tifffile or ImageJ.

    Their TIFFs may call 0 white and still mean the stored numbers.
    """
    tags = getattr(picture, "tag_v2", {})
    if picture.mode not in ("1", "L") or tags.get(_PHOTOMETRIC) != 0:
        return False
    return str(tags.get(_SOFTWARE, "")).startswith("tifffile") or "ImageJ=" in str(tags.get(_DESCRIPTION, ""))


def _raster(picture: Image.Image, *, mask: bool) -> _Raster:
    if picture.mode.startswith("I;16"):
        return _Raster(values=np.asarray(picture), white=65535)
    if picture.mode == "I":
        values = np.asarray(picture)
        if values.min() < 0 or (values.max() > 65535 and not mask):
            raise UnreadablePixels(
                f"holds values from {values.min()} to {values.max()}; 8 or unsigned 16 bits are read"
            )
        return _Raster(values=values, white=65535)
    if picture.mode == "F":
        values = np.asarray(picture)
        if not mask:
            raise UnreadablePixels("holds floating-point pixels; 8 or unsigned 16 bits are read")
        if not (values == np.abs(np.rint(values))).all():
            raise UnreadablePixels(
                f"holds floating-point values from {values.min():g} to {values.max():g}; whole numbers from 0 up are read. "
                "Save classes or labels as integers"
            )
        return _Raster(values=values.astype(np.int64))
    opaque = np.asarray(picture.convert("RGBA").getchannel("A")) > 127 if picture.has_transparency_data else None
    if picture.mode == "P":
        colours = np.zeros((256, 3), np.uint8)
        given = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)
        colours[: len(given)] = given
        return _Raster(values=np.asarray(picture), palette=colours, opaque=opaque)
    # Also turns one bit into 0 and 255, and CMYK and the like into colours.
    plain = picture.convert("L" if picture.mode in ("1", "L", "LA", "La") else "RGB")
    return _Raster(values=np.asarray(plain), opaque=opaque)
