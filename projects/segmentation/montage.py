"""Images and masks in one picture, to check before training."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from projects.segmentation.figures import stretched
from projects.segmentation.folders import Sample
from projects.segmentation.legend import VOID_COLOUR, beside, captioned, class_colours, painted, with_legend
from projects.segmentation.pixels import read_classes, read_image

_MOST, _COLUMNS, _SIDE, _GAP = 12, 3, 180, 10

Item = TypeVar("Item")


def evenly_spaced(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most ``most`` of the items, at even distances."""
    count = min(len(items), most)
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


def montage(samples: Sequence[Sample]) -> Image.Image:
    """Show a dozen samples at even distances: the image, and the image with its mask in colours.

    Above each stand its stem and the share of its pixels that belong to a class; below all stands a legend.
    """
    cells = [_pair(sample) for sample in evenly_spaced(samples, _MOST)]
    width, height = max(cell.width for cell in cells) + _GAP, max(cell.height for cell in cells) + _GAP
    columns = min(_COLUMNS, len(cells))
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(cells) // columns) * height), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (_GAP + number % columns * width, number // columns * height))
    labels = samples[0].labels
    entries = list(zip(labels.names, class_colours(len(labels.names)), strict=True))
    if any(sample.void for sample in samples):
        entries.append(("void", VOID_COLOUR))
    return with_legend(sheet, entries)


def _pair(sample: Sample) -> Image.Image:
    picture = stretched(read_image(sample.image))
    marked = painted(picture, read_classes(sample.mask, sample.labels), class_colours(len(sample.labels.classes)))
    scale = _SIDE / max(sample.height, sample.width)
    size = max(1, round(sample.width * scale)), max(1, round(sample.height * scale))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    both = [Image.fromarray(np.rint(one).astype(np.uint8)).resize(size, method) for one in (picture, marked)]
    share = sample.foreground / (sample.height * sample.width)
    return captioned(beside(both), f"{100 * share:.1f} %  {sample.stem}")
