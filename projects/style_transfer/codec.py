"""Codecs between images and the latents of the flow.

A codec is a module with ``factor`` (pixels per latent along a side), ``channels``, ``encode`` and ``decode``. The latents of
every codec are standardized, so that they have the scale of the noise from which the flow starts.
"""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mltrain.errors import ConfigError


@runtime_checkable
class Codec(Protocol):
    """The attributes of a codec, which is also a :class:`torch.nn.Module`."""

    factor: int
    channels: int

    def encode(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to latents (B, channels, H / factor, W / factor)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents to images (B, 3, H, W), which may leave [0, 1]."""
        ...


class LinearCodec(nn.Module):
    """Projects squares of pixels on their principal components.

    Args:
        factor: pixels along the side of a square.
        channels: number of components to keep, of 3 * factor**2.

    """

    mean: Tensor
    basis: Tensor

    def __init__(self, factor: int = 4, channels: int = 12) -> None:
        super().__init__()
        self.factor = factor
        self.channels = channels
        self.register_buffer("mean", torch.zeros(3 * factor**2))
        self.register_buffer("basis", torch.eye(3 * factor**2)[:, :channels].clone())

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Compute mean and principal components of images (B, 3, H, W)."""
        squares = F.pixel_unshuffle(images, self.factor).movedim(1, -1).flatten(0, -2).double()
        mean = squares.mean(0)
        _, vectors = torch.linalg.eigh((squares - mean).T @ (squares - mean))
        basis = vectors.flip(1)[:, : self.channels]
        # The sign of an eigenvector is arbitrary; with the largest entry positive every LAPACK gives the same one.
        largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
        self.mean.copy_(mean)
        self.basis.copy_(basis * largest.sign())

    def encode(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to latents (B, channels, H / factor, W / factor)."""
        squares = F.pixel_unshuffle(images, self.factor) - self.mean[:, None, None]
        return torch.einsum("bdhw,dc->bchw", squares, self.basis)

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents to images: the nearest image in the span of the components."""
        squares = torch.einsum("bchw,dc->bdhw", latents, self.basis) + self.mean[:, None, None]
        return F.pixel_shuffle(squares, self.factor)


class Standardized(nn.Module):
    """A codec with latents of mean 0 and variance 1.

    These are the moments of every channel over the images it was fitted to. Every checkpoint contains it; its weights are frozen.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, inner: Codec) -> None:
        super().__init__()
        self.inner = cast(nn.Module, inner).requires_grad_(False).eval()
        self.factor = inner.factor
        self.channels = inner.channels
        self.register_buffer("mean", torch.zeros(inner.channels))
        self.register_buffer("deviation", torch.ones(inner.channels))

    @property
    def codec(self) -> Codec:
        """The codec inside."""
        return cast(Codec, self.inner)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Fit to images (B, 3, H, W): first a linear codec, then mean and variance."""
        if isinstance(self.inner, LinearCodec):
            self.inner.fit(images)
        self.mean.zero_()
        self.deviation.fill_(1)
        latents = self.encode(images)
        self.mean.copy_(latents.mean((0, 2, 3)))
        self.deviation.copy_(latents.std((0, 2, 3)).clamp_min(1e-6))

    def encode(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to standardized latents."""
        return (self.codec.encode(images) - self.mean[:, None, None]) / self.deviation[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Map standardized latents to images (B, 3, H, W), which may leave [0, 1]."""
        return self.codec.decode(latents * self.deviation[:, None, None] + self.mean[:, None, None])


def codec_in(file: Path) -> Codec:
    """Return the codec that ``codec()`` in a Python file returns.

    Raises:
        ConfigError: there is no such file, or the function returns no codec.

    """
    spec = importlib.util.spec_from_file_location(f"style_transfer_codec_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ConfigError(f"codec_file={file} is not a Python file. Expected: a file with a function codec().")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.codec() if hasattr(module, "codec") else None
    if not (isinstance(made, Codec) and isinstance(made, nn.Module)):
        raise ConfigError(
            f"codec() in {file} returned a {type(made).__name__}. Expected: a torch.nn.Module with factor, channels, "
            "encode(images) and decode(latents)."
        )
    return made


def psnr(images: Tensor, restored: Tensor) -> float:
    """Return the peak signal-to-noise ratio [dB] of images (from 0 to 1)."""
    return -10 * math.log10(max(float((images - restored.clamp(0, 1)).square().mean()), 1e-12))


def inner_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inner codec's weights from a :class:`Standardized` state."""
    return {name.removeprefix("inner."): value for name, value in state.items() if name.startswith("inner.")}
