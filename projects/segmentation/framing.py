"""Scale images of any size, and cut them into windows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from projects.segmentation.folders import Sample

STRIDE = 8
"""Height and width of a window are multiples of this: the network halves them three times."""

_LONGEST_SIDE = 256
_OVERLAP = 0.25
_WINDOWS_AT_ONCE = 4
_MOST_CROPS = 16
_SAME_SCALE = 1.25

UNKNOWN = (0.0, 0.0)
"""Scale in the checkpoints of earlier versions, which did not record it."""

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Framing:
    """How images are scaled and windowed for a network.

    Attributes:
        window: (H, W) of the network's input, in multiples of eight.
        stretched_to: (H, W) that every picture is resized to first. If ``None``, pictures keep their own scale.
        scale: pixels of the network for one pixel of a picture, in height and width: the median of the training pictures.
    """

    window: Size
    stretched_to: Size | None = None
    scale: tuple[float, float] = (1.0, 1.0)

    @property
    def crops(self) -> bool:
        """Whether a training sample is a crop of its picture."""
        return self.window != self.stretched_to


def framing(
    samples: Sequence[Sample], *, resize: str, image_size: Size | None, crop_size: Size | None, square: bool = False
) -> Framing:
    """Choose the framing of a training.

    Args:
        samples: the training samples.
        resize: ``stretch`` resizes every picture to ``image_size``; ``none`` keeps its scale; ``auto`` stretches where
            ``image_size`` is given and is not the size that all pictures have already.
        image_size: (H, W). If ``None``, `natural_size` where pictures are stretched.
        crop_size: (H, W) of the random crops. If ``None``, the whole picture where it is stretched, else `natural_crop`.
        square: whether a window that is not given has to be square.
    """
    if resize == "auto":
        own = image_size is None or all((item.height, item.width) == image_size for item in samples)
        resize, crop_size = ("none", crop_size or image_size) if own else ("stretch", crop_size)
    if resize == "none":
        return Framing(crop_size or natural_crop(samples, square=square))
    size = image_size or natural_size(samples)
    height, width = (
        float(np.median([side / getattr(item, name) for item in samples]))
        for side, name in zip(size, ("height", "width"), strict=True)
    )
    return Framing(crop_size or size, size, (height, width))


def natural_size(samples: Sequence[Sample]) -> Size:
    """Return the median (height, width) in multiples of eight.

    It is scaled down to at most 256 pixels on the longer side.
    """
    height, width = median_size(samples)
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    return tuple(max(2, round(side * scale / STRIDE)) * STRIDE for side in (height, width))  # type: ignore[return-value]


def natural_crop(samples: Sequence[Sample], *, square: bool = False) -> Size:
    """Return the median (height, width), rounded up to multiples of eight.

    Each is at most 256 pixels.
    """
    height, width = (max(2, -int(-min(side, _LONGEST_SIDE) // STRIDE)) * STRIDE for side in median_size(samples))
    return (min(height, width),) * 2 if square else (height, width)


def crops_an_epoch(samples: Sequence[Sample], frame: Framing) -> int:
    """Return the number of crops that cover the median picture (at most 16)."""
    height, width = frame.stretched_to or median_size(samples)
    return min(_MOST_CROPS, max(1, round(height * width / (frame.window[0] * frame.window[1]))))


def random_crop(image: Tensor, mask: Tensor, window: Size) -> tuple[Tensor, Tensor]:
    """Cut the same random window from image and mask.

    The image is (C, H, W), the mask (1, H, W); the place is drawn from torch's default generator. Where the picture is
    smaller than the window, the image is padded with its edge and the mask with void (-1).
    """
    height, width = (max(0, wanted - side) for wanted, side in zip(window, image.shape[1:], strict=True))
    if height or width:
        around = (width // 2, width - width // 2, height // 2, height - height // 2)
        image = F.pad(image[None], around, mode="replicate")[0]
        mask = F.pad(mask, around, value=-1.0)
    top, left = (
        int(torch.randint(side - wanted + 1, ())) for side, wanted in zip(image.shape[1:], window, strict=True)
    )
    part = (slice(None), slice(top, top + window[0]), slice(left, left + window[1]))
    return image[part].contiguous(), mask[part].contiguous()


def windowed(net: Callable[[Tensor], Tensor], images: Tensor, window: Size) -> Tensor:
    """Return logits of images of any size, from overlapping windows.

    Maps images (N, C, H, W) to logits (N, K, H, W). The windows are MONAI's sliding windows; they overlap by a quarter, with
    Gaussian weights, so that the middle of a window counts more than its edge.
    """
    if images.shape[2:] == window:
        return net(images)
    return cast(
        Tensor,
        sliding_window_inference(
            images,
            window,
            _WINDOWS_AT_ONCE,
            net,
            overlap=_OVERLAP,
            mode="gaussian",
            padding_mode="replicate",
        ),
    )


def other_scale(frame: Framing, sizes: Sequence[Size]) -> list[Size]:
    """Return the sizes stretched by another factor than in training.

    Factors within a quarter of the training's count as the same.
    """
    if frame.stretched_to is None or frame.scale == UNKNOWN:
        return []
    return [
        size
        for size in sizes
        if any(
            not 1 / _SAME_SCALE <= to / side / scale <= _SAME_SCALE
            for to, side, scale in zip(frame.stretched_to, size, frame.scale, strict=True)
        )
    ]


def median_size(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the median (height, width) of the images."""
    height, width = (float(np.median([getattr(item, side) for item in samples])) for side in ("height", "width"))
    return height, width
