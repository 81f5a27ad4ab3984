"""Maps from one style to another: by optimal transport, or through noise."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.style_transfer.flow import Flow
from projects.style_transfer.transport import StyleMaps


class Route(Protocol):
    """An invertible map from one style to another."""

    def translate(self, latents: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return latents (B, C, H, W) translated from styles ``source`` (B,) to ``target`` (B,)."""
        ...

    def round_trip(self, latents: Tensor, source: Tensor, target: Tensor) -> float:
        """Return the relative error after the way there and back."""
        ...


@dataclass(frozen=True)
class TransportRoute:
    """A flow at the styles' barycentre, between two optimal transports.

    The first leads from the source to the barycentre, the second from there to the target. The untrained flow changes
    nothing. Its condition is the embedding of the target minus that of the source.
    """

    flow: Flow
    maps: StyleMaps

    def translate(self, latents: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return latents (B, C, H, W) translated from styles ``source`` (B,) to ``target`` (B,)."""
        start = self.maps.to_barycentre(latents, source)
        made = self.flow.generate(start, self._between(source, target))
        made = torch.where((source == target)[:, None, None, None], start, made)
        return self.maps.from_barycentre(made, target)

    def round_trip(self, latents: Tensor, source: Tensor, target: Tensor) -> float:
        """Return the relative error after the way there and back."""
        start, between = self.maps.to_barycentre(latents, source), self._between(source, target)
        back = self.flow.invert(self.flow.generate(start, between), between)
        return float((back - start).norm() / start.norm())

    def _between(self, source: Tensor, target: Tensor) -> Tensor:
        styles = len(self.maps.means)
        return (F.one_hot(target, styles) - F.one_hot(source, styles)).float()


@dataclass(frozen=True)
class NoiseRoute:
    """Inverts latents to noise, and generates the target style; see :class:`Flow`."""

    flow: Flow

    def translate(self, latents: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return latents (B, C, H, W) translated from styles ``source`` (B,) to ``target`` (B,)."""
        with torch.no_grad():  # flow matching alone trains the inversion; the energy trains the generation
            noise = self.flow.invert(latents, source)
        return self.flow.generate(noise, target)

    def round_trip(self, latents: Tensor, source: Tensor, target: Tensor) -> float:
        """Return the relative error of inverting to noise and back."""
        return float((self.translate(latents, source, source) - latents).norm() / latents.norm())
