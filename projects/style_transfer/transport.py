"""Optimal transport between Gaussians: affine maps that give points a wanted mean and covariance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

_ITERATIONS = 100


def gaussian_map(source: Tensor, target: Tensor) -> Tensor:
    """Return the optimal linear map (D, D) from one covariance to another.

    It is symmetric and positive definite. Of all linear maps from the covariance ``source`` to ``target`` it moves points
    of mean zero least (Olkin and Pukelsheim 1982; for colours Pitié and Kokaram 2007).

    Args:
        source: positive definite, (D, D) float64.
        target: likewise.

    """
    root, inverse = _power(source, 0.5), _power(source, -0.5)
    return inverse @ _power(root @ target @ root, 0.5) @ inverse


def barycentre(covariances: Tensor) -> Tensor:
    """Return the Wasserstein barycentre (D, D) of covariances (N, D, D).

    It minimises the mean squared Wasserstein distance to them: the fixed point of Álvarez-Esteban et al. (2016), reached to
    machine precision if no covariance has small eigenvalues.
    """
    centre = covariances.mean(0)
    for _ in range(_ITERATIONS):
        root, inverse = _power(centre, 0.5), _power(centre, -0.5)
        mean = torch.stack([_power(root @ one @ root, 0.5) for one in covariances]).mean(0)
        centre = inverse @ mean @ mean @ inverse
    return centre


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Return a power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    power: Tensor = (vectors * values.clamp_min(1e-12) ** exponent) @ vectors.mT
    return power


def points(images: Tensor) -> Tensor:
    """Return the pixels of images (B, C, H, W) as rows (B * H * W, C)."""
    return images.movedim(1, -1).flatten(0, -2)


@dataclass(frozen=True)
class StyleMaps:
    """Affine maps between S styles' latents and their barycentre.

    The map from one style over the barycentre to another is the optimal map between Gaussian latents for two styles, and
    near to it for more (Lu et al., ICCV 2019, transport features of pictures likewise). Each style needs one matrix,
    whatever the number of pairs, and the inverse of a map undoes it exactly.
    """

    means: Tensor
    """Mean of the latents of each style, (S, C)."""
    maps: Tensor
    """Matrix of each style, (S, C, C), symmetric and positive definite."""
    centre: Tensor
    """Mean of the barycentre, (C,)."""
    covariance: Tensor
    """Covariance of the barycentre, (C, C)."""

    @classmethod
    def fit(cls, latents: Sequence[Tensor], ridge: float) -> Self:
        """Fit the maps to latents (B, C, H, W) of each style.

        ``ridge`` is added to every variance, so that channels that a style does not use, such as the colours of grey pictures,
        are not amplified to the strength that they have in other styles.
        """
        rows = [points(one).double() for one in latents]
        means = torch.stack([one.mean(0) for one in rows])
        covariances = torch.stack([torch.cov(one.T) for one in rows])
        covariances = covariances + ridge * torch.eye(
            means.shape[1], dtype=covariances.dtype, device=covariances.device
        )
        covariance = barycentre(covariances)
        maps = torch.stack([gaussian_map(one, covariance) for one in covariances])
        return cls(means.float(), maps.float(), means.mean(0).float(), covariance.float())

    def to_barycentre(self, latents: Tensor, style: Tensor) -> Tensor:
        """Map latents (B, C, H, W) of styles (B,) to the barycentre."""
        maps, means, centre = (one.to(latents.device) for one in (self.maps, self.means, self.centre))
        centred = latents - means[style][:, :, None, None]
        return torch.einsum("bchw,bcd->bdhw", centred, maps[style]) + centre[:, None, None]

    def from_barycentre(self, latents: Tensor, style: Tensor) -> Tensor:
        """Map latents (B, C, H, W) at the barycentre to styles (B,)."""
        maps, means, centre = (one.to(latents.device) for one in (self.maps, self.means, self.centre))
        centred = latents - centre[:, None, None]
        return torch.einsum("bchw,bcd->bdhw", centred, torch.linalg.inv(maps)[style]) + means[style][:, :, None, None]

    def scores(self, latents: Tensor) -> Tensor:
        """Return log-likelihoods (B, styles) of latents (B, C, H, W) under each style's Gaussian (up to a constant)."""
        inverse = torch.linalg.inv(self.covariance).to(latents.device)
        distances = []
        for style in range(len(self.means)):
            styles = latents.new_full((latents.shape[0],), style, dtype=torch.int64)
            moved = self.to_barycentre(latents, styles) - self.centre.to(latents.device)[:, None, None]
            distances.append(torch.einsum("bchw,cd,bdhw->bhw", moved, inverse, moved).mean((1, 2)))
        return torch.logdet(self.maps).to(latents.device) - torch.stack(distances, dim=1) / 2

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {"means": self.means, "maps": self.maps, "centre": self.centre, "covariance": self.covariance}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Return the maps from a :meth:`state_dict`."""
        return cls(state["means"], state["maps"], state["centre"], state["covariance"])
