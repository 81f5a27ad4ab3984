"""A small residual U-Net with the settings of its training."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from projects.segmentation.framing import UNKNOWN, Framing, Size


class SegmentationNet(nn.Module):
    """Maps images (N, C, H, W) in [0, 1] to logits (N, K, H, W); H and W are multiples of eight.

    A U-Net (Ronneberger et al., MICCAI 2015) with residual units (Kerfoot et al., STACOM 2018), 0.4 million weights.
    What is needed to use it elsewhere as in training is part of its state: mean and standard deviation of the
    training images, the window that it saw at once, whether pictures were stretched and by which factor, and the mask
    values of its classes. A state of an earlier version has neither of the last three: its pictures were stretched to the
    window, its class is 255, and the factor is unknown (0).

    Args:
        channels: C, 1 for grey and 3 for colour.
        size: (H, W) that it will see at once in training.
        mean: of the training images' pixels.
        std: standard deviation of the same.
        framing: how it will be shown its pictures. If ``None``, each is stretched to ``size``, by an unknown factor.
        values: what masks hold where a class is: of the one class, or of the background and of each class; K of them.
    """

    mean: Tensor
    std: Tensor
    trained_at: Tensor
    stretched_to: Tensor
    scale: Tensor
    values: Tensor

    def __init__(
        self,
        channels: int,
        size: Size,
        mean: float = 0.5,
        std: float = 0.25,
        *,
        framing: Framing | None = None,
        values: Sequence[int] = (255,),
    ) -> None:
        super().__init__()
        self._planned = framing or Framing(size, size, UNKNOWN)
        self.register_buffer("mean", torch.full((channels, 1, 1), mean))
        self.register_buffer("std", torch.full((channels, 1, 1), std))
        self.register_buffer("trained_at", torch.tensor(size))
        self.register_buffer("stretched_to", torch.tensor(self._planned.stretched_to or (0, 0)))
        self.register_buffer("scale", torch.tensor(self._planned.scale))
        self.register_buffer("values", torch.tensor(values))
        self.register_load_state_dict_pre_hook(_complete)  # type: ignore[no-untyped-call]
        self.unet = UNet(2, channels, len(values), (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm="batch")

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "SegmentationNet":
        """Return the network with the weights of a checkpoint.

        Raises:
            RuntimeError: it is not the state of such a network.
        """
        if not {"mean", "trained_at"} <= weights.keys():
            raise RuntimeError(f"no weights of a {cls.__name__}: its mean and trained_at are missing")
        net = cls(len(weights["mean"]), (8, 8), values=weights.get("values", torch.tensor([255])).tolist())
        net.load_state_dict(weights)
        return net

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return len(self.mean)

    @property
    def size(self) -> Size:
        """Input (H, W) of the last training step."""
        height, width = self.trained_at.tolist()
        return height, width

    @property
    def framing(self) -> Framing:
        """Framing of the last training step."""
        (height, width), (vertical, horizontal) = self.stretched_to.tolist(), self.scale.tolist()
        return Framing(self.size, (height, width) if height else None, (vertical, horizontal))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K, H, W): the foreground, or background and classes."""
        if self.training:
            self.trained_at.copy_(torch.tensor(images.shape[2:]))
            if self._planned.window == tuple(images.shape[2:]):
                self.stretched_to.copy_(torch.tensor(self._planned.stretched_to or (0, 0)))
                self.scale.copy_(torch.tensor(self._planned.scale))
            else:
                self.stretched_to.copy_(self.trained_at)
        return cast(Tensor, self.unet((images - self.mean) / self.std))


class Probabilities(nn.Module):
    """Maps images (N, C, H, W) in [0, 1] to probabilities (N, K, H, W).

    They are of the foreground, or of background and classes.
    """

    def __init__(self, net: SegmentationNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities."""
        logits: Tensor = self.net(images)
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def _complete(net: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Add buffers that an earlier version's state lacks."""
    size = state.get(f"{prefix}trained_at")
    if size is not None:
        state.setdefault(f"{prefix}stretched_to", size)
        state.setdefault(f"{prefix}scale", torch.tensor(UNKNOWN))
        state.setdefault(f"{prefix}values", torch.tensor([255]))
