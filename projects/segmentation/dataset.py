"""Samples as tensors, for training and validation."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from projects.segmentation.augment import Augmentation
from projects.segmentation.folders import Sample
from projects.segmentation.framing import Size
from projects.segmentation.pixels import read_classes, read_image

_MOST_PIXELS = 2**22


class SegmentationData(Dataset[tuple[Tensor, Tensor]]):
    """A map-style dataset of images and masks.

    An item is an image (channels, H, W) in [0, 1] and a mask (1, H, W) of class indices, both float32. In a mask 0 is the
    background, 1 the first class, and -1 a void pixel, which the loss and the metrics leave out.

    Args:
        samples: the files to read.
        size: (H, W) that every sample is resized to, or a function that gives it. If ``None``, samples keep their size.
        channels: 1 for grey, 3 for colour.
        augmentation: applied to a sample whenever it is read; the default changes nothing.
        cache_bytes: size of the memory cache; samples that no longer fit are read from disk each time.
        repeat: how often an epoch contains each sample.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: Size | Callable[[], Size | None] | None,
        channels: int,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - a frozen value
        cache_bytes: int = 2**30,
        repeat: int = 1,
    ) -> None:
        self.samples = tuple(samples)
        self._size = size
        self.channels = channels
        self.augmentation = augmentation
        self.repeat = repeat
        self._room = cache_bytes
        self._kept: dict[tuple[int, Size | None], tuple[Tensor, Tensor]] = {}

    @property
    def size(self) -> Size | None:
        """(H, W) of all samples, or None if they keep their own."""
        return self._size() if callable(self._size) else self._size

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        return len(self.samples) * self.repeat

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one augmented sample."""
        if index >= len(self):
            raise IndexError(index)  # which ends a for loop over the samples
        return self.augmentation(*self._plain(index % len(self.samples)))

    def _plain(self, index: int) -> tuple[Tensor, Tensor]:
        size = self.size
        if (index, size) in self._kept:
            return self._kept[index, size]
        sample = self.samples[index]
        own = size or (sample.height, sample.width)
        pair = (
            network_input(read_image(sample.image), own, self.channels),
            resized_mask(read_classes(sample.mask, sample.labels), own),
        )
        taken = sum(tensor.nbytes for tensor in pair)
        if taken <= self._room:
            self._room -= taken
            self._kept[index, size] = pair
        return pair


class OneSize(Sampler[list[int]]):
    """Batches of consecutive samples of the same size.

    A batch has at most ``batch_size`` samples and four million pixels, and at least one sample.
    """

    def __init__(self, data: SegmentationData, batch_size: int) -> None:
        self._data = data
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch; every sample comes once."""
        batch: list[int] = []
        last: Size | None = None
        for index, sample in enumerate(self._data.samples):
            size = self._data.size or (sample.height, sample.width)
            most = min(self._batch_size, max(1, _MOST_PIXELS // (size[0] * size[1])))
            if batch and (size != last or len(batch) >= most):
                yield batch
                batch = []
            batch.append(index)
            last = size
        yield batch


def network_input(image: NDArray[np.float32], size: Size, channels: int) -> Tensor:
    """Convert an image (C, H, W) to the network's channels and size.

    ``channels`` is 1 for grey and 3 for colour, ``size`` is (H, W). The image is resized bilinearly, with antialiasing where
    it shrinks.
    """
    pixels = torch.from_numpy(image)
    if channels == 1 and len(pixels) == 3:
        red, green, blue = pixels
        pixels = (0.299 * red + 0.587 * green + 0.114 * blue)[None]  # luma of ITU-R BT.601
    pixels = pixels.expand(channels, -1, -1)
    if pixels.shape[1:] != size:
        pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    return pixels.contiguous()


def resized_mask(mask: NDArray[np.generic], size: Size) -> Tensor:
    """Resize class indices (H, W) to float32 (1, *size) by nearest neighbour."""
    return F.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="nearest-exact")[0]
