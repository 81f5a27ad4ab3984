from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import mltrain
from mltrain.configuration.files import read_mapping
from mltrain.errors import ConfigError, DataError
from mltrain.testing import MemoryTracker
from projects.segmentation import project
from projects.segmentation.folders import FolderPair
from projects.segmentation.project import Config, build, read_samples
from projects.segmentation.synthetic import Blobs

CONFIG_FILE = Path(project.__file__).with_name("config.yaml")


def made(**overrides: Any) -> Config:
    return Config.load(overrides=overrides)


def built(config: Config) -> mltrain.Task:
    torch.manual_seed(config.seed)
    return build(config)


def train(task: mltrain.Task, epochs: int) -> list[float]:
    """Train, and return the loss of every step."""
    return [float(task.step(batch)["loss"]) for _ in range(epochs) for batch in task.loader]


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """Twelve pictures of a user's."""
    folders = FolderPair(images=tmp_path / "images", masks=tmp_path / "masks")
    Blobs(height=40, width=60).write(folders, 12, seed=0)
    return {"image_path": str(folders.images), "gt_path": str(folders.masks)}


# --- configuration


def test_the_file_explains_the_defaults_and_leaves_none_of_the_projects_keys_out() -> None:
    assert Config.load([CONFIG_FILE]) == Config()
    explained = read_mapping(CONFIG_FILE).keys() - {"presets"}
    assert explained >= Config.model_fields.keys() - mltrain.Config.model_fields.keys()


@pytest.mark.parametrize("preset", read_mapping(CONFIG_FILE)["presets"])
def test_every_preset_is_a_configuration(preset: str) -> None:
    assert Config.load([CONFIG_FILE], preset=preset) != Config()


@pytest.mark.parametrize(
    ("given", "size"),
    [("128", (128, 128)), ("112x96", (112, 96)), ("64X32", (64, 32)), ("[112, 96]", (112, 96)), (64, (64, 64))],
)
def test_an_image_size_is_a_side_or_height_by_width(given: str | int, size: tuple[int, int]) -> None:
    config = made(image_size=given)
    assert config.image_size == size
    assert Config.load(base=config.resolved()) == config


@pytest.mark.parametrize("given", ["100", "8", "12x-8", "big", "64x64x64"])
def test_an_image_size_that_the_network_cannot_take_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="image_size"):
        made(image_size=given)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"image_path": "a"}, "image_path and gt_path are given together"),
        ({"image_path": "a", "gt_path": "b", "val_gt_path": "c"}, "val_image_path and val_gt_path are given together"),
        ({"splits": "a.csv"}, "image_path is not given"),
        (
            dict.fromkeys(("image_path", "gt_path", "val_image_path", "val_gt_path", "splits"), "a"),
            "exclude one another",
        ),
        ({"sample": "cells"}, "mni152"),
        ({"learning_speed": "1"}, "Unknown key"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(given: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        made(**given)


def test_channels_are_one_or_three_also_as_text() -> None:
    assert made(channels="1").channels == 1
    assert made(channels="none").channels is None
    with pytest.raises(ConfigError, match="channels"):
        made(channels="2")


def test_quarter_turns_want_a_square() -> None:
    with pytest.raises(ConfigError, match="32x64; try image_size=32"):
        build(made(sample="blobs", quarter_turns="true", image_size="32x64"))


# --- data


def test_without_folders_the_sample_is_read() -> None:
    train_part, val_part = read_samples(made())
    assert (len(train_part), len(val_part)) == (75, 26)


def test_a_fifth_of_the_users_images_is_held_out(own: dict[str, str]) -> None:
    train_part, val_part = read_samples(made(**own))
    assert (len(train_part), len(val_part)) == (10, 2)
    assert {sample.stem for sample in train_part}.isdisjoint(sample.stem for sample in val_part)


def test_the_seed_of_the_training_does_not_change_what_is_held_out(own: dict[str, str]) -> None:
    assert read_samples(made(**own, seed=0)) == read_samples(made(**own, seed=1))
    assert read_samples(made(**own, split_seed=0)) != read_samples(made(**own, split_seed=1))


def test_own_validation_folders_are_held_out_whole(own: dict[str, str], tmp_path: Path) -> None:
    val = FolderPair(images=tmp_path / "val", masks=tmp_path / "val_masks")
    Blobs(height=40, width=60).write(val, 5, seed=1)
    parts = read_samples(made(**own, val_image_path=val.images, val_gt_path=val.masks))
    assert [len(part) for part in parts] == [12, 5]


def test_what_was_learnt_from_the_sample_can_be_validated_on_own_images(own: dict[str, str]) -> None:
    parts = read_samples(made(sample="blobs", val_image_path=own["image_path"], val_gt_path=own["gt_path"]))
    assert [len(part) for part in parts] == [64, 12]


def test_a_table_of_splits_is_followed(own: dict[str, str], tmp_path: Path) -> None:
    rows = [f"blobs_{index:03d},{('train', 'val', 'test')[index % 3]}" for index in range(12)]
    (table := tmp_path / "splits.csv").write_text("\n".join(["stem,split", *rows]))
    train_part, val_part = read_samples(made(**own, splits=table))
    assert [sample.stem[-1] for sample in val_part] == ["1", "4", "7", "0"]
    assert len(train_part) == 4


def test_a_group_of_the_users_images_stays_together(own: dict[str, str]) -> None:
    train_part, val_part = read_samples(made(**own, group_regex=r"_0(\d)"))  # ten pictures, and two
    assert sorted([len(train_part), len(val_part)]) == [2, 10]


def test_the_network_knows_mean_and_standard_deviation_of_the_training_images(own: dict[str, str]) -> None:
    config = made(**own)
    pixels = [np.asarray(Image.open(sample.image)) / 255 for sample in read_samples(config)[0]]
    net = built(config).step.model
    assert float(net.mean) == pytest.approx(np.mean(pixels), rel=1e-5)
    assert float(net.std) == pytest.approx(np.std(pixels), rel=1e-5)


def test_an_error_names_what_is_wrong_with_the_data_before_training(own: dict[str, str]) -> None:
    (Path(own["gt_path"]) / "blobs_003.png").unlink()
    with pytest.raises(DataError, match=r"(?s)images without a mask: 1\n    blobs_003\.png"):
        build(made(**own))


def test_the_network_takes_colour_if_any_image_has_it(own: dict[str, str]) -> None:
    assert built(made(**own)).step.model.channels == 1
    picture = Path(own["image_path"]) / "blobs_000.png"
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(picture)
    assert built(made(**own)).step.model.channels == 3
    assert built(made(**own, channels=1)).step.model.channels == 1


def test_sixteen_bits_of_which_twelve_are_used_train_like_eight(own: dict[str, str]) -> None:
    eight = train(built(made(**own, brightness=0.2, noise=0.1)), 2)
    for file in Path(own["image_path"]).iterdir():
        Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 16).save(file)
    twelve = train(built(made(**own, brightness=0.2, noise=0.1)), 2)
    assert twelve == pytest.approx(eight, rel=1e-3)


# --- training


def test_the_same_seed_trains_the_same(own: dict[str, str]) -> None:
    everything = {"flips": "both", "brightness": 0.2, "noise": 0.1, "epochs": 2}
    one, other, third = (train(built(made(**own, **everything, seed=seed)), 2) for seed in (0, 0, 1))
    assert one == other
    assert one != third


def test_the_preset_quick_learns_to_see_blobs() -> None:
    config = Config.load([CONFIG_FILE], preset="quick")
    task = built(config)
    before = task.evaluate()
    train(task, config.epochs)
    after = task.evaluate()
    assert after["val/f1"] > max(0.7, before["val/f1"] + 0.2)
    assert after["val/loss"] < before["val/loss"]
    assert task.step.epoch_metrics()["f1"] == pytest.approx(after["val/f1"], abs=0.25)


def test_the_schedule_ends_with_the_last_epoch(own: dict[str, str]) -> None:
    task = built(made(**own, epochs=3, batch_size=4))
    rates = []
    for _ in range(3):
        for batch in task.loader:
            task.step(batch)
            rates.append(task.step.learning_rate)
    assert len(rates) == 9
    assert max(rates) == pytest.approx(Config().lr, rel=0.05)
    assert rates[-1] == min(rates) < Config().lr / 1000


def test_the_report_at_the_size_of_the_network_gives_the_scores_of_the_validation(tmp_path: Path) -> None:
    task = built(made(sample="blobs", epochs=1, lr=1e-2))
    train(task, 1)
    measured, reported = task.evaluate(), task.report(tmp_path)
    for name in ("val/iou", "val/precision", "val/recall", "val/f1", "val/iou_per_image", "val/f1_per_image"):
        assert reported[name] == pytest.approx(measured[name], abs=2e-3)


def test_a_report_of_the_users_images_has_masks_of_their_size(own: dict[str, str], tmp_path: Path) -> None:
    task = built(made(**own, image_size=32))
    task.report(tmp_path / "out")
    masks = sorted((tmp_path / "out" / "masks").iterdir())
    assert len(masks) == 2
    for mask in masks:
        with Image.open(mask) as picture:
            assert picture.size == (60, 40)


def test_images_to_show_predictions_for_need_no_masks(own: dict[str, str]) -> None:
    pictures = built(made(**own, test_image_dir=own["image_path"], shown=2)).images()
    assert [name.split("/")[0] for name in pictures] == ["val", "val", "test", "test"]


@pytest.fixture
def interrupted(own: dict[str, str]) -> Callable[[int], list[torch.Tensor]]:
    """Trains two epochs, handing all state over to a newly built task after some steps; returns the weights."""

    def run(steps: int) -> list[torch.Tensor]:
        config = made(**own, epochs=2, batch_size=4, flips="both", noise=0.1)
        task, other = built(config), None
        for index in range(6):
            if index == steps:
                other = built(config)
                for name, part in task.step.parts().items():
                    other.step.parts()[name].load_state_dict(part.state_dict())
                other.loader.load_state_dict(task.loader.state_dict())
                task = other
            task.step(next(iter(task.loader)))
        return [weight.detach().clone() for weight in task.step.model.state_dict().values()]

    return run


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_training_that_was_handed_over_ends_with_the_same_weights(
    interrupted: Callable[[int], list[torch.Tensor]], steps: int
) -> None:
    for one, other in zip(interrupted(-1), interrupted(steps), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_defaults_find_white_matter() -> None:
    config = made(num_threads=1)
    task = built(config)
    train(task, config.epochs)
    measured = task.evaluate()
    assert measured["val/f1"] >= 0.90
    assert measured["val/f1_per_image"] >= 0.88


# --- scale


def test_small_tiles_and_a_large_picture_are_seen_at_one_scale(tmp_path: Path) -> None:
    tiles = FolderPair(images=tmp_path / "images", masks=tmp_path / "masks")
    whole = FolderPair(images=tmp_path / "whole", masks=tmp_path / "whole_masks")
    Blobs(height=32, width=32, most=2).write(tiles, 24, seed=0)
    Blobs(height=96, width=128, most=12, radius=(0.03, 0.06), defocus=0.004).write(whole, 2, seed=1)
    given = {"image_path": tiles.images, "gt_path": tiles.masks, "epochs": 1}
    held_out = {"val_image_path": whole.images, "val_gt_path": whole.masks}
    task = built(made(**given, **held_out))
    train(task, 1)
    assert task.step.model.framing.window == (32, 32)
    assert task.step.model.framing.stretched_to is None
    measured, reported = task.evaluate(), task.report(tmp_path / "report")
    for name in ("val/iou", "val/f1", "val/iou_per_image"):
        assert reported[name] == pytest.approx(measured[name], abs=1e-6)
    assert not [line for line in task.summary if "WARNING" in line]
    squeezed = built(made(**given, **held_out, resize="stretch", image_size=32))
    assert [line for line in squeezed.summary if "WARNING 2 of 2 held-out images" in line]


def test_large_pictures_are_trained_on_in_several_crops(own: dict[str, str]) -> None:
    task = built(made(**own, crop_size=16, batch_size=4))
    images, masks = next(iter(task.loader))
    assert images.shape == masks.shape == (4, 1, 16, 16)
    assert len(task.loader) == -(-10 * 9 // 4)
    assert len(built(made(**own, crop_size=16, crops=2, batch_size=4)).loader) == 5


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"resize": "none", "image_size": "64"}, "give crop_size"),
        ({"image_size": "64", "crop_size": "128"}, "larger than image_size"),
        ({"foreground": "1", "classes": "[1,2]"}, "exclude one another"),
        ({"foreground": "white"}, "'white' is no value of a mask"),
        ({"classes": "[1,1]"}, "twice"),
    ],
)
def test_keys_of_scale_and_labels_that_contradict_are_refused(given: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        made(**given)


def test_a_recorded_configuration_of_an_earlier_version_stretches() -> None:
    earlier = {key: value for key, value in Config().resolved().items() if key not in ("resize", "crop_size", "crops")}
    assert Config.load(base=earlier).resize == "stretch"
    assert Config.load(base=Config().resolved()).resize == "auto"


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        ("[1,2]", ("1", "2")),
        ("1,2", ("1", "2")),
        ("[liver=1, vessel=2-4]", ("liver=1", "vessel=2-4")),
        ("{liver: 1}", ("liver=1",)),
        ("road=#804080,car=#00008e", ("road=#804080", "car=#00008e")),
        (["liver", "vessel"], ("liver", "vessel")),
        ("none", None),
    ],
)
def test_classes_are_a_list_a_mapping_or_plain_text(given: object, classes: tuple[str, ...] | None) -> None:
    config = made(classes=given)
    assert config.classes == classes
    assert Config.load(base=config.resolved()) == config


# --- several classes


@pytest.fixture
def organs(own: dict[str, str]) -> dict[str, str]:
    """The user's pictures with three values in their masks: 0, 4 in the left half and 9 in the right one."""
    for file in Path(own["gt_path"]).iterdir():
        mask = np.asarray(Image.open(file)) > 0
        Image.fromarray(np.where(mask, np.where(np.arange(60) < 30, 4, 9), 0).astype(np.uint8)).save(file)
    return own


def test_several_classes_are_refused_until_they_are_declared(organs: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"(?s)more than two values.*classes=\[1,2\].*0 in 12 masks.*4 in .*9 in "):
        build(made(**organs))


def test_several_classes_have_channels_scores_and_pictures(organs: dict[str, str], tmp_path: Path) -> None:
    task = built(
        made(**organs, classes="[left=4,right=9]", epochs=1, batch_size=4, shown=1, test_image_dir=organs["image_path"])
    )
    train(task, 1)
    names = {"iou", "f1", "precision", "recall", "iou_left", "f1_left", "iou_right", "f1_right"}
    assert task.step.epoch_metrics().keys() >= names
    measured = task.evaluate()
    assert measured.keys() >= {f"val/{name}" for name in names}
    assert measured["val/iou"] == pytest.approx((measured["val/iou_left"] + measured["val/iou_right"]) / 2)
    reported = task.report(tmp_path / "report")
    for name in ("val/iou", "val/iou_left", "val/f1_right", "val/iou_per_image"):
        assert reported[name] == pytest.approx(measured[name], abs=1e-6)
    assert pd.read_csv(tmp_path / "report" / "per_class.csv")["class"].tolist() == ["left", "right"]
    for mask in (tmp_path / "report" / "masks").iterdir():
        assert set(np.unique(np.asarray(Image.open(mask)))) <= {0, 4, 9}
    val, test = task.images().values()
    assert val.shape[1] > 1.9 * test.shape[1], "true beside predicted"


def test_void_pixels_count_neither_in_the_loss_nor_in_a_metric(own: dict[str, str]) -> None:
    for file in Path(own["gt_path"]).iterdir():
        mask = np.asarray(Image.open(file)).astype(np.uint16) // 255
        mask[:10] = 255
        Image.fromarray(mask.astype(np.uint8)).save(file)
    before = built(made(**own, void=255)).evaluate()
    for file in Path(own["image_path"]).iterdir():
        assert file.exists()
    task = built(made(**own, void="255"))
    assert task.evaluate() == before
    _, masks = next(iter(task.loader))
    assert set(masks.unique().tolist()) == {-1.0, 0.0, 1.0}
    with pytest.raises(DataError, match=r"(?s)more than two values.*255 in 12 masks"):
        build(made(**own))


def test_an_own_project_shows_its_data_before_the_first_step(own: dict[str, str]) -> None:
    config = made(**own, epochs=1, batch_size=8, shown=0)
    tracker = MemoryTracker()
    trainer = mltrain.Trainer(built(config), config, tracker)
    steps = trainer.steps()
    next(steps)
    assert list(tracker.pictures) == [("data/pairs", 0)]
    steps.close()
