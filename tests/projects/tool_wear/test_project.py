"""The project as a training: configuration, data, and what evaluating it gives."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure

import mltrain
from mltrain.errors import ConfigError, DataError
from mltrain.rng import seed_everything
from projects.tool_wear import npz, phm, project
from projects.tool_wear.project import Config, build, split_of
from projects.tool_wear.windows import UNLABELLED, Windows

FILE = Path(project.__file__).with_name("config.yaml")
NEW = {"kernels": 1000, "epoch_steps": 20}
"""What a new run is given, and a run of before these keys must not be: its weights and batches are without them."""

SMALL = {"rocket_kernels": 0, "cuts": 12, "window_steps": 16, "windows_per_cut": 1, "hidden": 8, "batch_size": 8}


def small_task(**changes: Any) -> tuple[Config, mltrain.Task]:
    config = Config(**{**SMALL, **changes})
    seed_everything(config.seed)
    return config, build(config)


def test_the_configuration_file_states_the_defaults_and_explains_every_key_of_the_project() -> None:
    assert Config.load([FILE]) == Config.load(overrides=NEW)
    own = set(Config.model_fields) - set(mltrain.Config.model_fields)
    assert own <= set(yaml.safe_load(FILE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("preset", ["quick", "light", "thorough"])
def test_presets_are_valid(preset: str) -> None:
    assert Config.load([FILE], preset=preset) != Config.load([FILE])


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("wear_bins", "90 140", (90.0, 140.0)),
        ("wear_bins", "100,150,180", (100.0, 150.0, 180.0)),
        ("wear_bins", "[100, 150]", (100.0, 150.0)),
        ("val_tools", "c1,c4", ("c1", "c4")),
        ("val_tools", "[c4]", ("c4",)),
        ("val_tools", "c4", ("c4",)),
        ("val_tools", "[4, 10]", ("4", "10")),
        ("val_tools", 4, ("4",)),
        ("val_tools", [4, "c5"], ("4", "c5")),
        ("wear_bins", 90, (90.0,)),
        ("val_tools", "none", ()),
        ("data_path", "none", None),
    ],
)
def test_lists_are_accepted_as_one_writes_them_on_a_command_line(key: str, text: Any, value: object) -> None:
    assert getattr(Config.load(overrides={key: text}), key) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("wear_bins", "140,90"),
        ("wear_bins", "90,90"),
        ("wear_bins", "0.09,0.14"),
        ("wear_bins", "a,b"),
        ("wear_of", "median"),
        ("wear_unit", "inch"),
        ("class_names", "new,worn"),
        ("class_names", "new,worn,worn"),
    ],
)
def test_values_without_meaning_are_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Config.load(overrides={key: text})


def test_a_resolved_configuration_gives_itself_back() -> None:
    config = Config.load(overrides={"val_tools": "c1,c4", "wear_bins": "80,120,160", "data_path": "somewhere"})
    assert Config.load(base=config.resolved()) == config


def test_generated_tools_are_split_as_documented() -> None:
    split = split_of(Config(**SMALL))
    assert [part.tool_names for part in split] == [("c1", "c4"), ("c5",), ("c6",)]


def test_the_seed_of_the_training_leaves_the_data_alone_and_that_of_the_data_does_not() -> None:
    first = split_of(Config(**SMALL)).train.signals
    assert np.array_equal(first, split_of(Config(**SMALL, seed=5)).train.signals)
    assert not np.array_equal(first, split_of(Config(**SMALL, data_seed=5)).train.signals)


def test_a_folder_of_recordings_is_trained_on_with_its_last_tool_held_out(tmp_path: Path) -> None:
    phm.write_sample(tmp_path / "phm", seed=0, cuts=6, samples=800)
    config = Config(**SMALL, data_path=tmp_path / "phm", cache_path=tmp_path / "cache")
    split = split_of(config)
    assert [part.tool_names for part in split] == [("c1", "c4"), ("c6",), ()]
    assert split.train.signals.shape == (12, 16, 7)
    assert list((tmp_path / "cache").glob("*.npz"))


def test_windows_are_cached_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_CACHE", str(tmp_path / "cache"))
    phm.write_sample(tmp_path / "phm", seed=0, cuts=6, samples=800)
    split_of(Config(**SMALL, data_path=tmp_path / "phm"))
    assert list((tmp_path / "cache" / "tool_wear").glob("*.npz"))


def test_an_npz_file_is_trained_on_and_windows_without_a_class_are_left_out(tmp_path: Path, small: Windows) -> None:
    file = tmp_path / "windows.npz"
    labels = small.labels.copy()
    labels[small.tools == "c4"] = UNLABELLED
    np.savez(file, X=small.signals, y=labels, groups=small.tools)
    split = split_of(Config(**SMALL, data_path=file, test_tools=("c5",)))
    assert [part.tool_names for part in split] == [("c1",), ("c6",), ("c5",)]
    assert split.train.classes == ("class 0", "class 1", "class 2")


def test_a_place_without_data_is_an_error_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        split_of(Config(data_path=tmp_path / "nowhere"))


def test_building_twice_from_one_seed_gives_the_same_weights_and_another_seed_others() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        _, task = small_task(seed=seed)
        assert isinstance(task.step, mltrain.Supervised)
        return task.step.model.state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_evaluation_has_the_stable_names_and_changes_nothing_it_is_not_asked_to() -> None:
    _, task = small_task()
    assert task.evaluate is not None
    assert isinstance(task.step, mltrain.Supervised)
    before = {name: value.clone() for name, value in task.step.model.state_dict().items()}
    first, again = task.evaluate(), task.evaluate()
    assert first == again
    assert {"val/loss", "val/accuracy", "val/f1"} <= first.keys()
    assert all(np.isfinite(value) for value in first.values())
    assert all(torch.equal(value, before[name]) for name, value in task.step.model.state_dict().items())


def test_the_loss_on_unseen_tools_is_measured_as_the_training_loss_is() -> None:
    config, task = small_task()
    assert isinstance(task.step, mltrain.Supervised)
    val = split_of(config).val
    task.step.model.eval()
    with torch.no_grad():
        expected = task.step.loss(task.step.model(torch.from_numpy(val.signals)), torch.from_numpy(val.labels))
    assert task.evaluate is not None
    assert task.evaluate()["val/loss"] == pytest.approx(float(expected), rel=1e-5)


def test_pictures_can_be_drawn_and_name_the_baselines_beside_the_result() -> None:
    _, task = small_task()
    assert task.images is not None
    pictures = task.images()
    assert set(pictures) == {"confusion", "wear"}
    for picture in pictures.values():
        assert isinstance(picture, Figure)
        assert "random forest" in picture.get_suptitle()
        picture.savefig(io.BytesIO())


def test_the_report_writes_tables_and_figures_of_both_sets_and_scores_the_baselines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config, task = small_task()
    assert task.report is not None
    scores = task.report(tmp_path)
    split = split_of(config)
    for name, windows in (("val", split.val), ("test", split.test)):
        written = {file.name for file in (tmp_path / name).iterdir()}
        assert {f"{figure}.png" for figure in ("confusion", "wear", "traces", "roc")} <= written
        table = pd.read_csv(tmp_path / name / "predictions.csv")
        assert len(table) == len(windows)
        assert (table["class"] == table["predicted"]).mean() == pytest.approx(scores[f"{name}/accuracy"])
        assert {f"{name}/accuracy_majority", f"{name}/accuracy_random_forest"} <= scores.keys()
    compared = pd.read_csv(tmp_path / "comparison.csv", index_col="method")
    assert list(compared.index) == ["LSTM", "majority", "logistic regression", "random forest"]
    assert compared.loc["LSTM", "test"] == pytest.approx(scores["test/accuracy"], abs=1e-4)
    assert compared.loc["random forest", "val"] == pytest.approx(scores["val/accuracy_random_forest"], abs=1e-4)
    assert f"Best on the validation tools: {compared['val'].idxmax()}." in caplog.text


def test_without_test_tools_the_report_warns_that_its_scores_are_too_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, task = small_task(val_tools=("c6",))
    assert task.report is not None
    scores = task.report(tmp_path)
    assert not any(name.startswith("test/") for name in scores)
    assert "the best epoch was chosen on the tools that these scores are from" in caplog.text


def test_windows_written_by_the_reader_can_be_the_data_of_a_run(tmp_path: Path) -> None:
    phm.write_sample(tmp_path / "phm", seed=0, cuts=6, samples=800)
    folder = Config(**SMALL, data_path=tmp_path / "phm", cache_path=tmp_path / "cache")
    npz.write(tmp_path / "all.npz", phm.read(tmp_path / "phm", folder.windowing))
    from_file = split_of(Config(**SMALL, data_path=tmp_path / "all.npz"))
    from_folder = split_of(folder)
    assert np.array_equal(from_file.train.signals, from_folder.train.signals)
    assert from_file.train.classes == from_folder.train.classes
    assert from_file.train.bins == from_folder.train.bins
