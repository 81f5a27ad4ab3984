"""Objects of other libraries beside weights become plain values."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from mltrain.commands.foreign_file import read
from mltrain.commands.foreign_values import STAND_INS


def test_numbers_of_numpy_an_argument_namespace_and_a_path_do_not_refuse_the_weights(tmp_path: Path) -> None:
    content = {
        "model": {"weight": np.arange(6.0).reshape(2, 3)},
        "epoch": np.int64(7),
        "history": {"loss": [np.float32(0.5)], "big": [np.array(2.0, ">f8")]},
        "optimizer": {"lr": np.float64(0.1), "betas": (0.9, np.float64(0.99))},
        "random": np.random.get_state(),
        "classes": np.array(["a", "bc"]),
        "nothing": np.zeros(0),
        "args": argparse.Namespace(lr=0.1, out=Path("/tmp/x")),
    }
    torch.save(content, tmp_path / "a.pth")
    found = read(tmp_path / "a.pth")
    assert found.model["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (found.epoch, found.optimizer) == (7, {"lr": 0.1, "betas": (0.9, 0.99)})
    assert found.history[0]["loss"] == 0.5
    assert type(found.optimizer["betas"][1]) is float


def test_a_tuple_that_a_file_holds_many_times_is_read_once(tmp_path: Path) -> None:
    nested: tuple[object, ...] = (np.float64(1),)
    for _ in range(60):
        nested = (nested, nested)
    torch.save({"model": {"w": torch.ones(1)}, "x": nested}, tmp_path / "a.pth")
    assert read(tmp_path / "a.pth").ignored == ["x: unknown key"]


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_of_each_version_of_python_are_read(module: str) -> None:
    assert {f"{module}.{name}" for name in ("PosixPath", "WindowsPath")} <= {name for _, name in STAND_INS}


def test_numpy_is_not_called_with_what_a_file_names(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "epoch": 1, "names": np.array([{}, "x"], object)}, tmp_path / "a.pth")
    assert read(tmp_path / "a.pth").ignored == ["names: unknown key"]
    torch.save({"model": {"w": torch.ones(1)}, "x": np.zeros(1, [("a", "O")])}, tmp_path / "a.pth")
    assert set(read(tmp_path / "a.pth").model) == {"w"}
