"""Arrays from Python users are checked before a training."""

from typing import Any

import numpy as np
import pytest
import torch

from mltrain.errors import DataError
from projects.tool_wear.examples import signals_of, split_of


def data(classes: Any = (0, 1, 2, 0, 1, 2), steps: int = 5, channels: int = 2) -> tuple[Any, Any]:
    return np.random.default_rng(0).normal(size=(len(classes), steps, channels)), np.array(classes)


def test_labels_number_the_classes_in_order_whatever_they_are() -> None:
    classes, split = split_of(data([10, 30, 20, 10]), data([30, 20]))
    assert classes.tolist() == [10, 20, 30]
    assert split.train.labels.tolist() == [0, 2, 1, 0]
    assert split.val.labels.tolist() == [2, 1]
    assert split.train.classes == ("10", "20", "30")


def test_names_are_classes_too() -> None:
    classes, split = split_of(data(["worn", "new", "worn"]), None)
    assert classes.tolist() == ["new", "worn"]
    assert split.train.labels.tolist() == [1, 0, 1]
    assert len(split.val) == 0


@pytest.mark.parametrize("given", [np.float64, np.float32, np.int16])
def test_signals_of_any_numbers_become_single_precision(given: type) -> None:
    assert signals_of(np.ones((2, 3, 4), given), "X").dtype == np.float32


def test_lists_and_tensors_are_accepted() -> None:
    _, split = split_of(([[[1.0], [2.0]], [[3.0], [4.0]]], [0, 1]), None)
    assert split.train.signals.shape == (2, 2, 1)
    _, split = split_of((torch.zeros(2, 3, 4), torch.tensor([0, 1])), None)
    assert split.train.signals.shape == (2, 3, 4)


def with_nan() -> tuple[Any, Any]:
    signals, labels = data()
    signals[3, 1, 0] = np.nan
    return signals, labels


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ((np.zeros((4, 3)), np.zeros(4, int)), None, r"X of train_data has shape \(4, 3\)"),
        ((np.zeros((0, 3, 2)), np.zeros(0, int)), None, r"shape \(0, 3, 2\)"),
        ((data()[0], np.zeros(5, int)), None, r"y of train_data has shape \(5,\) for 6 windows"),
        ((data()[0], np.zeros(6)), None, "y of train_data holds float64"),
        ((np.array([["a"]]), np.zeros(1, int)), None, "does not hold numbers"),
        (np.zeros((4, 3, 2)), None, r"train_data has to be a pair \(X, y\), and is a ndarray"),
        (with_nan(), None, "NaN or infinity in 1 windows, first in number 3"),
        (data([1, 1, 1]), None, "has the class 1 only"),
        (data(), data([0, 7]), "the class 7 is not among those of train_data"),
        (data(), data([0, 1], channels=3), "it has 3 channels, and train_data 2"),
        (data(), (np.zeros((2, 3)), np.zeros(2, int)), "X of val_data has shape"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(train: Any, val: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        split_of(train, val)


def test_validation_windows_may_be_longer_and_need_not_have_every_class() -> None:
    _, split = split_of(data(), data([2, 2], steps=9))
    assert split.val.signals.shape == (2, 9, 2)


def test_a_list_of_windows_of_unequal_length_is_padded() -> None:
    _, split = split_of(([np.ones((3, 2)), np.ones((5, 2)), torch.ones(4, 2)], [0, 1, 1]), ([np.zeros((9, 2))], [1]))
    assert split.train.lengths.tolist() == [3, 5, 4]
    assert split.train.signals.shape == (3, 5, 2)
    assert split.val.lengths.tolist() == [9]


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([np.ones((3, 2)), np.ones((5, 3))], "they have 2, 3 channels"),
        ([np.ones((3, 2)), np.ones((0, 2))], "or no step"),
        ([np.ones((3, 2)), np.ones(5)], r"1 has shape \(5,\)"),
        ([np.ones((3, 2)), np.full((5, 2), np.nan)], "NaN, infinity or no numbers in window 1"),
        ([np.ones((3, 2)), np.array([["a", "b"]])], "no numbers in window 1"),
    ],
)
def test_windows_that_do_not_belong_together_are_refused(windows: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        signals_of(windows, "X")
