"""Division of samples into training and held-out ones."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mltrain.errors import DataError
from projects.groups import group_of
from projects.segmentation.folders import Sample

Parts = tuple[tuple[Sample, ...], tuple[Sample, ...]]
"""The samples to train on and those held out."""


def drawn(samples: Sequence[Sample], fraction: float, seed: int, group_regex: str | None = None) -> Parts:
    """Hold out about ``fraction`` of the samples; the same names and seed give the same ones.

    Args:
        samples: all samples, in any order.
        fraction: share to hold out, between 0 and 1. Both parts get at least one sample (or group).
        seed: determines the draw.
        group_regex: regular expression searched in each stem. The match (or its first group in parentheses) names the
            group of the sample; a group is never divided. If ``None``, every sample is its own group.

    Raises:
        DataError: the expression does not match every stem, or there are fewer than two groups.
    """
    groups = _groups(samples, group_regex)
    if len(groups) < 2:
        what = f"samples, all in the group {next(iter(groups))!r}" if group_regex and groups else "sample"
        raise DataError(
            f"{len(samples)} {what}: nothing can be held out. Give val_image_path and val_gt_path, or more data"
            + (f", or another group_regex than {group_regex!r}." if group_regex else ".")
        )
    names = sorted(groups)
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    wanted = fraction * len(samples)
    held: set[str] = set()
    count = 0
    for name in order[:-1]:
        # A group is taken as long as that brings the number of held-out samples closer to the wanted one.
        if held and abs(count + len(groups[name]) - wanted) >= abs(count - wanted):
            continue
        held.add(name)
        count += len(groups[name])
    return _parted(samples, {sample.stem for name in held for sample in groups[name]}.__contains__)


def tabled(samples: Sequence[Sample], table: Path) -> Parts:
    """Divide samples by a CSV file of ``stem`` and ``split``.

    A stem may be a file name. ``split`` is ``train``, ``val`` or ``test``; samples marked ``test`` are left out.

    Raises:
        DataError: the file cannot be read, its stems are not exactly those of the samples, or a part is empty.
    """
    try:
        rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"The table of splits {table} cannot be read: {error}.") from None
    if not {"stem", "split"} <= set(rows.columns):
        raise DataError(f"The table {table} has the columns {', '.join(rows.columns)}. Expected stem and split.")
    stems = {sample.stem for sample in samples}
    named = [stem if stem in stems else Path(stem).stem for stem in rows["stem"].str.strip()]
    part_of = dict(zip(named, rows["split"].str.strip(), strict=True))
    complaints = {
        "listed twice": sorted({stem for stem in named if named.count(stem) > 1}),
        "with a split other than train, val and test": sorted(s for s, part in part_of.items() if part not in _PARTS),
        "without a row": sorted(stems - part_of.keys()),
        "without an image": sorted(part_of.keys() - stems),
    }
    if any(complaints.values()):
        listed = "\n".join(f"  {kind}: {', '.join(found)}" for kind, found in complaints.items() if found)
        raise DataError(f"The table {table} does not divide the images. Expected one row for each stem.\n{listed}")
    train = tuple(sample for sample in samples if part_of[sample.stem] == "train")
    val = tuple(sample for sample in samples if part_of[sample.stem] == "val")
    if not train or not val:
        raise DataError(
            f"The table {table} gives {len(train)} samples to train and {len(val)} to val. Expected one or more each."
        )
    return train, val


_PARTS = ("train", "val", "test")


def _groups(samples: Sequence[Sample], regex: str | None) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    unmatched = []
    for sample in samples:
        name = group_of(sample.stem, regex)
        if name is None:
            unmatched.append(sample.stem)
        else:
            groups[name].append(sample)
    if unmatched:
        raise DataError(f"group_regex={regex!r} does not match {len(unmatched)} stems: {', '.join(unmatched)}.")
    return dict(groups)


def _parted(samples: Sequence[Sample], is_held: Callable[[str], bool]) -> Parts:
    train = tuple(sample for sample in samples if not is_held(sample.stem))
    return train, tuple(sample for sample in samples if is_held(sample.stem))
