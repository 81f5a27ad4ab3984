"""The scaler is fitted once and saved with the weights."""

import numpy as np
import torch

from projects.tool_wear.scaler import Scaler


def test_each_channel_of_the_fitted_windows_gets_mean_zero_and_spread_one(rng: np.random.Generator) -> None:
    signals = rng.normal([3.0, -200.0, 1e-3], [2.0, 50.0, 1e-4], size=(40, 30, 3)).astype(np.float32)
    scaled = Scaler.fitted(signals)(torch.from_numpy(signals)).numpy()
    np.testing.assert_allclose(scaled.mean(axis=(0, 1)), 0.0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(axis=(0, 1)), 1.0, atol=1e-4)


def test_a_constant_channel_is_centred_and_never_blown_up(rng: np.random.Generator) -> None:
    signals = rng.normal(size=(10, 20, 2)).astype(np.float32)
    signals[..., 1] = 0.1
    scaled = Scaler.fitted(signals)(torch.from_numpy(signals))
    assert torch.isfinite(scaled).all()
    assert scaled[..., 1].abs().max() < 1e-6


def test_large_offsets_lose_no_precision(rng: np.random.Generator) -> None:
    """A single-precision mean of large values would be wrong. Of a million values near 10,000 it is off by more than
    their spread.
    """
    signals = (1e4 + rng.normal(0.0, 0.5, size=(1000, 1000, 1))).astype(np.float32)
    assert abs(float(Scaler.fitted(signals).std[0]) - 0.5) < 0.01


def test_the_state_holds_all_that_another_scaler_needs(rng: np.random.Generator) -> None:
    signals = rng.normal(2.0, 3.0, size=(10, 20, 4)).astype(np.float32)
    fitted = Scaler.fitted(signals)
    other = Scaler(torch.zeros(4), torch.ones(4))
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other(torch.from_numpy(signals)), fitted(torch.from_numpy(signals)))


def test_nothing_in_it_is_trained() -> None:
    assert list(Scaler(torch.zeros(2), torch.ones(2)).parameters()) == []
