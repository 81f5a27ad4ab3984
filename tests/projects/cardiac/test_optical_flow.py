"""Classical registration finds a signed shift and computes it once."""

import numpy as np
import pytest
import torch

from projects.cardiac import optical_flow as module
from projects.cardiac.optical_flow import optical_flow


def pictures() -> torch.Tensor:
    smooth = torch.nn.functional.avg_pool2d(torch.rand(2, 1, 56, 56, generator=torch.Generator().manual_seed(0)), 9, 1)
    return (smooth - smooth.mean()) / smooth.std()


def test_a_shift_is_found_backward_and_rows_first() -> None:
    moving = pictures()
    field = optical_flow(moving, moving.roll((-2, 1), (2, 3)))[:, :, 8:40, 8:40]
    assert field.dtype == torch.float32
    assert float(field[:, 0].median()) == pytest.approx(2.0, abs=0.2)
    assert float(field[:, 1].median()) == pytest.approx(-1.0, abs=0.2)


def test_a_pair_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
        calls.append(fixed.shape)
        return np.zeros((2, *fixed.shape))

    monkeypatch.setattr(module, "optical_flow_tvl1", counted)
    moving = torch.rand(2, 1, 16, 20)
    first = optical_flow(moving, moving.flip(0))
    assert torch.equal(optical_flow(moving.clone(), moving.flip(0)), first)
    assert calls == [(16, 20)] * 2
