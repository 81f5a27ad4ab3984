"""Records what builds a training as comparable plain values."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

from mltrain.restoring.built import Built, differences, equal, plain, replaced


def test_only_values_that_json_has_are_plain() -> None:
    value = {"lr": torch.tensor(0.5), 3: np.float32(2.0), "weight": torch.ones(2), "call": print, "betas": (0.9, None)}
    assert plain(value) == {"lr": 0.5, "3": 2.0, "betas": [0.9, None]}
    assert plain(list(range(1001))) is None, "too long to be a setting"


def test_what_differs_is_named_by_its_path_and_only_where_both_have_it() -> None:
    then = {"groups": [{"lr": 0.1, "old": 1}], "nan": math.nan}
    now = {"groups": [{"lr": 0.2, "new": 1}], "nan": math.nan}
    assert list(differences({"groups": [{"lr": 0.1}]}, {"groups": [{"lr": 0.2}]})) == [(("groups", 0, "lr"), 0.1, 0.2)]
    # A flat mapping with other keys is one value, such as milestones that are counted by step.
    assert list(differences(then, now)) == [(("groups", 0), {"lr": 0.1, "old": 1}, {"lr": 0.2, "new": 1})]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [(math.nan, math.nan, True), ([1, 2], (1, 2), True), (True, 1, False), (1, 1.0, True), ([1], [1, 2], False)],
)
def test_values_are_compared_as_a_person_would(one: object, other: object, same: bool) -> None:
    assert equal(one, other) == same


def test_a_value_is_replaced_by_one_of_its_kind_and_the_nesting_stays_as_it_was() -> None:
    tree = {"betas": (0.9, 0.999), "lr": torch.tensor(0.1), 5: 1}
    assert replaced(tree, ("betas", 0), 0.8)["betas"] == (0.8, 0.999)
    assert torch.equal(replaced(tree, ("lr",), 0.5)["lr"], torch.tensor(0.5))
    assert replaced(tree, ("5",), 2)[5] == 2
    assert tree["betas"] == (0.9, 0.999)
    for path in (("gamma",), ("betas", 0, "x")):
        with pytest.raises((KeyError, TypeError)):
            replaced(tree, path, 1)


def test_the_record_holds_settings_functions_and_small_buffers() -> None:
    net = nn.BatchNorm1d(2)
    optimizer = SGD(net.parameters(), lr=0.1)
    built = Built({"model": net, "optimizer": optimizer, "schedule": LambdaLR(optimizer, lambda step: 0.5**step)})
    assert built.now["optimizer"][0]["lr"] == 0.1
    assert built.now["schedule"]["$functions"][0][:3] == [1.0, 0.5, 0.25]
    assert built.now["model"] == {"running_mean": [0, 0], "running_var": [1, 1], "num_batches_tracked": 0}
    assert list(built.schedules) == ["schedule"]


def test_settings_that_a_metric_drives_are_left_out() -> None:
    first, second = (SGD([nn.Parameter(torch.ones(1))], lr=0.1) for _ in range(2))
    parts = {"first": first, "second": second, "step": StepLR(first, 1), "plateau": ReduceLROnPlateau(second)}
    assert [part for part, _ in Built(parts).settings()] == [first]
