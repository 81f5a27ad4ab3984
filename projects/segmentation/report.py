"""What an evaluation leaves in a folder: masks, tables, curves, and the images that went worst."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from projects.segmentation import figures
from projects.segmentation.folders import Sample
from projects.segmentation.overlap import Overlap
from projects.segmentation.pixels import read_image, read_mask
from projects.segmentation.predict import Segmenter, write_mask


class ThresholdCurve:
    """Precision and recall over all pixels at the thresholds 0.01, 0.02 … 0.99, from counts and not from a sample."""

    thresholds = np.arange(1, 100) / 100

    def __init__(self) -> None:
        self._foreground = np.zeros(100, np.int64)
        self._background = np.zeros(100, np.int64)

    def add(self, logits: NDArray[np.float32], true: NDArray[np.bool_]) -> None:
        """Count the pixels of an image; both arrays are (H, W)."""
        # side="left": a pixel exactly at a threshold is not above it.
        bins = np.searchsorted(np.log(self.thresholds / (1 - self.thresholds)).astype(np.float32), logits, side="left")
        self._foreground += np.bincount(bins[true], minlength=100)
        self._background += np.bincount(bins[~true], minlength=100)

    def table(self) -> pd.DataFrame:
        """Columns threshold, precision, recall, f1 and iou, one row a threshold."""
        rows = []
        for index, threshold in enumerate(self.thresholds, start=1):
            overlap = Overlap(
                hit=int(self._foreground[index:].sum()),
                excess=int(self._background[index:].sum()),
                missed=int(self._foreground[:index].sum()),
            )
            rows.append((threshold, overlap.precision, overlap.recall, overlap.f1, overlap.iou))
        return pd.DataFrame(rows, columns=["threshold", "precision", "recall", "f1", "iou"])

    def average_precision(self) -> float:
        """Mean of the precision over the recall, as a sum of steps from the highest threshold to the lowest.

        The lowest step takes every pixel for foreground (scikit-learn's definition of average precision).
        """
        hits = np.append(0, self._foreground[::-1].cumsum())
        predicted = np.append(0, (self._foreground + self._background)[::-1].cumsum())
        if hits[-1] == 0:
            return 0.0
        precision = hits[1:] / np.maximum(predicted[1:], 1)
        return float((np.diff(hits) / hits[-1] * precision).sum())


@dataclass(frozen=True)
class Report:
    """Evaluates on the given samples at their own size, not at that of the network."""

    segmenter: Segmenter
    samples: Sequence[Sample]
    worst: int = 5
    """How many of the images with the lowest IoU are pictured."""

    def __call__(self, folder: Path) -> dict[str, float]:
        """Fill the folder and return the metrics, named as in training.

        ::

            masks/STEM.png             predictions, 8-bit, of the image's own size
            per_image.csv              pixels and scores of each image, the worst first
            precision_recall.csv/.png  over thresholds
            worst/01_STEM.png          hits green, excess red, missed blue
            metrics.json               what is returned
        """
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        curve, overlaps = ThresholdCurve(), {}
        for sample in self.samples:
            true = read_mask(sample.mask)
            logits = self.segmenter.logits(read_image(sample.image))
            predicted = self.segmenter.foreground(logits)
            write_mask(predicted, folder / "masks" / f"{sample.stem}.png")
            curve.add(logits, true)
            overlaps[sample.stem] = Overlap.of(predicted, true)

        table = self._per_image(overlaps)
        table.to_csv(folder / "per_image.csv", index=False)
        self._picture_worst(table, folder)
        over_thresholds = curve.table()
        over_thresholds.to_csv(folder / "precision_recall.csv", index=False)
        average_precision = curve.average_precision()
        figures.precision_recall(over_thresholds, self.segmenter.threshold, average_precision).savefig(
            folder / "precision_recall.png", dpi=120
        )
        total = sum(overlaps.values(), Overlap())
        metrics = {
            "val/iou": total.iou,
            "val/precision": total.precision,
            "val/recall": total.recall,
            "val/f1": total.f1,
            "val/iou_per_image": float(table["iou"].mean()),
            "val/f1_per_image": float(table["f1"].mean()),
            "val/average_precision": average_precision,
            "val/best_threshold": float(over_thresholds["threshold"][over_thresholds["f1"].argmax()]),
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        return metrics

    def _per_image(self, overlaps: dict[str, Overlap]) -> pd.DataFrame:
        rows = []
        for sample in self.samples:
            overlap = overlaps[sample.stem]
            rows.append(
                {
                    "stem": sample.stem,
                    "height": sample.height,
                    "width": sample.width,
                    "hit": overlap.hit,
                    "excess": overlap.excess,
                    "missed": overlap.missed,
                    "iou": overlap.iou,
                    "precision": overlap.precision,
                    "recall": overlap.recall,
                    "f1": overlap.f1,
                }
            )
        return pd.DataFrame(rows).sort_values(["iou", "stem"], ignore_index=True)

    def _picture_worst(self, table: pd.DataFrame, folder: Path) -> None:
        (folder / "worst").mkdir(exist_ok=True)
        by_stem = {sample.stem: sample for sample in self.samples}
        for rank, stem in enumerate(table["stem"][: self.worst], start=1):
            sample = by_stem[stem]
            predicted = read_mask(folder / "masks" / f"{stem}.png")
            picture = figures.overlay(read_image(sample.image), predicted, read_mask(sample.mask))
            Image.fromarray(picture).save(folder / "worst" / f"{rank:02d}_{stem}.png")
