"""A flow between noise (time 0) and data (time 1).

Both directions are integrated on the same grid of times. Translation inverts a picture with its own style and generates
with another (dual diffusion implicit bridges, Su et al., ICLR 2023). Inversion requires that the velocity is that of a
flow, which :func:`matching_loss` trains (flow matching, Lipman et al., ICLR 2023; times as in Esser et al., ICML 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps latents (B, C, H, W), times (B,) and styles (B,), or weights of styles (B, S), to velocities (B, C, H, W)."""

Method = Literal["heun", "midpoint"]


def even_times(steps: int) -> tuple[float, ...]:
    """Return the times 0, 1 / steps … 1."""
    return tuple(index / steps for index in range(steps + 1))


def drawn_times(steps: int) -> tuple[float, ...]:
    """Return ``steps + 1`` random times from 0 to 1.

    Every inner time is drawn around its even position, with torch's global generator. A network trained on one coarse
    grid only fits the errors of that grid and fails on a finer one.
    """
    inner = ((torch.arange(1, steps) + torch.rand(max(steps - 1, 0)) - 0.5) / steps).tolist()
    return (0.0, *inner, 1.0)


@dataclass(frozen=True)
class Flow:
    """Integrates a velocity in both directions with a second-order method.

    Both methods evaluate the velocity twice per step. Both directions use the same times, so that inversion undoes
    generation up to an error of the order of the squared step length.
    """

    velocity: Velocity
    times: tuple[float, ...]
    """From 0 to 1, rising."""
    method: Method = "heun"
    temperature: float = 0.0
    """Strength of the noise added while generating, up to time 0.5. With 0, generation is deterministic."""

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

    def _step(self, latents: Tensor, style: Tensor, time: float, length: float) -> Tensor:
        def velocity(at: Tensor, when: float) -> Tensor:
            return self.velocity(at, at.new_full((at.shape[0],), when), style)

        slope = velocity(latents, time)
        if self.method == "midpoint":
            return latents + length * velocity(latents + length / 2 * slope, time + length / 2)
        return latents + length / 2 * (slope + velocity(latents + length * slope, time + length))


def matching_loss(velocity: Velocity, latents: Tensor, style: Tensor) -> Tensor:
    """Return the flow matching loss: the squared error of the velocity on straight lines from noise to data.

    Noise is standard normal; times are logistic-normal, so most of them lie in the middle.
    """
    noise = torch.randn_like(latents)
    time = torch.randn(len(latents), device=latents.device).sigmoid()
    share = time[:, None, None, None]
    predicted = velocity((1 - share) * noise + share * latents, time, style)
    return (predicted.float() - (latents - noise)).square().mean()
