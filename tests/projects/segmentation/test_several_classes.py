from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mltrain.errors import DataError
from projects.segmentation.project import build
from tests.projects.segmentation.conftest import built, made, train


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
