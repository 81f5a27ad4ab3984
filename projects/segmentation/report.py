"""Write an evaluation to a folder: masks, tables, curves, worst images."""

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
from projects.segmentation.labels import VOID, LabelClass, Labels
from projects.segmentation.overlap import SCORES, iou, mean_of_present
from projects.segmentation.pixels import read_classes, read_image
from projects.segmentation.predict import Segmenter, write_mask
from projects.segmentation.values import Values


class ThresholdCurve:
    """Precision and recall over all pixels, thresholds 0.01 to 0.99."""

    thresholds = np.arange(1, 100) / 100

    def __init__(self) -> None:
        self._foreground = np.zeros(100, np.int64)
        self._background = np.zeros(100, np.int64)

    def add(self, logits: NDArray[np.float32], true: NDArray[np.bool_]) -> None:
        """Count the pixels of an image; both arrays have the same shape."""
        # side="left": a pixel exactly at a threshold is not above it.
        bins = np.searchsorted(np.log(self.thresholds / (1 - self.thresholds)).astype(np.float32), logits, side="left")
        self._foreground += np.bincount(bins[true], minlength=100)
        self._background += np.bincount(bins[~true], minlength=100)

    def table(self) -> pd.DataFrame:
        """One row per threshold: threshold, precision, recall, f1 and iou."""
        hit, excess = (counts[::-1].cumsum()[::-1][1:] for counts in (self._foreground, self._background))
        true = np.full_like(hit, self._foreground.sum())
        scores = {name: SCORES[name](hit, hit + excess, true) for name in ("precision", "recall", "f1", "iou")}
        return pd.DataFrame({"threshold": self.thresholds, **scores})

    def average_precision(self) -> float:
        """Mean of the precision over the recall, by steps.

        The steps go from the highest threshold to the lowest, which takes every pixel for foreground (scikit-learn's definition
        of average precision).
        """
        hits = np.append(0, self._foreground[::-1].cumsum())
        predicted = np.append(0, (self._foreground + self._background)[::-1].cumsum())
        if hits[-1] == 0:
            return 0.0
        precision = hits[1:] / np.maximum(predicted[1:], 1)
        return float((np.diff(hits) / hits[-1] * precision).sum())


@dataclass(frozen=True)
class Report:
    """Evaluate samples at their own size."""

    segmenter: Segmenter
    samples: Sequence[Sample]
    worst: int = 5
    """How many of the images with the lowest IoU are pictured."""

    def __call__(self, folder: Path) -> dict[str, float]:
        """Fill the folder and return metrics, named as in training.

        ::

            masks/STEM.png             predictions, of the image's own size
            per_image.csv              pixels and scores of each image, the worst first
            precision_recall.csv/.png  over thresholds, for one class
            per_class.csv              pixels and scores of each class, for several
            worst/01_STEM.png          hits green, excess red, missed blue; or true and predicted classes
            metrics.json               what is returned
        """
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        names = self.samples[0].labels.names
        curve, overlaps = ThresholdCurve(), {}
        for sample in self.samples:
            true = read_classes(sample.mask, sample.labels)
            logits = self.segmenter.logits(read_image(sample.image))
            predicted = self.segmenter.classes(logits)
            write_mask(predicted, folder / "masks" / f"{sample.stem}.png", self.segmenter.values)
            judged = true != VOID
            if len(names) == 1:
                curve.add(logits[judged], true[judged] > 0)
            overlaps[sample.stem] = _counts(predicted[judged], true[judged], len(names))
        self.segmenter.warn_of_other_scale([(sample.height, sample.width) for sample in self.samples])

        table = self._per_image(overlaps)
        table.to_csv(folder / "per_image.csv", index=False)
        self._picture_worst(table, folder)
        totals = np.sum(list(overlaps.values()), axis=0)
        row = _row(totals)
        metrics = {f"val/{name}": row[name] for name in SCORES}
        metrics |= {f"val/{name}_per_image": float(table[name].mean()) for name in ("iou", "f1")}
        if len(names) == 1:
            metrics |= self._over_thresholds(curve, folder)
        else:
            rows = {name: _row(totals[:, [index]]) for index, name in enumerate(names)}
            pd.DataFrame.from_dict(rows, orient="index").rename_axis("class").to_csv(folder / "per_class.csv")
            metrics |= {f"val/{score}_{name}": row[score] for name, row in rows.items() for score in ("iou", "f1")}
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        return metrics

    def _over_thresholds(self, curve: ThresholdCurve, folder: Path) -> dict[str, float]:
        table, average_precision = curve.table(), curve.average_precision()
        table.to_csv(folder / "precision_recall.csv", index=False)
        figures.precision_recall(table, self.segmenter.threshold, average_precision).savefig(
            folder / "precision_recall.png", dpi=120
        )
        return {
            "val/average_precision": average_precision,
            "val/best_threshold": float(table["threshold"][table["f1"].argmax()]),
        }

    def _per_image(self, overlaps: dict[str, NDArray[np.int64]]) -> pd.DataFrame:
        rows = []
        for sample in self.samples:
            of_image = overlaps[sample.stem]
            row = {"stem": sample.stem, "height": sample.height, "width": sample.width, **_row(of_image)}
            if len(sample.labels.names) > 1:
                row |= {f"iou_{name}": one for name, one in zip(sample.labels.names, iou(*of_image), strict=True)}
            rows.append(row)
        return pd.DataFrame(rows).sort_values(["iou", "stem"], ignore_index=True)

    def _picture_worst(self, table: pd.DataFrame, folder: Path) -> None:
        (folder / "worst").mkdir(exist_ok=True)
        by_stem = {sample.stem: sample for sample in self.samples}
        written = Labels(tuple(LabelClass(str(value), Values.only(value)) for value in self.segmenter.values[1:]))
        for rank, stem in enumerate(table["stem"][: self.worst], start=1):
            sample = by_stem[stem]
            image, true = read_image(sample.image), read_classes(sample.mask, sample.labels)
            predicted = read_classes(folder / "masks" / f"{stem}.png", written)
            picture = (
                figures.overlay(image, predicted > 0, true)
                if len(sample.labels.classes) == 1
                else figures.class_overlay(image, predicted, sample.labels.names, true)
            )
            Image.fromarray(picture).save(folder / "worst" / f"{rank:02d}_{stem}.png")


def _counts(predicted: NDArray[np.integer], true: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Return the hit, predicted and true pixels (3, K) of K classes."""
    parts = (true[predicted == true], predicted, true)
    return np.array([np.bincount(part, minlength=classes + 1)[1:] for part in parts])


def _row(counts: NDArray[np.int64]) -> dict[str, float]:
    """Return pixels of all classes, and mean scores, of counts (3, K).

    The mean is over the classes that occur. Without any it is 1.
    """
    hit, predicted, true = counts.sum(1).tolist()
    scores = {name: float(mean_of_present(score(*counts), counts[1] + counts[2])) for name, score in SCORES.items()}
    return {"hit": hit, "excess": predicted - hit, "missed": true - hit, **scores}
