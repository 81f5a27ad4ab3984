"""Distances of style and of content between latents or images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def patches(images: Tensor, side: int = 3) -> Tensor:
    """Return all squares of images (B, C, H, W) as rows (B * positions, C * side**2)."""
    return F.unfold(images, side).transpose(1, 2).flatten(0, 1)


def directions(count: int, dimensions: int, like: Tensor) -> Tensor:
    """Return random unit vectors as columns (dimensions, count); torch's generator of ``like.device`` draws them."""
    return F.normalize(torch.randn(dimensions, count, device=like.device), dim=0)


def sliced_wasserstein(one: Tensor, other: Tensor, along: Tensor) -> Tensor:
    """Return the sliced Wasserstein-1 distance of two clouds of points.

    On a line, optimal transport pairs points in order (Rabin et al. 2011; Bonneel et al. 2015). The larger cloud is
    reduced to as many quantiles as the smaller one has points.

    Args:
        one: (N, D) points.
        other: (M, D) points.
        along: (D, K) unit vectors.

    """
    count = min(len(one), len(other))
    lines = [(points @ along).sort(dim=0).values for points in (one, other)]
    quantiles = [line if len(line) == count else _quantiles(line, count) for line in lines]
    return (quantiles[0] - quantiles[1]).abs().mean()


def _quantiles(line: Tensor, count: int) -> Tensor:
    places = (torch.arange(count, device=line.device) + 0.5) * (len(line) / count)
    return line[places.long()]


def patch_distance(one: Tensor, other: Tensor, *, projections: int = 64) -> Tensor:
    """Return the sliced Wasserstein-1 distance of patches of images (B, C, H, W) and (B', C, H', W')."""
    clouds = patches(one), patches(other)
    return sliced_wasserstein(*clouds, directions(projections, clouds[0].shape[1], like=one))


def self_similarity(latents: Tensor) -> Tensor:
    """Return the cosine similarities (B, P, P) of each image's places.

    A place is two by two latents. The mean over the places is subtracted first, so that a colour cast is not content
    (self-similarity after Shechtman and Irani 2007; as a loss of style transfer Kolkin et al. 2019).
    """
    places = F.avg_pool2d(latents, 2).flatten(2)
    places = F.normalize(places - places.mean(2, keepdim=True), dim=1, eps=1e-3)
    return places.transpose(1, 2) @ places


def structure_distance(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean absolute difference of self-similarities.

    Images (B, C, H, W) are compared in pairs; the distance is from 0 to 2.
    """
    return (self_similarity(one) - self_similarity(other)).abs().mean()
