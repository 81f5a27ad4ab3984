import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mltrain
from mltrain.configuration.files import read_mapping
from mltrain.errors import ConfigError, DataError
from projects.style_transfer import autoencoder
from projects.style_transfer.autoencoder import AutoencoderCodec
from projects.style_transfer.project import Config, build, read_styles
from tests.projects.style_transfer.conftest import CONFIG_FILE, built, quick, train

NEW = {"content_budget": 0.6}
"""What a new run is given, and a run of before this key must not be: its energy is without it."""


def test_the_file_explains_the_defaults_and_leaves_none_of_the_projects_keys_out() -> None:
    assert Config.load([CONFIG_FILE]) == Config.load(overrides=NEW)
    explained = read_mapping(CONFIG_FILE).keys() - {"presets"}
    assert explained >= Config.model_fields.keys() - mltrain.Config.model_fields.keys()


@pytest.mark.parametrize("preset", ["quick", "fast_debug", "high_quality", "light"])
def test_every_preset_is_a_configuration(preset: str) -> None:
    assert preset in read_mapping(CONFIG_FILE)["presets"]
    assert Config.load([CONFIG_FILE], preset=preset) != Config()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"image_size": 128, "short_side": 96}, "image_size=128 do not fit in short_side=96"),
        ({"image_size": 72}, "image_size"),
        ({"test_image_dir": "a"}, "image_dir is not given"),
        ({"codec": "autoencoder"}, "codec_model are given together"),
        ({"codec": "vae"}, "codec_model are given together"),
        ({"route": "straight"}, "route"),
        ({"codec_file": "a.py"}, "codec_file are given together"),
        ({"integrator": "euler"}, "integrator"),
        ({"w_styel": 1}, "Did you mean 'w_style'"),
    ],
)
def test_keys_that_cannot_be_meant_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Config.load(overrides=given)


def test_without_folders_the_sample_styles_are_read() -> None:
    assert [style.name for style in read_styles(Config())] == ["engraving", "ground", "photograph"]


def test_the_quality_chooses_the_best_checkpoint() -> None:
    assert (Config().best_metric, Config().best_mode) == ("val/quality", "max")


def test_pictures_that_cannot_be_read_are_all_named_before_training(styles: Path) -> None:
    (styles / "dots" / "dots0.png").write_text("no picture")
    (styles / "dots" / "dots1.png").write_text("no picture either")
    with pytest.raises(DataError, match=r"(?s)dots0\.png.*dots1\.png"):
        build(quick(image_dir=styles, val_fraction=0.01, split_seed=1))


def test_the_same_seed_trains_the_same(styles: Path) -> None:
    one, other, third = (train(built(quick(image_dir=styles, epochs=2, seed=seed)), 2) for seed in (0, 0, 1))
    assert one == other
    assert one != third


def test_inversion_and_generation_stay_inverse_while_training(styles: Path) -> None:
    task = built(quick(image_dir=styles, epochs=4, num_steps=12))
    train(task, 4)
    assert task.evaluate is not None
    assert task.evaluate()["val/round_trip"] < 0.05


def test_a_report_tells_of_every_pair(styles: Path, tmp_path: Path) -> None:
    task = built(quick(image_dir=styles))
    assert task.report is not None
    assert task.evaluate is not None
    metrics = task.report(tmp_path / "report")
    assert metrics == task.evaluate()
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == metrics
    table = pd.read_csv(tmp_path / "report" / "pairs.csv")
    assert list(table["method"].unique()) == ["flow", "identity", "colour matrix", "histogram"]
    for method, rows in table.groupby("method"):
        assert list(rows["source"] + ">" + rows["target"]) == ["dots>stripes", "stripes>dots"]
        suffix = "" if method == "flow" else f"_{str(method).replace(' ', '_')}"
        assert rows["swd"].mean() == pytest.approx(metrics[f"val/swd{suffix}"])
    means = pd.read_csv(tmp_path / "report" / "methods.csv", index_col="method")
    assert means.loc["colour matrix", "quality"] == pytest.approx(metrics["val/quality_colour_matrix"])
    with Image.open(tmp_path / "report" / "methods.png") as shown:
        assert np.asarray(shown).std() > 0
    assert (tmp_path / "report" / "inference" / "dots_to_stripes.jpg").is_file()


def test_an_autoencoder_is_trained_as_a_project_and_then_stays_in_every_checkpoint(
    styles: Path, tmp_path: Path
) -> None:

    settings = autoencoder.Config.load(
        preset="quick", overrides={"image_dir": styles, "image_size": 32, "short_side": 40, "epochs": 5}
    )
    task = autoencoder.build(settings)
    assert task.evaluate is not None
    assert task.images is not None
    before = task.evaluate()["val/loss"]
    for batch in (batch for _ in range(5) for batch in task.loader):
        task.step(batch)
    assert task.evaluate()["val/loss"] < before
    assert task.images()["reconstructions"].dtype == "uint8"

    (tmp_path / "pulled").mkdir()
    save_file(task.step.model.state_dict(), tmp_path / "pulled" / "model.safetensors")
    transfer = built(quick(image_dir=styles, codec="autoencoder", codec_model=tmp_path / "pulled"))
    state = transfer.step.parts()["codec"].state_dict()
    again = AutoencoderCodec.of({k.removeprefix("inner."): v for k, v in state.items() if k.startswith("inner.")})
    images = torch.rand(1, 3, 32, 32)
    task.step.model.eval()
    assert torch.equal(again.eval().encode(images), task.step.model.encode(images))
    assert train(transfer, 1)[0]["loss"] > 0


def test_a_folder_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no weights"):
        AutoencoderCodec.load(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="not the weights of an autoencoder"):
        AutoencoderCodec.load(tmp_path)
