"""Pictures as tensors: reading, random crops, padding, and conversion back to pixels."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mltrain.errors import DataError
from projects.segmentation.pixels import UnreadablePixels, read_image

LEAST_CONTRAST = 18.0
"""A crop is drawn again if the standard deviation of its 8-bit brightness is below this, because empty sky has no style."""

MOST_SCALED_UP = 8.0
"""Largest factor by which pictures are scaled up; beyond it they would show blur in place of style."""

BRIGHTNESS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""

_TRIES = 8


def read_picture(file: Path, short_side: int | None) -> Tensor:
    """Return a scaled picture, (3, H, W) uint8.

    Its shorter side gets ``short_side`` pixels. If ``short_side`` is ``None``, the picture keeps its size.

    Raises:
        UnreadablePixels: the file is not a picture, is truncated, or would be scaled up more than
            :data:`MOST_SCALED_UP` times.

    """
    pixels = torch.from_numpy(read_image(file))
    if short_side is not None and short_side != min(pixels.shape[1:]):
        scale = short_side / min(pixels.shape[1:])
        if scale > MOST_SCALED_UP:
            raise UnreadablePixels(
                f"is {pixels.shape[1]} x {pixels.shape[2]} pixels; its shorter side needs at least "
                f"{math.ceil(short_side / MOST_SCALED_UP)} for short_side={short_side}"
            )
        size = [max(short_side, round(side * scale)) for side in pixels.shape[1:]]
        pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    return (pixels.expand(3, -1, -1).clamp(0, 1) * 255).round().to(torch.uint8)


def read_pictures(files: Sequence[Path], short_side: int | None) -> list[Tensor]:
    """Read several pictures with :func:`read_picture`.

    Raises:
        DataError: some cannot be read; the error names all of them.

    """
    pictures, unread = [], []
    for file in files:
        try:
            pictures.append(read_picture(file, short_side))
        except UnreadablePixels as error:
            unread.append(f"{file} {error}")
    if unread:
        raise DataError(
            f"{len(unread)} of {len(files)} pictures cannot be read. Repair or remove them.\n  " + "\n  ".join(unread)
        )
    return pictures


def random_crop(picture: Tensor, side: int) -> Tensor:
    """Return a random square of a picture (3, H, W), randomly mirrored.

    Squares without contrast are drawn again, a few times. The random numbers are from torch's global generator.
    """
    height, width = picture.shape[1:]
    for _ in range(_TRIES):
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        crop = picture[:, top : top + side, left : left + side]
        if float(crop.float().mean(0).std()) >= LEAST_CONTRAST:
            break
    return crop.flip(2) if torch.rand(()) < 0.5 else crop


def random_crops(pictures: Sequence[Tensor], side: int, count: int) -> Tensor:
    """Return random crops, each picture in turn: (count, 3, side, side) float32 in [0, 1]."""
    crops = [random_crop(pictures[index % len(pictures)], side) for index in range(count)]
    return torch.stack(crops).float() / 255


class StyleCrops:
    """A data set of random crops, one of every style: (styles, 3, side, side) float32 in [0, 1].

    Args:
        pictures: pictures of each style, (3, H, W) uint8, no side shorter than ``side``.
        side: side of the crops in pixels.
        length: items per epoch.

    """

    def __init__(self, pictures: Sequence[Sequence[Tensor]], side: int, length: int) -> None:
        self._pictures = pictures
        self._side = side
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        chosen = [style[int(torch.randint(len(style), ()))] for style in self._pictures]
        return torch.stack([random_crop(picture, self._side) for picture in chosen]).float() / 255


def padded(images: Tensor, multiple: int) -> Tensor:
    """Return images (B, C, H, W) padded to a multiple by repeated edges (right and bottom)."""
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def as_pixels(image: Tensor) -> NDArray[np.uint8]:
    """Return an image (3, H, W) in [0, 1] as (H, W, 3), 8-bit; values outside are clipped."""
    return np.asarray((image.detach().cpu().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
