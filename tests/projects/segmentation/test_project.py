from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mltrain
from mltrain.testing import MemoryTracker
from projects.segmentation.folders import FolderPair
from projects.segmentation.project import Config
from projects.segmentation.synthetic import Blobs
from tests.projects.segmentation.conftest import CONFIG_FILE, built, made, train


def test_sixteen_bits_of_which_twelve_are_used_train_like_eight(own: dict[str, str]) -> None:
    eight = train(built(made(**own, brightness=0.2, noise=0.1)), 2)
    for file in Path(own["image_path"]).iterdir():
        Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 16).save(file)
    twelve = train(built(made(**own, brightness=0.2, noise=0.1)), 2)
    assert twelve == pytest.approx(eight, rel=1e-3)


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
    """Train two epochs, handing the state to a new task. Returns the weights."""

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


def test_an_own_project_shows_its_data_before_the_first_step(own: dict[str, str]) -> None:
    config = made(**own, epochs=1, batch_size=8, shown=0)
    tracker = MemoryTracker()
    trainer = mltrain.Trainer(built(config), config, tracker)
    steps = trainer.steps()
    next(steps)
    assert list(tracker.pictures) == [("data/pairs", 0)]
    steps.close()


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
