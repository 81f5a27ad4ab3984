"""Training windows are jittered; recipes are read from attributes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mltrain.rng import own_rng
from projects.tool_wear import ToolWearClassifier
from projects.tool_wear.learner import Learner, Recipe, TrainingWindows, epoch_plan
from projects.tool_wear.project import Config
from projects.tool_wear.windows import Windows

from .waves import waves

RECIPE = Recipe.of(Config(hidden=8, batch_size=16, lr=2e-2))


def test_jitter_changes_gains_by_the_wanted_spread_and_nothing_else(small: Windows) -> None:
    torch.manual_seed(0)
    jittered, plain = TrainingWindows(small, small.labels, 0.1), TrainingWindows(small, small.labels, 0.0)
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
    windows = TrainingWindows(small, small.labels, 0.1)
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


@pytest.mark.parametrize(
    ("windows", "batch_size", "least", "plan"),
    [
        (1260, 64, 20, (64, 1)),  # enough windows: as they are wanted
        (40, 64, 1, (64, 1)),
        (270, 64, 20, (13, 1)),
        (40, 64, 20, (8, 4)),
        (40, 4, 20, (4, 2)),  # a batch that is wanted smaller stays so
        (3, 64, 20, (8, 51)),
    ],
)
def test_an_epoch_has_at_least_the_steps_that_are_wanted(
    windows: int, batch_size: int, least: int, plan: tuple[int, int]
) -> None:
    assert epoch_plan(windows, batch_size, least) == plan


def test_an_epoch_of_several_passes_shows_every_window_equally_often(small: Windows) -> None:
    few = small.where(np.arange(len(small)) < 11)
    loader = Learner.on(few, replace(RECIPE, gain_jitter=0.0, epoch_steps=10)).loader
    assert len(loader) >= 10
    seen = torch.cat([signals[:, 0, 0] for signals, _ in loader])
    _, counts = seen.unique(return_counts=True)
    assert counts.tolist() == [7] * 11


def test_patience_lasts_for_steps_and_not_for_single_batches() -> None:
    """Counted in batches of 64, forty windows are one step. So a patience of 10 was ten steps."""
    signals, labels = waves(40, 5)
    history = ToolWearClassifier("cpu", hidden=4, layers=1, kernels=4, epochs=2).train(
        (signals, labels), (signals, labels)
    )
    assert history["step"] == [20.0, 40.0]
