"""The network: a small residual U-Net that knows what its input looked like in training."""

from collections.abc import Mapping
from typing import cast

import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn


class SegmentationNet(nn.Module):
    """Maps images (N, C, H, W) in [0, 1] to logits (N, 1, H, W); H and W are multiples of eight.

    A U-Net (Ronneberger et al., MICCAI 2015) with residual units (Kerfoot et al., STACOM 2018), 0.4 million weights.
    What is needed to use it elsewhere as in training is part of its state: mean and standard deviation of the
    training images, and the size at which it was trained last.

    Args:
        channels: C, 1 for grey and 3 for colour.
        size: (H, W) at which it will be trained.
        mean: of the training images' pixels.
        std: standard deviation of the same.
    """

    mean: Tensor
    std: Tensor
    trained_at: Tensor

    def __init__(self, channels: int, size: tuple[int, int], mean: float = 0.5, std: float = 0.25) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((channels, 1, 1), mean))
        self.register_buffer("std", torch.full((channels, 1, 1), std))
        self.register_buffer("trained_at", torch.tensor(size))
        self.unet = UNet(2, channels, 1, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm="batch")

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "SegmentationNet":
        """The network that has this state, as a checkpoint holds it.

        Raises:
            RuntimeError: it is not the state of such a network.
        """
        if not {"mean", "trained_at"} <= weights.keys():
            raise RuntimeError(f"no weights of a {cls.__name__}: its mean and trained_at are missing")
        net = cls(len(weights["mean"]), (8, 8))
        net.load_state_dict(weights)
        return net

    @property
    def channels(self) -> int:
        """How many channels an image has."""
        return len(self.mean)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) at which the network was trained last."""
        height, width = self.trained_at.tolist()
        return height, width

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the foreground."""
        if self.training:
            self.trained_at.copy_(torch.tensor(images.shape[2:]))
        return cast(Tensor, self.unet((images - self.mean) / self.std))
