"""Random augmentation of an image together with its mask."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from projects.segmentation.framing import Size, random_crop

Flips = Literal["none", "horizontal", "both"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augment an image and its mask at random.

    Crop, flips and quarter turns change both; brightness and noise change the image alone. All draws come from
    torch's default generator, which the loader seeds for every batch.
    """

    crop: Size | None = None
    """(H, W) of a random part of the sample. If ``None``, the whole sample."""
    flips: Flips = "none"
    """Axes along which a sample is mirrored, each with probability one half."""
    quarter_turns: bool = False
    """Rotate by a random multiple of 90 degrees, for images without an up, such as micrographs. Needs square samples."""
    brightness: float = 0.0
    """Largest shift of the brightness in units of ``deviation``, and largest relative change of the gain."""
    noise: float = 0.0
    """Largest standard deviation of the Gaussian noise in units of ``deviation``."""
    deviation: float = 1.0
    """Standard deviation of the training images, whose scale depends on the camera."""

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return an augmented image (C, H, W) and mask (1, H, W)."""
        if self.crop is not None:
            image, mask = random_crop(image, mask, self.crop)
        for dim in {"none": (), "horizontal": (-1,), "both": (-1, -2)}[self.flips]:
            if torch.rand(()) < 0.5:
                image, mask = image.flip(dim), mask.flip(dim)
        if self.quarter_turns:
            turns = int(torch.randint(4, ()))
            image, mask = image.rot90(turns, (-2, -1)), mask.rot90(turns, (-2, -1))
        if self.brightness > 0:
            shift, gain = self.brightness * (2 * torch.rand(2) - 1)
            image = image * (1 + gain) + shift * self.deviation
        if self.noise > 0:
            image = image + self.noise * self.deviation * torch.rand(()) * torch.randn_like(image)
        return image, mask
