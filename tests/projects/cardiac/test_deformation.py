import warnings

import pytest
import torch
from monai.losses.deform import DiffusionLoss
from monai.networks.blocks.warp import Warp

from projects.cardiac.deformation import DeformationNet, RefinedFlowNet, inverse, jacobian_determinant, roughness, warp
from projects.cardiac.optical_flow import optical_flow


def smooth_field(size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2, 2, 5, 5, generator=generator) * 1.5
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)


@pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")
def test_pictures_are_warped_as_the_network_warps_them() -> None:
    pictures = torch.rand(2, 3, 32, 32)
    assert torch.allclose(warp(pictures, smooth_field()), Warp()(pictures, smooth_field()), atol=1e-5)


def test_a_displacement_says_where_to_look() -> None:
    picture = torch.zeros(1, 1, 8, 8)
    picture[0, 0, 5, 2] = 1
    field = torch.zeros(1, 2, 8, 8)
    field[:, 0], field[:, 1] = 3, -1  # what is seen at (2, 3) lies at (5, 2)
    assert torch.equal(warp(picture, field)[0, 0].nonzero(), torch.tensor([[2, 3]]))


def test_the_inverse_undoes_a_displacement() -> None:
    field = smooth_field(64)
    there_and_back = inverse(field) + warp(field, inverse(field))
    assert there_and_back[..., 12:-12, 12:-12].abs().max() < 0.02
    assert field.abs().max() > 1


def test_the_determinant_of_an_affine_map_is_that_of_its_matrix() -> None:
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    field = torch.stack([0.5 * rows + 0.2 * columns, -0.1 * rows - 0.3 * columns])[None]
    assert torch.allclose(jacobian_determinant(field), torch.full((1, 9, 9), 1.5 * 0.7 + 0.2 * 0.1))


def test_a_map_that_turns_over_has_a_negative_determinant() -> None:
    columns = torch.arange(9.0).expand(9, 9)
    field = torch.stack([torch.zeros(9, 9), -2 * columns])[None]
    assert (jacobian_determinant(field) < 0).all()


def test_roughness_is_the_diffusion_loss_of_monai() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch deprecates how MONAI indexes
        expected = DiffusionLoss()(smooth_field())
    assert roughness(smooth_field()) == pytest.approx(float(expected), rel=1e-5)


def test_the_deformation_found_is_smooth_and_does_not_fold() -> None:
    torch.manual_seed(0)
    field = DeformationNet("motion").field(torch.rand(3, 1, 48, 48), torch.rand(3, 1, 48, 48), batch=2)
    assert field.shape == (3, 2, 48, 48)
    assert (jacobian_determinant(field) > 0).all()


def test_an_untrained_refinement_leaves_the_optical_flow_as_it_is() -> None:
    torch.manual_seed(0)
    moving = torch.nn.functional.avg_pool2d(torch.rand(2, 1, 56, 56), 9, 1)
    fixed = moving.roll((1, -2), (2, 3))
    net, flow = RefinedFlowNet(), optical_flow(moving, fixed)
    assert net.pairs(moving, fixed).shape == (2, 4, 48, 48)
    torch.testing.assert_close(net.field(moving, fixed), flow)


def test_a_refinement_composes_the_flow_with_what_is_left() -> None:
    """The network points one row down; the flow continues there."""
    net = RefinedFlowNet()
    shift, flow = torch.zeros(1, 2, 48, 48), torch.zeros(1, 2, 48, 48)
    shift[:, 0] = 1.0
    flow[:, 0] = 0.1 * torch.arange(48.0)[:, None]
    net.purposes["refined_motion"] = _Shift(shift)
    moving = torch.rand(1, 1, 48, 48)
    found = net(torch.cat([moving, moving, flow], dim=1))
    expected = 1.0 + 0.1 * (torch.arange(47.0) + 1)
    torch.testing.assert_close(found.field[0, 0, :47], expected[:, None].expand(47, 48))
    torch.testing.assert_close(found.warped, warp(moving, found.field))


class _Shift(torch.nn.Module):
    def __init__(self, field: torch.Tensor) -> None:
        super().__init__()
        self.found = field

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return moving, self.found


def test_asking_for_a_field_leaves_the_mode_as_it_was() -> None:
    net = DeformationNet("motion")
    for training in (True, False):
        net.train(training)
        net.field(torch.rand(1, 1, 48, 48), torch.rand(1, 1, 48, 48))
        assert net.training is training


def test_weights_for_another_purpose_do_not_fit() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        DeformationNet("motion").load_state_dict(DeformationNet("registration").state_dict())
