"""Random kernels fit the training windows and are saved."""

import pytest
import torch

from projects.tool_wear.kernels import GAIN, Kernels


def inside(signals: torch.Tensor) -> torch.Tensor:
    return ~signals[..., 0].isnan()


def test_features_of_the_training_windows_have_mean_zero_and_the_wanted_length() -> None:
    torch.manual_seed(0)
    signals = torch.randn(50, 40, 3)
    features = Kernels.drawn(30, signals)(signals, inside(signals))
    assert features.shape == (50, 2 * 30)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(60), atol=1e-5, rtol=0)
    assert float(features.square().sum(dim=1).mean().sqrt()) == pytest.approx(GAIN, rel=1e-3)


def test_features_are_the_maximum_and_the_share_of_positive_values() -> None:
    torch.manual_seed(0)
    signals = torch.randn(2, 16, 1)  # too short for a dilation of 2
    kernels = Kernels.drawn(1, signals)
    weight, bias = kernels.weight[0, 0, 0], kernels.bias[0, 0]
    framed = torch.nn.functional.pad(signals[0, :, 0], (4, 4))
    values = torch.stack([framed[start : start + 9] @ weight + bias for start in range(16)])
    expected = torch.stack([values.max(), (values > 0).float().mean()])
    torch.testing.assert_close(kernels.raw(signals, inside(signals))[0], expected)


@pytest.mark.parametrize(("steps", "dilations"), [(1, 1), (9, 1), (17, 2), (33, 3), (251, 5)])
def test_the_longest_kernel_spans_at_most_a_window(steps: int, dilations: int) -> None:
    kernels = Kernels.drawn(20, torch.randn(3, steps, 2))
    assert len(kernels.weight) == dilations
    assert torch.isfinite(kernels(torch.randn(1, 30, 2), torch.ones(1, 30, dtype=torch.bool))).all()


def test_every_kernel_sees_some_channels_and_some_see_not_all() -> None:
    torch.manual_seed(0)
    seen = (Kernels.drawn(40, torch.randn(3, 20, 5)).weight.abs().sum(dim=3) > 0).sum(dim=2)
    assert seen.min() >= 1
    assert seen.float().mean() < 5


def test_nothing_of_it_is_trained() -> None:
    assert list(Kernels.drawn(4, torch.randn(3, 20, 2)).parameters()) == []
