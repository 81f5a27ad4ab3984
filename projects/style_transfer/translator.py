"""A trained flow and codec, for pictures of any size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mltrain.errors import DataError, nearest
from mltrain.rng import own_rng
from projects.style_transfer.codec import Standardized
from projects.style_transfer.flow import Flow, matching_loss
from projects.style_transfer.pictures import BRIGHTNESS, padded
from projects.style_transfer.routes import NoiseRoute, Route, TransportRoute
from projects.style_transfer.transport import StyleMaps
from projects.style_transfer.velocity import GRID, VelocityNet

_GUESSES = 32


class KnownStyles:
    """The names and maps of the styles; part of every checkpoint.

    Args:
        names: names of the styles, in the order of the network's embedding.
        maps: maps between the latents of each style and the barycentre of all. If ``None``, the flow goes through noise.

    """

    def __init__(self, names: Sequence[str], maps: StyleMaps | None = None) -> None:
        self.names = tuple(names)
        self.maps = maps

    def state_dict(self) -> dict[str, Any]:
        """Return the names, and the maps if there are any."""
        return {"names": list(self.names)} | ({} if self.maps is None else {"maps": self.maps.state_dict()})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load maps (or their absence) from a state with the same names.

        Raises:
            ValueError: the names differ, so the network would confuse the styles.

        """
        if tuple(state_dict["names"]) != self.names:
            raise ValueError(
                f"it was trained on the styles {', '.join(state_dict['names'])}; here are {', '.join(self.names)}"
            )
        self.maps = StyleMaps.of(state_dict["maps"]) if "maps" in state_dict else None

    def route(self, flow: Flow) -> Route:
        """Return the route between styles: by their maps if there are any, else through noise."""
        return NoiseRoute(flow) if self.maps is None else TransportRoute(flow, self.maps)


@dataclass(frozen=True)
class Translator:
    """Translates images between styles along a flow."""

    codec: Standardized
    net: VelocityNet
    known: KnownStyles
    flow: Flow
    """A flow over ``net`` with the number of steps at inference."""
    short_side: int | None
    """Shorter side of the pictures in training, in pixels. If ``None``, they were not scaled."""

    @property
    def styles(self) -> tuple[str, ...]:
        """The names of the styles."""
        return self.known.names

    @property
    def device(self) -> torch.device:
        """The device of network and codec."""
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
        """Translate images into several styles.

        Args:
            images: (B, 3, H, W) in [0, 1], of any size.
            source: index of their style.
            targets: indices of the target styles; ``source`` among them gives a reconstruction.

        Returns:
            Images (B, 3, H, W) in [0, 1] for each target, on the CPU.

        """
        self.net.eval()
        made = self.decoded(images, self.encode(images), self._all(images, source), targets)
        return [image.cpu() for image in made]

    def decoded(self, images: Tensor, latents: Tensor, source: Tensor, targets: Sequence[int]) -> list[Tensor]:
        """Return images (B, 3, H, W) of latents in each target style. ``source`` (B,) has the present styles."""
        height, width = images.shape[2:]
        route = self.known.route(self.flow)
        detail = 0.0 if self.known.maps is None else self.lost_brightness(images, latents)
        made = [
            self.codec.decode(route.translate(latents, source, torch.full_like(source, target))) + detail
            for target in targets
        ]
        return [image[..., :height, :width].clamp(0, 1) for image in made]

    @torch.no_grad()
    def round_trip(self, images: Tensor, source: int, target: int) -> float:
        """Return the latents' relative error after translating there and back."""
        self.net.eval()
        route = self.known.route(self.flow)
        return route.round_trip(self.encode(images), self._all(images, source), self._all(images, target))

    @torch.no_grad()
    def likeliest_style(self, image: Tensor) -> int:
        """Return the most likely style of an image (3, H, W).

        With maps it is the style whose Gaussian gives the latents the largest likelihood. Without maps it is the one with the
        smallest matching loss, under the same noise and times for all (the diffusion classifier of Li et al., ICCV 2023).
        """
        self.net.eval()
        if self.known.maps is not None:
            return int(self.known.maps.scores(self.encode(image[None])).argmax())
        latents = self.encode(image[None]).expand(_GUESSES, -1, -1, -1)
        losses = []
        for style in range(len(self.styles)):
            with own_rng(0):
                losses.append(float(matching_loss(self.net, latents, self._all(latents, style))))
        return losses.index(min(losses))

    def encode(self, images: Tensor) -> Tensor:
        """Return latents of images (B, 3, H, W), padded for the network."""
        return self.codec.encode(padded(images.to(self.device), self.codec.factor * GRID))

    def lost_brightness(self, images: Tensor, latents: Tensor) -> Tensor:
        """Return the brightness (B, 1, H, W) that the codec does not restore; it is content, and added to the output."""
        lost = padded(images.to(self.device), self.codec.factor * GRID) - self.codec.decode(latents)
        return torch.einsum("bchw,c->bhw", lost, lost.new_tensor(BRIGHTNESS))[:, None]

    def _all(self, images: Tensor, style: int) -> Tensor:
        return torch.full((len(images),), style, device=self.device)


class EveryStyle(nn.Module):
    """Translates images (N, 3, H, W) in [0, 1] into all S styles: (N, S, 3, H, W).

    It assumes the most likely style of each image, and needs :class:`StyleMaps`.
    """

    def __init__(self, translator: Translator) -> None:
        super().__init__()
        self.codec, self.net = translator.codec, translator.net
        self._translator = translator

    def forward(self, images: Tensor) -> Tensor:
        """Return the translated images."""
        translator, maps = self._translator, self._translator.known.maps
        assert maps is not None
        latents = translator.encode(images)
        made = translator.decoded(images, latents, maps.scores(latents).argmax(1), range(len(translator.styles)))
        return torch.stack(made, dim=1)
