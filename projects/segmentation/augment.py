"""Random changes of a training sample that leave its mask right."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from projects.segmentation.framing import Size, random_crop

Flips = Literal["none", "horizontal", "both"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A crop, flips and quarter turns of image and mask alike; brightness and noise of the image alone.

    All draws come from torch's default generator, which the loader seeds for every batch.
    """

    crop: Size | None = None
    """(H, W) of a random part of the sample. If ``None``, the whole sample."""
    flips: Flips = "none"
    """Which mirror images are as likely to be met as the original."""
    quarter_turns: bool = False
    """For pictures without an up, such as micrographs; anatomy has one. Wants square samples."""
    brightness: float = 0.0
    """Largest shift of the brightness in units of ``deviation``, and largest relative change of the gain."""
    noise: float = 0.0
    """Largest standard deviation of the Gaussian noise in units of ``deviation``."""
    deviation: float = 1.0
    """Standard deviation of the training images, whose scale depends on the camera."""

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Change an image (C, H, W) and its mask (1, H, W)."""
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
