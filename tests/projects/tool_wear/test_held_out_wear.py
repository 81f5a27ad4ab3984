"""Wear is judged in micrometres on windows without calibration."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import mltrain
from mltrain.errors import ConfigError, DataError
from mltrain.rng import seed_everything
from projects.tool_wear import npz
from projects.tool_wear.project import Config, build, split_of
from projects.tool_wear.windows import Windows

SMALL = {"rocket_kernels": 0, "cuts": 12, "window_steps": 16, "windows_per_cut": 1, "hidden": 8, "batch_size": 8}


def small_task(**changes: Any) -> mltrain.Task:
    seed_everything(0)
    return build(Config(**{**SMALL, "target": "wear", "coverage": 0.8, **changes}))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder, task = tmp_path_factory.mktemp("report"), small_task()
    assert task.evaluate is not None
    assert task.report is not None
    with torch.no_grad():
        task.evaluate()
        return folder, dict(task.report(folder))


def test_an_evaluation_sets_the_margin_and_gives_the_same_again() -> None:
    task = small_task()
    assert task.evaluate is not None
    assert isinstance(task.step, mltrain.Supervised)
    with torch.no_grad():
        first, again = task.evaluate(), task.evaluate()
    assert first == again
    assert {"val/loss", "val/mae_um", "val/rmse_um", "val/width_um", "val/quantile_coverage"} == first.keys()
    assert float(task.step.model.state_dict()["margin"]) != 0.0


def test_the_coverage_is_that_of_tools_which_did_not_calibrate(report: tuple[Path, dict[str, float]]) -> None:
    folder, scores = report
    assert "val/coverage" not in scores
    table = pd.read_csv(folder / "test" / "predictions.csv")
    assert set(table["tool"]) == {"c6"}
    inside = (table["lower_um"] <= table["wear_um"]) & (table["wear_um"] <= table["upper_um"])
    assert scores["test/coverage"] == pytest.approx(inside.mean())
    assert scores["test/mae_um"] == pytest.approx((table["predicted_um"] - table["wear_um"]).abs().mean(), rel=1e-3)


def test_the_baselines_stand_beside_the_network(report: tuple[Path, dict[str, float]]) -> None:
    folder, scores = report
    table = pd.read_csv(folder / "comparison.csv")
    assert table["method"].tolist() == ["LSTM", "mean", "ridge", "random forest"] * 2
    assert table["set"].tolist() == ["val"] * 4 + ["test"] * 4
    assert table["coverage"].isna().tolist() == [True] * 4 + [False] * 4
    for score in ("mae_um", "rmse_um", "coverage", "width_um"):
        assert np.isfinite(scores[f"test/{score}_random_forest"])
    assert {file.name for file in (folder / "val").iterdir()} == {"predictions.csv", "wear.png", "agreement.png"}


def test_the_calibrated_interval_covers_the_validation_windows(report: tuple[Path, dict[str, float]]) -> None:
    table = pd.read_csv(report[0] / "val" / "predictions.csv")
    inside = (table["lower_um"] <= table["wear_um"]) & (table["wear_um"] <= table["upper_um"])
    assert inside.mean() >= 0.8


def test_pictures_name_the_baselines_beside_the_result() -> None:
    task = small_task()
    assert task.images is not None
    pictures = task.images()
    assert set(pictures) == {"wear", "agreement"}
    for picture in pictures.values():
        assert isinstance(picture, Figure)
        assert "ridge" in picture.get_suptitle()
        picture.savefig(io.BytesIO())


def test_wear_without_classes_is_learnt_and_windows_without_wear_are_left_out(tmp_path: Path, small: Windows) -> None:
    wear = small.wear.copy()
    wear[small.tools == "c4"] = np.nan
    np.savez(tmp_path / "wear.npz", X=small.signals, wear=wear, groups=small.tools)
    config = Config(
        **SMALL, target="wear", data_path=tmp_path / "wear.npz", test_tools=("c5",), wear_bins=(900.0, 950.0)
    )
    split = split_of(config)
    assert [part.tool_names for part in split] == [("c1",), ("c6",), ("c5",)]


def test_classes_alone_tell_no_wear(tmp_path: Path, small: Windows) -> None:
    np.savez(tmp_path / "classes.npz", X=small.signals, y=small.labels, groups=small.tools)
    with pytest.raises(DataError, match=r"has no wear.*Try: target=class"):
        split_of(Config(**SMALL, target="wear", data_path=tmp_path / "classes.npz"))


def test_too_few_windows_to_calibrate_are_refused(tmp_path: Path, small: Windows) -> None:
    few = small.where((small.tools != "c6") | (small.cuts <= 4))
    npz.write(tmp_path / "few.npz", few)
    with pytest.raises(DataError, match=r"c6 have 8 windows, and a coverage of 0\.9 needs 9"):
        split_of(Config(**SMALL, target="wear", data_path=tmp_path / "few.npz"))


@pytest.mark.parametrize(("key", "text"), [("target", "life"), ("coverage", "1"), ("coverage", "90")])
def test_values_without_meaning_are_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Config.load(overrides={key: text})
