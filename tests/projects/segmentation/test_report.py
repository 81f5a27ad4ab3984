import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from projects.segmentation.folders import FolderPair, Sample
from projects.segmentation.model import SegmentationNet
from projects.segmentation.pixels import read_image
from projects.segmentation.predict import Segmenter
from projects.segmentation.report import Report, ThresholdCurve
from projects.segmentation.synthetic import Blobs
from tests.projects.segmentation.conftest import read_mask, survey


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    """Pictures of two sizes, both different from the network's."""
    pair = FolderPair(images=tmp_path / "data" / "images", masks=tmp_path / "data" / "masks")
    Blobs(height=50, width=30).write(pair, 4, seed=0)
    for file in (*pair.images.iterdir(), *pair.masks.iterdir()):
        file.rename(file.with_name(f"tall_{file.name}"))
    Blobs(height=36, width=70).write(pair, 3, seed=1)
    return survey(pair).samples


@pytest.fixture
def report(samples: tuple[Sample, ...]) -> Report:
    torch.manual_seed(0)
    return Report(Segmenter(SegmentationNet(1, (40, 48), 0.4, 0.1), (40, 48)), samples, worst=2)


def test_masks_have_the_size_of_their_images_and_the_stem(tmp_path: Path, report: Report) -> None:
    report(tmp_path / "out")
    shapes = {file.stem: read_mask(file).shape for file in (tmp_path / "out" / "masks").iterdir()}
    assert shapes == {sample.stem: (sample.height, sample.width) for sample in report.samples}


def test_the_table_holds_every_image_the_worst_first(tmp_path: Path, report: Report) -> None:
    report(tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "per_image.csv")
    assert set(table["stem"]) == {sample.stem for sample in report.samples}
    assert table["iou"].is_monotonic_increasing
    np.testing.assert_allclose(table["f1"], 2 * table["iou"] / (1 + table["iou"]))
    np.testing.assert_allclose(table["iou"], table["hit"] / (table["hit"] + table["excess"] + table["missed"]))
    foreground = {sample.stem: sample.foreground for sample in report.samples}
    assert [foreground[stem] for stem in table["stem"]] == (table["hit"] + table["missed"]).tolist()


def test_the_scores_are_those_of_the_masks_that_were_written(tmp_path: Path, report: Report) -> None:
    metrics = report(tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "per_image.csv")
    hit, excess, missed = (table[column].sum() for column in ("hit", "excess", "missed"))
    assert metrics["val/iou"] == pytest.approx(hit / (hit + excess + missed))
    assert metrics["val/precision"] == pytest.approx(hit / (hit + excess))
    assert metrics["val/recall"] == pytest.approx(hit / (hit + missed))
    assert metrics["val/f1"] == pytest.approx(2 * metrics["val/iou"] / (1 + metrics["val/iou"]))
    assert metrics["val/iou_per_image"] == pytest.approx(table["iou"].mean())
    for sample in report.samples:
        written = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{sample.stem}.png")) > 0
        true = np.asarray(Image.open(sample.mask)) > 0
        assert table.set_index("stem").loc[sample.stem, "hit"] == (written & true).sum()


def test_what_is_returned_is_also_written(tmp_path: Path, report: Report) -> None:
    metrics = report(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics


def test_the_worst_images_are_pictured_in_their_order(tmp_path: Path, report: Report) -> None:
    report(tmp_path / "out")
    worst = pd.read_csv(tmp_path / "out" / "per_image.csv")["stem"][:2]
    pictured = sorted(file.name for file in (tmp_path / "out" / "worst").iterdir())
    assert pictured == [f"{rank:02d}_{stem}.png" for rank, stem in enumerate(worst, start=1)]


def test_the_curve_at_the_threshold_in_use_gives_the_scores(tmp_path: Path, report: Report) -> None:
    metrics = report(tmp_path / "out")
    curve = pd.read_csv(tmp_path / "out" / "precision_recall.csv").set_index("threshold")
    assert curve.loc[0.5, "iou"] == pytest.approx(metrics["val/iou"])
    assert curve["recall"].is_monotonic_decreasing
    assert curve["f1"].idxmax() == metrics["val/best_threshold"]
    assert read_image(tmp_path / "out" / "precision_recall.png").shape == (3, 600, 600)


def test_a_second_report_into_the_same_folder_replaces_the_first(tmp_path: Path, report: Report) -> None:
    assert report(tmp_path / "out") == report(tmp_path / "out")


def scored() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    random = np.random.default_rng(0)
    true = random.random((60, 50)) < 0.2
    return (2 * true - 1 + 1.5 * random.standard_normal(true.shape)).astype(np.float32), true


def test_the_curve_counts_as_scikit_learn_does() -> None:
    logits, true = scored()
    curve = ThresholdCurve()
    curve.add(logits[:30], true[:30])
    curve.add(logits[30:], true[30:])
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    table = curve.table()
    assert len(table) == 99
    for row in table.iloc[::14].itertuples():
        precision, recall, f1, _ = precision_recall_fscore_support(
            true.ravel(), probability.ravel() > row.threshold, average="binary"
        )
        assert (row.precision, row.recall, row.f1) == pytest.approx((precision, recall, f1))


def test_a_pixel_exactly_at_a_threshold_is_not_above_it() -> None:
    curve = ThresholdCurve()
    curve.add(np.zeros((1, 1), np.float32), np.ones((1, 1), bool))
    recall = curve.table().set_index("threshold")["recall"]
    assert (recall[0.49], recall[0.5]) == (1.0, 0.0)


def test_average_precision_agrees_with_scikit_learn_on_the_same_thresholds() -> None:
    logits, true = scored()
    curve = ThresholdCurve()
    curve.add(logits, true)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    binned = np.ceil(probability * 100).clip(1, 100)
    assert curve.average_precision() == pytest.approx(average_precision_score(true.ravel(), binned.ravel()))
    assert curve.average_precision() == pytest.approx(
        average_precision_score(true.ravel(), probability.ravel()), abs=0.01
    )
