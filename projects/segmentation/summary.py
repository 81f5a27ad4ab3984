"""The first lines of a training: the pairs found in the folders, and the scale at which the network sees them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from projects.segmentation.folders import Sample
from projects.segmentation.framing import Framing, median_size, other_scale

_SMALL_PART = 0.05


def summary(train: Sequence[Sample], val: Sequence[Sample], frame: Framing) -> tuple[str, ...]:
    """Return lines on pairs, sizes, class shares and scale."""
    lines = [
        f"Pairs: {len(train)} to train on, {len(val)} held out; sizes (height x width) {_sizes([*train, *val])}",
        f"Masks: {train[0].labels}; {_shares(train)} of the pixels to train on, the rest is background",
        _scale(frame),
    ]
    for name, samples in (("training", train), ("held-out", val)):
        if others := other_scale(frame, [(sample.height, sample.width) for sample in samples]):
            lines.append(
                f"WARNING {len(others)} of {len(samples)} {name} images, such as one of {others[0][0]}x{others[0][1]}, are "
                "scaled by another factor than the median training image; resize=none keeps the scale of every image"
            )
    height, width = median_size(train)
    part = frame.window[0] * frame.window[1] / (height * width)
    if frame.stretched_to is None and part < _SMALL_PART:
        lines.append(
            f"A crop shows {100 * part:.1f} % of the median image. If objects are larger than a crop, give resize=stretch "
            "or a larger crop_size"
        )
    return tuple(lines)


def _sizes(samples: Sequence[Sample]) -> str:
    sizes = Counter((sample.height, sample.width) for sample in samples)
    if len(sizes) <= 3:
        return ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
    smallest, largest = (limit(sizes, key=lambda size: size[0] * size[1]) for limit in (min, max))
    return f"{smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}"


def _shares(samples: Sequence[Sample]) -> str:
    pixels = sum(sample.height * sample.width for sample in samples)
    counts = np.array([sample.per_class for sample in samples]).sum(0)
    parts = [
        f"{name} {100 * count / pixels:.1f} %" for name, count in zip(samples[0].labels.names, counts, strict=True)
    ]
    void = sum(sample.void for sample in samples)
    if samples[0].labels.void.ranges:
        parts.append(f"void {100 * void / pixels:.1f} %")
    return ", ".join(parts)


def _scale(frame: Framing) -> str:
    window = f"{frame.window[0]}x{frame.window[1]}"
    if frame.stretched_to is None:
        return (
            f"Scale: every image keeps its own; trained on random crops of {window}, predicted in windows of that size"
        )
    (height, width), (vertical, horizontal) = frame.stretched_to, frame.scale
    stretched = (
        f"Scale: every image is stretched to {height}x{width}, the median one by {vertical:.2f} and {horizontal:.2f}"
    )
    return stretched if frame.window == frame.stretched_to else f"{stretched}; random crops of {window}"
