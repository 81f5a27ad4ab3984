"""Metrics are numbers by name, whatever library they come from."""

import numpy as np
import torch

from mltrain.metrics import floats


def test_numbers_of_every_library_are_metrics() -> None:
    values = {"a": np.float32(0.5), "b": torch.tensor([0.5]), "c": np.array([0.5]), "d": True, "e": 1, "f": np.int64(2)}
    assert floats(values, "it") == {"a": 0.5, "b": 0.5, "c": 0.5, "d": 1.0, "e": 1.0, "f": 2.0}
    assert floats({"a\udc80": 1}, "it") == {"a\\udc80": 1.0}
