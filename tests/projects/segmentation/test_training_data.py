from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mltrain.errors import DataError
from projects.segmentation.folders import FolderPair
from projects.segmentation.project import build, read_samples
from projects.segmentation.synthetic import Blobs
from tests.projects.segmentation.conftest import built, made


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
