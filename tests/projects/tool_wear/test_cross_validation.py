"""Each tool is left out once, below one parent run."""

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from mltrain.errors import DataError, UsageError
from projects.tool_wear import npz
from projects.tool_wear.cross_validation import cross_validate, folds
from projects.tool_wear.project import Config
from projects.tool_wear.windows import Windows
from tests.support.workplace import Workplace


def test_every_tool_is_the_test_once_and_another_one_validates() -> None:
    found = folds(Config(cuts=12, window_steps=16, windows_per_cut=1))
    assert found == [("c1", "c4"), ("c4", "c5"), ("c5", "c6"), ("c6", "c1")]


def test_too_few_tools_are_refused(tmp_path: Path, small: Windows) -> None:
    npz.write(tmp_path / "two.npz", small.of(["c1", "c4"]))
    with pytest.raises(DataError, match=r"There are 2: c1, c4"):
        folds(Config(data_path=tmp_path / "two.npz"))


def test_a_fold_without_a_class_is_refused_before_the_first_one_begins(tmp_path: Path, small: Windows) -> None:
    severe_on_one = small.where((small.tools == "c1") | (small.labels < 2))
    npz.write(tmp_path / "rare.npz", severe_on_one)
    with pytest.raises(DataError, match="no window of the training tools c5, c6 is 'severe'"):
        folds(Config(data_path=tmp_path / "rare.npz"))


def test_a_fold_of_wear_needs_no_classes_but_windows_to_calibrate_on(tmp_path: Path, small: Windows) -> None:
    npz.write(tmp_path / "wear.npz", small.where((small.tools != "c5") | (small.cuts <= 4)))
    given = {"target": "wear", "data_path": tmp_path / "wear.npz", "wear_bins": (900.0, 950.0)}
    assert len(folds(Config(**given, coverage=0.8))) == 4
    with pytest.raises(DataError, match=r"c5 have 8 windows, and a coverage of 0\.9 needs 9"):
        folds(Config(**given))


def test_tools_of_the_sets_cannot_be_chosen() -> None:
    with pytest.raises(UsageError, match="val_tools is chosen by the cross-validation"):
        cross_validate({"val_tools": "c1"})


@pytest.mark.slow
@pytest.mark.parametrize(("target", "score"), [("class", "accuracy"), ("wear", "mae_um")])
def test_the_folds_are_children_of_one_run_that_has_their_mean(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, target: str, score: str
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLTRAIN_HOME"):
        monkeypatch.setenv(name, workplace.environment[name])
    tiny = {"cuts": "12", "window_steps": "16", "hidden": "4", "epochs": "1", "rocket_kernels": "0", "epoch_steps": "1"}
    parent, table = cross_validate({**tiny, "target": target})
    client = MlflowClient(workplace.uri)
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert table["tool"].tolist() == ["c1", "c4", "c5", "c6"]
    assert run.data.metrics[f"test/{score}_mean"] == pytest.approx(np.mean(table[f"test/{score}"]))
    assert f"test/{score}_random_forest" in table.columns
    for child in table["run"]:
        assert client.get_run(child).data.tags["mlflow.parentRunId"] == parent
