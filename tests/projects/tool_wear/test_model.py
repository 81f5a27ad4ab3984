"""The network sees normalised signals, and its state is complete."""

import numpy as np
import pytest
import torch
from torch import nn

from projects.tool_wear.kernels import Kernels
from projects.tool_wear.model import StackedLSTM, WearLSTM, class_weights, logits_of
from projects.tool_wear.scaler import Scaler
from tests.support.fake_cuda import OnCuda


def network(channels: int = 3, classes: int = 4, count: int = 0, **sizes: float) -> WearLSTM:
    torch.manual_seed(0)
    scaler = Scaler(torch.zeros(channels), torch.ones(channels))
    kernels = Kernels.drawn(count, torch.randn(5, 12, channels)) if count else None
    return WearLSTM(scaler, classes, hidden=8, kernels=kernels, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "classes", "steps"), [(1, 2, 5), (7, 3, 128), (3, 5, 1)])
def test_any_number_of_channels_classes_and_steps(channels: int, classes: int, steps: int) -> None:
    assert network(channels, classes)(torch.randn(6, steps, channels)).shape == (6, classes)


def test_the_scaler_is_part_of_the_state_so_loaded_weights_meet_the_right_normalisation() -> None:
    torch.manual_seed(1)
    signals = 5.0 + 3.0 * torch.randn(10, 20, 3)
    trained = WearLSTM(Scaler.fitted(signals.numpy()), 4, hidden=8).eval()
    loaded = network().eval()
    assert {"scaler.mean", "scaler.std"} <= set(trained.state_dict())
    loaded.load_state_dict(trained.state_dict())
    assert torch.equal(loaded(signals), trained(signals))


def test_both_the_whole_window_and_its_end_reach_the_head() -> None:
    """Two windows differ only by beginnings, or only by ends."""
    model = network().eval()
    window = torch.randn(1, 30, 3)
    begins, ends = window.clone(), window.clone()
    begins[:, :5] += 2.0
    ends[:, -1] += 2.0
    assert not torch.allclose(model(begins), model(window))
    assert not torch.allclose(model(ends), model(window))


def test_one_layer_trains_without_a_warning() -> None:
    network(layers=1, dropout=0.3)(torch.randn(2, 4, 3)).sum().backward()


def test_rare_classes_weigh_more_so_that_all_weigh_the_same() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    weights = class_weights(labels, 3)
    np.testing.assert_allclose(weights.numpy() * np.bincount(labels), [100 / 3] * 3, rtol=1e-6)


def test_a_class_without_windows_weighs_nothing() -> None:
    assert class_weights(np.array([0, 0, 2]), 3)[1] == 0.0


def test_logits_do_not_depend_on_how_they_are_batched_and_the_mode_is_put_back() -> None:
    model = network(dropout=0.5).train()
    signals = np.random.default_rng(0).normal(size=(10, 20, 3)).astype(np.float32)
    whole, in_pieces = logits_of(model, signals), logits_of(model, signals, batch_size=3)
    assert torch.allclose(whole, in_pieces, atol=1e-6)
    assert model.training
    assert not whole.requires_grad


@pytest.mark.parametrize("count", [0, 6])
def test_padding_changes_nothing_in_training_or_out_of_it(count: int) -> None:
    model = network(count=count, dropout=0.0)
    short, long = torch.randn(2, 9, 3), torch.randn(3, 14, 3)
    beside = torch.cat([torch.cat([short, torch.full((2, 5, 3), torch.nan)], dim=1), long])
    model.train()
    batch = model(beside)
    assert torch.isfinite(batch).all()
    more = torch.cat([beside, torch.full((5, 6, 3), torch.nan)], dim=1)
    torch.testing.assert_close(model(more), batch)
    model.eval()
    torch.testing.assert_close(model(beside), torch.cat([model(short), model(long)]))


def test_gradients_of_padded_windows_are_finite() -> None:
    model = network(count=6)
    signals = torch.randn(2, 9, 3)
    signals[0, 4:] = torch.nan
    model(signals).sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("count", [0, 6])
def test_a_network_is_made_again_from_its_weights_alone(count: int) -> None:
    model = network(count=count).eval()
    signals = torch.randn(4, 9, 3)
    assert torch.equal(WearLSTM.of(model.state_dict()).eval()(signals), model(signals))


def test_dropout_between_layers_comes_from_the_generator_that_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bool] = []
    monkeypatch.setattr(nn.LSTM, "forward", lambda *_: used.append(torch.backends.cudnn.enabled))
    here, there = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).as_subclass(OnCuda)
    dropping, other = StackedLSTM(3, 4, 2, dropout=0.1), StackedLSTM(3, 4, 2)
    dropping(there)
    assert used == [False]
    assert torch.backends.cudnn.enabled
    for lstm, inputs in ((dropping, here), (other, there), (dropping.eval(), there)):
        lstm(inputs)
    assert used[1:] == [True] * 3
