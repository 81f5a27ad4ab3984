"""The file that a user names with ``codec_file``: a codec that averages 2 by 2 pixels."""

import torch.nn.functional as F
from torch import Tensor, nn


class Averages(nn.Module):
    factor, channels = 2, 3

    def encode(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 2)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents, scale_factor=2)


def codec() -> nn.Module:
    return Averages()
