"""The network's quantiles are ordered, trained, and loaded with intervals."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_pinball_loss

from mltrain.errors import StateMismatch
from mltrain.rng import seed_everything
from projects.tool_wear.learner import Recipe, WearLearner
from projects.tool_wear.project import Config
from projects.tool_wear.regressor import MedianError, PinballLoss, WearRegressor
from projects.tool_wear.windows import Windows


@pytest.fixture
def learner(small: Windows) -> WearLearner:
    seed_everything(0)
    recipe = Recipe.of(Config(hidden=8, layers=1, kernels=16, dropout=0.0, lr=1e-2, batch_size=32))
    return WearLearner.on(small.of(["c1", "c4"]), recipe, 0.8)


def test_quantiles_never_cross(learner: WearLearner) -> None:
    with torch.no_grad():
        quantiles = learner.model(torch.randn(200, 32, 7) * 100)
    assert quantiles.shape == (200, 3)
    assert (quantiles.diff(dim=1) >= 0).all()


def test_an_untrained_network_estimates_about_the_mean_wear_of_the_training_windows(
    learner: WearLearner, small: Windows
) -> None:
    known = small.of(["c1", "c4"])
    with torch.no_grad():
        median = learner.model(torch.from_numpy(known.signals))[:, 1]
    assert abs(float(median.mean()) - known.wear.mean()) < known.wear.std()


def test_the_loss_is_the_mean_quantile_loss_in_the_unit_of_the_wear() -> None:
    rng = np.random.default_rng(0)
    quantiles, wear = rng.normal(100.0, 20.0, (50, 3)), rng.normal(100.0, 20.0, 50)
    loss = PinballLoss.around(0.8, 25.0)
    assert loss.levels == pytest.approx((0.1, 0.5, 0.9))
    expected = np.mean([mean_pinball_loss(wear, quantiles[:, i], alpha=loss.levels[i]) for i in range(3)]) / 25.0
    assert float(loss(torch.from_numpy(quantiles), torch.from_numpy(wear))) == pytest.approx(expected, rel=1e-5)


def test_training_brings_the_median_nearer_to_the_wear(learner: WearLearner, small: Windows) -> None:
    val = small.of(["c5"])

    def error() -> float:
        learner.model.eval()
        with torch.no_grad():
            median = learner.model(torch.from_numpy(val.signals))[:, 1].numpy()
        return float(np.abs(median - val.wear).mean())

    before = error()
    for _ in range(12):
        for batch in learner.loader:
            learner.step(batch)
    assert error() < 0.7 * before


def test_the_error_of_the_median_is_accumulated() -> None:
    metric = MedianError()
    metric.update(torch.tensor([[0.0, 10.0, 20.0]]), torch.tensor([13.0]))
    metric.update(torch.tensor([[0.0, 10.0, 20.0]]), torch.tensor([9.0]))
    assert float(metric.compute()) == pytest.approx(2.0)


def test_a_network_is_read_back_with_its_unit_and_its_margin(learner: WearLearner) -> None:
    learner.model.margin.fill_(7.5)
    again = WearRegressor.of(learner.model.state_dict()).eval()
    signals = torch.randn(3, 32, 7)
    learner.model.eval()
    with torch.no_grad():
        assert torch.equal(again(signals), learner.model(signals))
    assert float(again.margin) == 7.5


def test_weights_of_a_classifier_are_no_regressor(learner: WearLearner) -> None:
    with pytest.raises(StateMismatch, match="margin"):
        WearRegressor.of(learner.model.network.state_dict())
