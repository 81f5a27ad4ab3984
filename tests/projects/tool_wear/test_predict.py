"""A pulled model classifies recordings as the training did."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from mltrain.errors import DataError
from projects.tool_wear import npz, phm
from projects.tool_wear.model import WearLSTM, logits_of
from projects.tool_wear.predict import main, predict
from projects.tool_wear.project import Config
from projects.tool_wear.scaler import Scaler
from projects.tool_wear.windows import Windows

CONFIG = Config(window_steps=16, windows_per_cut=1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    phm.write_sample(folder, seed=1, tools=(2, 3), cuts=5, samples=600)
    for file in folder.rglob("*_wear.csv"):
        file.unlink()
    return folder


@pytest.fixture
def network(recordings: Path) -> WearLSTM:
    torch.manual_seed(0)
    return WearLSTM(Scaler.fitted(phm.read_unlabelled(recordings, CONFIG.windowing).signals), 3, hidden=8).eval()


@pytest.fixture
def model(network: WearLSTM, tmp_path: Path) -> Path:
    """What ``mltrain pull`` puts into a folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "params.json").write_text(json.dumps(CONFIG.resolved()))
    return folder


def test_recordings_are_cut_as_in_training_and_classified_by_the_pulled_weights(
    model: Path, network: WearLSTM, recordings: Path
) -> None:
    results = predict(model, recordings)
    windows = phm.read_unlabelled(recordings, CONFIG.windowing)
    expected = torch.softmax(logits_of(network, windows.signals).double(), dim=1).numpy()
    np.testing.assert_array_equal(results.probabilities, expected)


def test_the_command_writes_a_row_for_each_window(model: Path, recordings: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "predictions.csv"
    assert main([str(model), str(recordings), str(file)]) == 0
    table = pd.read_csv(file)
    assert table["tool"].tolist() == ["c2"] * 5 + ["c3"] * 5
    assert table["cut"].tolist() == [1, 2, 3, 4, 5] * 2
    assert set(table["predicted"]) <= {"initial", "steady", "severe"}
    np.testing.assert_allclose(table[["p(initial)", "p(steady)", "p(severe)"]].sum(axis=1), 1.0, rtol=1e-5)


def test_an_npz_file_is_classified_too_with_numbers_where_it_names_other_classes(
    model: Path, tmp_path: Path, small: Windows
) -> None:
    np.savez(tmp_path / "new.npz", X=small.signals[:4], y=np.full(4, -1), groups=np.zeros(4, int))
    results = predict(model, tmp_path / "new.npz")
    assert results.windows.classes == ("class 0", "class 1", "class 2")
    assert results.probabilities.shape == (4, 3)
    npz.write(tmp_path / "named.npz", small)
    assert predict(model, tmp_path / "named.npz").windows.classes == small.classes


def test_what_cannot_be_predicted_is_an_error_for_the_user(
    model: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="mltrain pull RUN_ID"):
        predict(tmp_path / "nothing", recordings)
    np.savez(tmp_path / "two.npz", X=np.zeros((2, 16, 2)), y=np.zeros(2, int), groups=np.zeros(2, int))
    assert main([str(model), str(tmp_path / "two.npz"), str(tmp_path / "out.csv")]) == 2
    assert "has 2 channels; the model was trained on 7" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
