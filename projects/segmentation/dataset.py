"""Samples as tensors of one size: what the network is trained and validated on."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from projects.segmentation.augment import Augmentation
from projects.segmentation.folders import Sample
from projects.segmentation.pixels import read_image, read_mask

STRIDE = 8
"""Height and width are multiples of this: the network halves them three times."""

_LONGEST_SIDE = 256


class SegmentationData(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an image (channels, H, W) in [0, 1] and a mask (1, H, W) of zeros and ones, both float32.

    Args:
        samples: what to read.
        size: (H, W) that every sample is resized to.
        channels: 1 for grey, 3 for colour.
        augmentation: changes each sample each time; the default changes nothing.
        cache_bytes: samples are kept in memory after they were read once, until they take this much.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: tuple[int, int],
        channels: int,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - a frozen value
        cache_bytes: int = 2**30,
    ) -> None:
        self.samples = tuple(samples)
        self.size = size
        self.channels = channels
        self.augmentation = augmentation
        self._room = cache_bytes
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one sample, changed at random as the augmentation says."""
        return self.augmentation(*self._plain(index))

    def _plain(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self._kept:
            return self._kept[index]
        sample = self.samples[index]
        pair = (
            network_input(read_image(sample.image), self.size, self.channels),
            resized_mask(read_mask(sample.mask), self.size),
        )
        taken = sum(tensor.nbytes for tensor in pair)
        if taken <= self._room:
            self._room -= taken
            self._kept[index] = pair
        return pair


def network_input(image: NDArray[np.float32], size: tuple[int, int], channels: int) -> Tensor:
    """An image (C, H, W) as the network takes it: with ``channels`` 1 grey, with 3 colour, and of ``size`` (H, W).

    Resized bilinearly, with antialiasing where it shrinks.
    """
    pixels = torch.from_numpy(image)
    if channels == 1 and len(pixels) == 3:
        red, green, blue = pixels
        pixels = (0.299 * red + 0.587 * green + 0.114 * blue)[None]  # luma of ITU-R BT.601
    pixels = pixels.expand(channels, -1, -1)
    if pixels.shape[1:] != size:
        pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    return pixels.contiguous()


def resized_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """A mask (H, W) as float32 (1, *size) of zeros and ones, each pixel that of the nearest one."""
    return F.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="nearest-exact")[0]


def natural_size(samples: Sequence[Sample]) -> tuple[int, int]:
    """The median (height, width), scaled down to 256 pixels at most on the longer side, in multiples of eight."""
    height, width = (float(np.median([getattr(sample, side) for sample in samples])) for side in ("height", "width"))
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    return _multiple(height * scale), _multiple(width * scale)


def _multiple(pixels: float) -> int:
    return max(2, round(pixels / STRIDE)) * STRIDE
