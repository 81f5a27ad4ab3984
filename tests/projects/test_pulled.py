from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mltrain.errors import DataError
from projects.pulled import weights_in


def test_the_weights_of_all_files_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-2.safetensors")
    assert {name: tuple(weight.shape) for name, weight in weights_in(tmp_path).items()} == {"a": (2,), "b": (3,)}


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no weights.*mltrain pull RUN_ID --to"):
        weights_in(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"weights in .* are damaged.*mltrain pull RUN_ID --to"):
        weights_in(tmp_path)
