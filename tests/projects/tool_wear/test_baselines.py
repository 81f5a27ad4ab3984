"""The baselines are what they claim to be."""

from dataclasses import replace

import numpy as np
import pytest

from projects.tool_wear.baselines import Baselines, summary
from projects.tool_wear.windows import Windows, split_by_tool


def test_the_summary_is_mean_spread_and_maximum_of_every_channel() -> None:
    signals = np.array([[[1.0, 10.0], [3.0, 10.0]]], dtype=np.float32)
    np.testing.assert_allclose(summary(signals), [[2.0, 10.0, 1.0, 0.0, 3.0, 10.0]])


def test_majority_is_the_share_of_the_class_most_frequent_in_training(small: Windows) -> None:
    split = split_by_tool(small, ["c5"], ["c6"])
    frequent = np.bincount(split.train.labels).argmax()
    expected = (split.test.labels == frequent).mean()
    assert Baselines(split.train).accuracy(split.test)["majority"] == pytest.approx(expected)


def test_both_learners_beat_the_majority_on_an_unseen_tool(small: Windows) -> None:
    split = split_by_tool(small, ["c5"], ["c6"])
    accuracy = Baselines(split.train).accuracy(split.test)
    assert accuracy["logistic regression"] > accuracy["majority"] + 0.1
    assert accuracy["random forest"] > accuracy["majority"] + 0.1


def test_without_information_nobody_beats_the_majority_by_much(small: Windows) -> None:
    """Shuffled labels: if a baseline were scored on what it was fitted on, it would come out near 1."""
    split = split_by_tool(small, ["c5"], ["c6"])
    shuffled = replace(split.train, labels=np.random.default_rng(0).permutation(split.train.labels))
    accuracy = Baselines(shuffled).accuracy(split.test)
    assert max(accuracy.values()) < 0.75


def test_the_same_seed_gives_the_same_figures(small: Windows) -> None:
    split = split_by_tool(small, ["c5"], ["c6"])
    assert Baselines(split.train, 1).accuracy(split.test) == Baselines(split.train, 1).accuracy(split.test)
