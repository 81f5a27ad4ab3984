"""A flow between noise (time 0) and data (time 1), run in either direction on one and the same grid of times.

Translation inverts a picture with its own style and generates with another (dual diffusion implicit bridges,
Su et al., ICLR 2023). That this is meaningful rests on the velocity being that of a flow: see
:func:`matching_loss` (flow matching, Lipman et al., ICLR 2023; times as in Esser et al., ICML 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps latents (B, C, H, W), times (B,) and styles, (B,) or weights of them (B, S), to velocities (B, C, H, W)."""

Method = Literal["heun", "midpoint"]


def even_times(steps: int) -> tuple[float, ...]:
    """Return the times 0, 1 / steps … 1."""
    return tuple(index / steps for index in range(steps + 1))


def drawn_times(steps: int) -> tuple[float, ...]:
    """Return ``steps + 1`` times from 0 to 1, each of the inner ones drawn around its even place.

    Trained on one coarse grid only, a network learns what that grid does to it, and does something else on a finer
    one. Random numbers are torch's.
    """
    inner = ((torch.arange(1, steps) + torch.rand(max(steps - 1, 0)) - 0.5) / steps).tolist()
    return (0.0, *inner, 1.0)


@dataclass(frozen=True)
class Flow:
    """Integrates a velocity from time to time with a method of second order; forwards and backwards alike.

    Both methods ask for the velocity twice a step. Going back uses the times of going forth, so that the way back
    undoes the way there up to an error of the order of the squared length of a step.
    """

    velocity: Velocity
    times: tuple[float, ...]
    """From 0 to 1, rising."""
    method: Method = "heun"
    temperature: float = 0.0
    """Noise while generating, in the half that is nearer to noise; 0: the same picture every time."""

    def invert(self, latents: Tensor, style: Tensor) -> Tensor:
        """Return the noise (B, C, H, W) that data of the styles (B,) come from."""
        for later, earlier in pairwise(reversed(self.times)):
            latents = self._step(latents, style, later, earlier - later)
        return latents

    def generate(self, noise: Tensor, style: Tensor) -> Tensor:
        """Return the data (B, C, H, W) in the styles (B,) that come from noise."""
        latents = noise
        for earlier, later in pairwise(self.times):
            latents = self._step(latents, style, earlier, later - earlier)
            if self.temperature > 0 and later <= 0.5:
                latents = latents + self.temperature * (later - earlier) ** 0.5 * torch.randn_like(latents)
        return latents

    def translate(self, latents: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return data (B, C, H, W) of the styles ``source`` as they would be in the styles ``target``."""
        return self.generate(self.invert(latents, source), target)

    def _step(self, latents: Tensor, style: Tensor, time: float, length: float) -> Tensor:
        def velocity(at: Tensor, when: float) -> Tensor:
            return self.velocity(at, at.new_full((at.shape[0],), when), style)

        slope = velocity(latents, time)
        if self.method == "midpoint":
            return latents + length * velocity(latents + length / 2 * slope, time + length / 2)
        return latents + length / 2 * (slope + velocity(latents + length * slope, time + length))


def matching_loss(velocity: Velocity, latents: Tensor, style: Tensor) -> Tensor:
    """Return the flow matching loss: the squared error of the velocity on straight ways from noise to data.

    Noise is standard normal; times are logistic-normal, most of them in the middle, where the way is decided.
    """
    noise = torch.randn_like(latents)
    time = torch.randn(len(latents), device=latents.device).sigmoid()
    share = time[:, None, None, None]
    predicted = velocity((1 - share) * noise + share * latents, time, style)
    return (predicted.float() - (latents - noise)).square().mean()
