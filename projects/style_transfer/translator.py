"""A trained flow together with all that is needed to use it on pictures of any size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mltrain.errors import DataError, nearest
from mltrain.rng import own_rng
from projects.style_transfer.codec import Standardized
from projects.style_transfer.flow import Flow, matching_loss
from projects.style_transfer.pictures import padded
from projects.style_transfer.velocity import GRID, VelocityNet

_GUESSES = 32


class StyleNames:
    """The names of the styles, in the order of the network's embedding: a part of every checkpoint."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def state_dict(self) -> dict[str, Any]:
        """Return the names."""
        return {"names": list(self.names)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Accept the same names.

        Raises:
            ValueError: they are others, so that the network would take one style for another.

        """
        if tuple(state_dict["names"]) != self.names:
            raise ValueError(
                f"it was trained on the styles {', '.join(state_dict['names'])}; here are {', '.join(self.names)}"
            )


@dataclass(frozen=True)
class Translator:
    """Translates images between styles by inverting the flow with one and generating with the other."""

    codec: Standardized
    net: VelocityNet
    styles: tuple[str, ...]
    flow: Flow
    """Over ``net``, with the number of steps of inference."""
    short_side: int | None
    """What the shorter side of pictures was scaled to in training. If ``None``, nothing."""

    @property
    def device(self) -> torch.device:
        """Where network and codec are."""
        return self.codec.mean.device

    def index(self, style: str) -> int:
        """Return the position of a style by its name.

        Raises:
            DataError: there is no such style.

        """
        if style not in self.styles:
            raise DataError(
                f"There is no style {style!r}.{nearest(style, self.styles)} Known are: {', '.join(self.styles)}."
            )
        return self.styles.index(style)

    @torch.no_grad()
    def translate(self, images: Tensor, source: int, targets: Sequence[int]) -> list[Tensor]:
        """Return images in each of several styles.

        Args:
            images: (B, 3, H, W) in [0, 1], of any size.
            source: their style.
            targets: the styles that are wanted; ``source`` among them gives a reconstruction.

        Returns:
            For each target (B, 3, H, W) in [0, 1], on the CPU.

        """
        self.net.eval()
        height, width = images.shape[2:]
        latents = self.encode(images)
        noise = self.flow.invert(latents, self._all(latents, source))
        made = [self.codec.decode(self.flow.generate(noise, self._all(latents, target))) for target in targets]
        return [image[:, :, :height, :width].clamp(0, 1).cpu() for image in made]

    @torch.no_grad()
    def round_trip(self, images: Tensor, style: int) -> float:
        """Return the relative error of inverting and generating with the same style, in latents."""
        self.net.eval()
        latents = self.encode(images)
        styles = self._all(latents, style)
        return float((self.flow.translate(latents, styles, styles) - latents).norm() / latents.norm())

    @torch.no_grad()
    def likeliest_style(self, image: Tensor) -> int:
        """Return the style under which the flow predicts an image (3, H, W) best.

        The matching loss is compared between styles under the same noise and times (the diffusion classifier of
        Li et al., ICCV 2023).
        """
        self.net.eval()
        latents = self.encode(image[None]).expand(_GUESSES, -1, -1, -1)
        losses = []
        for style in range(len(self.styles)):
            with own_rng(0):
                losses.append(float(matching_loss(self.net, latents, self._all(latents, style))))
        return losses.index(min(losses))

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents of images (B, 3, H, W), padded to what the network takes."""
        return self.codec.encode(padded(images.to(self.device), self.codec.factor * GRID))

    def _all(self, latents: Tensor, style: int) -> Tensor:
        return torch.full((len(latents),), style, device=latents.device)
