"""A network for the smooth, invertible deformation between two pictures.

Displacements are those of VoxelMorph (Balakrishnan et al., IEEE TMI 2019): (N, 2, H, W) in pixels, rows first, backward.
The warped picture at x is the moving one at ``x + field(x)``.
"""

import warnings
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from monai.networks.nets.voxelmorph import VoxelMorph, VoxelMorphUNet
from torch import Tensor, nn

from projects.cardiac.optical_flow import optical_flow

_SQUARINGS = 5
"""Squarings that integrate the velocity field to displacements."""


class Deformation(NamedTuple):
    """The output of the network: the warped moving picture (N, 1, H, W) and the displacements (N, 2, H, W)."""

    warped: Tensor
    field: Tensor


class DeformationNet(nn.Module):
    """Maps pairs (N, 2, H, W), moving before fixed, to a :class:`Deformation`; H and W are multiples of sixteen.

    A stationary velocity field from a U-Net, integrated by five squarings (Dalca et al., MICCAI 2018), 0.1 million weights.

    Args:
        purpose: part of the names of the weights, so that weights for another purpose are refused.
    """

    def __init__(self, purpose: str) -> None:
        super().__init__()
        backbone = VoxelMorphUNet(
            spatial_dims=2,
            in_channels=2,
            unet_out_channels=32,
            channels=(16, 32, 32, 32, 32, 32),
            final_conv_channels=(16, 16),
        )
        with warnings.catch_warnings():  # MONAI warns each time that it uses grid_sample
            warnings.filterwarnings("ignore", "monai.networks.blocks.Warp", UserWarning)
            net = VoxelMorph(backbone, integration_steps=_SQUARINGS, half_res=False, spatial_dims=2)
        self.purposes = nn.ModuleDict({purpose: net})
        self.purpose = purpose

    def forward(self, pairs: Tensor) -> Deformation:
        """Return the deformation of the first channel towards the second."""
        return Deformation(*self.purposes[self.purpose](pairs[:, :1], pairs[:, 1:]))

    def pairs(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Return the input of :meth:`forward`, (N, channels, H, W), for pictures (N, 1, H, W)."""
        return torch.cat([moving, fixed], dim=1)

    @torch.no_grad()
    def field(self, moving: Tensor, fixed: Tensor, batch: int = 32) -> Tensor:
        """Return the displacements (N, 2, H, W) from pictures (N, 1, H, W), on the CPU; the mode stays as it is."""
        device, training = next(self.parameters()).device, self.training
        self.eval()
        pairs = self.pairs(moving, fixed)
        fields = [cast(Deformation, self(piece.to(device))).field.cpu() for piece in torch.split(pairs, batch)]
        self.train(training)
        return torch.cat(fields)


class RefinedFlowNet(DeformationNet):
    """Refines the optical flow between two pictures.

    The flow warps the moving picture, the network finds the residual displacement, and both are composed. The untrained network
    returns the flow itself, because its last layer begins with zeros.
    """

    def __init__(self) -> None:
        super().__init__("refined_motion")
        last = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)][-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def pairs(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Return pictures (N, 1, H, W) with the optical flow between them, (N, 4, H, W)."""
        return torch.cat([moving, fixed, optical_flow(moving, fixed)], dim=1)

    def forward(self, pairs: Tensor) -> Deformation:
        """Return the deformation of the first channel towards the second; the others are the flow from the first."""
        moving, fixed, flow = torch.split(pairs, [1, 1, 2], dim=1)
        residual = super().forward(torch.cat([warp(moving, flow), fixed], dim=1)).field
        field = residual + warp(flow, residual)
        return Deformation(warp(moving, field), field)


class DisplacementField(nn.Module):
    """Maps pairs (N, 2, H, W), moving before fixed, to displacements (N, 2, H, W) in pixels.

    For a :class:`RefinedFlowNet` the input is (N, 4, H, W), with the optical flow. It integrates the velocities like MONAI's
    network, with operations that ``torch.export`` supports for any N.
    """

    def __init__(self, net: DeformationNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the displacements."""
        if not isinstance(self.net, RefinedFlowNet):
            return self._integrated(pairs)
        moving, fixed, flow = torch.split(pairs, [1, 1, 2], dim=1)
        residual = self._integrated(torch.cat([warp(moving, flow), fixed], dim=1))
        return residual + warp(flow, residual)

    def _integrated(self, pairs: Tensor) -> Tensor:
        velocity: Tensor = cast(VoxelMorph, self.net.purposes[self.net.purpose]).backbone(pairs)
        field: Tensor = velocity / float(2**_SQUARINGS)
        for _ in range(_SQUARINGS):
            field = field + warp(field, field, "zeros")
        return field


def warp(pictures: Tensor, field: Tensor, beyond: Literal["border", "zeros"] = "border") -> Tensor:
    """Sample pictures (N, C, H, W) linearly at ``x + field(x)``; ``beyond`` the border pixels repeat or are 0."""
    height, width = pictures.shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=field.device), torch.arange(width, device=field.device), indexing="ij"
    )
    points = torch.stack(
        [(columns + field[:, 1]) * 2 / (width - 1) - 1, (rows + field[:, 0]) * 2 / (height - 1) - 1], dim=-1
    )
    return F.grid_sample(pictures.to(field.dtype), points, "bilinear", beyond, align_corners=True)


def warp_masks(masks: Tensor, field: Tensor) -> Tensor:
    """Return masks (N, H, W) bool warped by displacements (N, 2, H, W)."""
    return warp(masks[:, None].float(), field)[:, 0] > 0.5


def inverse(field: Tensor, iterations: int = 20) -> Tensor:
    """Return the inverse displacements (N, 2, H, W), by the fixed point of ``w(y) = -u(y + w(y))``.

    It converges where neighbouring displacements differ by less than their distance (Chen et al., Medical Physics 2008).
    """
    undone = -field
    for _ in range(iterations):
        undone = -warp(field, undone)
    return undone


def jacobian_determinant(field: Tensor) -> Tensor:
    """Return the Jacobian determinant (N, H, W) of ``x + field(x)``, by central differences.

    It is 0 or less where the deformation folds.
    """
    down = torch.gradient(field, dim=2)[0]
    across = torch.gradient(field, dim=3)[0]
    return (1 + down[:, 0]) * (1 + across[:, 1]) - across[:, 0] * down[:, 1]


def roughness(field: Tensor) -> Tensor:
    """Diffusion energy of displacements (N, 2, H, W): the mean squared gradient over pixels and components.

    It equals MONAI's DiffusionLoss, which uses indexing that PyTorch has deprecated.
    """
    down = (field[:, :, 2:, 1:-1] - field[:, :, :-2, 1:-1]) / 2
    across = (field[:, :, 1:-1, 2:] - field[:, :, 1:-1, :-2]) / 2
    return (down.square() + across.square()).mean()
