"""Predictions for a fixed set of images, drawn during training."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mltrain.errors import DataError
from projects.segmentation.figures import class_overlay, overlay
from projects.segmentation.folders import Sample
from projects.segmentation.montage import evenly_spaced
from projects.segmentation.pairing import pictures_in
from projects.segmentation.pixels import UnreadablePixels, read_classes, read_image
from projects.segmentation.predict import Segmenter


class Gallery:
    """Overlays of held-out samples (``val/1_STEM``) and of images without masks (``test/1_STEM``).

    Args:
        segmenter: makes the predictions.
        samples: samples to choose from, at even distances.
        unjudged: a folder of images without masks, if any.
        most: how many of each are shown, at most.

    Raises:
        DataError: the folder is not there, or one of the images to be shown from it cannot be read.
    """

    def __init__(self, segmenter: Segmenter, samples: Sequence[Sample], unjudged: Path | None, most: int) -> None:
        self._segmenter = segmenter
        self._labels = samples[0].labels
        self._samples = evenly_spaced(samples, most)
        self._unjudged = [] if unjudged is None else evenly_spaced(pictures_in(unjudged), most)
        for file in self._unjudged:
            try:
                read_image(file)
            except UnreadablePixels as error:
                raise DataError(f"{file} {error}. Repair it, or take it out of test_image_dir.") from None

    def __call__(self) -> dict[str, NDArray[np.uint8]]:
        """Return pictures (H, W, 3) by name."""
        judged = {
            _name("val", number, sample.stem): self._shown(sample.image, sample.mask)
            for number, sample in enumerate(self._samples, start=1)
        }
        unjudged = {
            _name("test", number, file.stem): self._shown(file, None)
            for number, file in enumerate(self._unjudged, start=1)
        }
        return judged | unjudged

    def _shown(self, file: Path, mask: Path | None) -> NDArray[np.uint8]:
        image = read_image(file)
        predicted = self._segmenter.classes(self._segmenter.logits(image))
        true = None if mask is None else read_classes(mask, self._labels)
        if len(self._labels.classes) > 1:
            return class_overlay(image, predicted, self._labels.names, true)
        return overlay(image, predicted > 0, true)


def _name(part: str, number: int, stem: str) -> str:
    """Return a name of characters that MLflow accepts; the number makes it unique."""
    return f"{part}/{number}_{re.sub(r'[^A-Za-z0-9_.-]', '_', stem)[:80]}"
