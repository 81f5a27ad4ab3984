"""Training windows are jittered as promised, and a recipe is read off whatever has its names."""

import pytest
import torch

from mltrain.rng import own_rng
from projects.tool_wear.learner import Learner, Recipe, TrainingWindows
from projects.tool_wear.project import Config
from projects.tool_wear.windows import Windows

RECIPE = Recipe.of(Config(hidden=8, batch_size=16, lr=2e-2))


def test_jitter_changes_gains_by_the_wanted_spread_and_nothing_else(small: Windows) -> None:
    torch.manual_seed(0)
    jittered, plain = TrainingWindows(small, 0.1), TrainingWindows(small, 0.0)
    chosen = list(range(len(small)))
    ratios = torch.stack([j[0] for j in jittered.__getitems__(chosen)]) / torch.stack(
        [p[0] for p in plain.__getitems__(chosen)]
    )
    # One gain for a whole channel of a window ...
    assert torch.allclose(ratios.amax(dim=1), ratios.amin(dim=1), rtol=1e-4)
    # ... of the wanted spread ...
    assert float(ratios[:, 0].std()) == pytest.approx(0.1, rel=0.1)
    # ... and labels and signals are as they were.
    assert [int(label) for _, label in plain.__getitems__(chosen)] == small.labels.tolist()
    assert torch.equal(plain[5][0], torch.from_numpy(small.signals[5]))


def test_the_same_random_numbers_give_the_same_batch(small: Windows) -> None:
    windows = TrainingWindows(small, 0.1)
    batches = []
    for seed in (3, 3, 4):
        with own_rng(seed):
            batches.append(torch.stack([signals for signals, _ in windows.__getitems__([4, 5, 6])]))
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_a_recipe_is_spelled_by_the_configuration() -> None:
    assert Recipe.of(Config(lr=0.5, hidden=3, balanced=False)).lr == 0.5
    assert RECIPE.hidden == 8


def test_the_scaler_knows_the_training_windows_and_no_others(small: Windows) -> None:
    train = small.of(["c1"])
    model = Learner.on(train, RECIPE).model
    expected = torch.from_numpy(train.signals.mean(axis=(0, 1), dtype="float64")).float()
    assert torch.equal(model.scaler.mean, expected)


def test_a_step_lowers_the_loss_of_a_batch_that_is_seen_again(small: Windows) -> None:
    torch.manual_seed(0)
    learner = Learner.on(small, RECIPE)
    batch = next(iter(learner.loader))
    losses = [float(learner.step(batch)["loss"]) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
