"""Pair and check the images and masks of two folders."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mltrain.errors import DataError
from projects.segmentation.labels import VOID, Content, Declaration, LabelClass, Labels, UnclearLabels
from projects.segmentation.pairing import MASK_SUFFIX, FolderPair, Pair, Problem, paired, pictures_in
from projects.segmentation.pixels import UnreadablePixels, read_image, read_values
from projects.segmentation.values import Values

__all__ = ["FolderPair", "Problem", "Sample", "Survey", "pictures_in", "require_sound", "survey_all"]

log = logging.getLogger(__name__)

EmptyMasks = Literal["refuse", "keep", "drop"]
"""Refuse, keep or drop images whose mask has no foreground."""

_MOST_LISTED = 100

TWO_VALUES = Labels((LabelClass("foreground", Values.parse("nonzero")),))
"""The labels of a mask of 0 and one other value."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A readable image and mask of one size."""

    stem: str
    image: Path
    mask: Path
    height: int
    width: int
    channels: int
    foreground: int
    """Pixels of the mask that belong to a class."""
    mean: float
    """Mean of the image's pixels, in [0, 1]."""
    mean_square: float
    """Mean of their squares."""
    labels: Labels = TWO_VALUES
    """What the values of the mask mean; the same for all samples of a data set."""
    void: int = 0
    """Void pixels of the mask."""
    per_class: tuple[int, ...] = ()
    """Pixels of each class."""


@dataclass(frozen=True)
class Survey:
    """The samples of two folders, by stem, and all problems."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    hints: tuple[str, ...] = ()
    """Images and masks that were paired although their names differ in Unicode form or capital letters."""


@dataclass(frozen=True)
class _Examined:
    """A pair with the properties of its files."""

    pair: Pair
    height: int
    width: int
    channels: int
    mean: float
    mean_square: float
    content: Content


def survey_all(
    pairs: Sequence[FolderPair],
    *,
    empty_masks: EmptyMasks = "refuse",
    declaration: Declaration = Declaration(),  # noqa: B008 - a frozen value
    mask_suffix: str = MASK_SUFFIX,
) -> list[Survey]:
    """Survey the folders of one data set with common labels.

    Images and masks are paired by name, every file is read once, and the masks decide the meaning of their values.

    Args:
        pairs: the training folders, and the held-out folders.
        empty_masks: whether images whose mask has no foreground are refused, kept or dropped.
        declaration: the user's declaration of the mask values.
        mask_suffix: suffix that the stem of a mask may add to that of its image.

    Raises:
        DataError: a folder does not exist or holds no picture; every other problem is in the returned survey.
    """
    pairings = [paired(folders, mask_suffix) for folders in pairs]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as readers:  # decoding releases the interpreter
        outcomes = [list(readers.map(_examined, pairing.pairs)) for pairing in pairings]
    for pairing in pairings:
        if pairing.hints:
            log.warning(
                "%d images are paired with masks whose names differ in Unicode form or capital letters: %s%s",
                len(pairing.hints),
                "; ".join(pairing.hints[:3]),
                "; …" if len(pairing.hints) > 3 else "",
            )
    contents = [[one.content for one in found if isinstance(one, _Examined)] for found in outcomes]
    labels, unclear = _decided(declaration, contents, empty_masks)
    surveys = []
    for pairing, outcome, why in zip(pairings, outcomes, unclear, strict=True):
        problems = [*pairing.problems, *why]
        samples = []
        for one in outcome:
            if not isinstance(one, _Examined):
                problems += one
            elif labels is not None:
                sample = _sample(one, labels)
                if sample.foreground > 0 or empty_masks == "keep":
                    samples.append(sample)
                elif empty_masks == "refuse":
                    problems.append(Problem(_EMPTY, sample.mask.name))
        surveys.append(Survey(tuple(samples), tuple(problems), pairing.hints))
    return surveys


_EMPTY = "masks without foreground (empty_masks=keep or empty_masks=drop accepts them)"


def _decided(
    declaration: Declaration, contents: Sequence[Sequence[Content]], empty_masks: EmptyMasks
) -> tuple[Labels | None, list[tuple[Problem, ...]]]:
    """Return the labels, or ``None`` and each folder pair's problems."""
    try:
        return declaration.labels([one for found in contents for one in found]), [()] * len(contents)
    except UnclearLabels as error:
        problems = tuple(Problem(error.kind, example) for example in error.examples)
        # The rule is about the data set, so the first pair of folders names it for all.
        shared = [problems if number == 0 else () for number in range(len(contents))]
        return None, [
            (*why, *(Problem(_EMPTY, one.name) for one in found if empty_masks == "refuse" and set(one.pixels) == {0}))
            for why, found in zip(shared, contents, strict=True)
        ]


def _sample(one: _Examined, labels: Labels) -> Sample:
    counts = labels.counts(one.content)
    per_class = tuple(counts.get(index, 0) for index in range(1, len(labels.classes) + 1))
    return Sample(
        stem=one.pair.stem,
        image=one.pair.image,
        mask=one.pair.mask,
        height=one.height,
        width=one.width,
        channels=one.channels,
        foreground=sum(per_class),
        mean=one.mean,
        mean_square=one.mean_square,
        labels=labels,
        void=counts.get(VOID, 0),
        per_class=per_class,
    )


def require_sound(surveys: Iterable[tuple[FolderPair, Survey]]) -> None:
    """Raise one error that lists the problems of all folders.

    Raises:
        DataError: there is a problem, or nothing is left to train or to validate on.
    """
    complaints: list[str] = []
    surveys = list(surveys)
    unclear = any(found.problems for _, found in surveys)
    for folders, found in surveys:
        if found.problems:
            complaints += [f"images {folders.images}, masks {folders.masks}:", *_listed(found.problems)]
        elif found.samples and all(sample.void == sample.height * sample.width for sample in found.samples):
            complaints += [
                f"images {folders.images}, masks {folders.masks}:",
                "  every pixel of every mask is void: nothing is left to learn or to judge",
            ]
        elif not found.samples and not unclear:
            complaints += [
                f"images {folders.images}, masks {folders.masks}:",
                "  no sample is left: every mask is empty",
            ]
    if complaints:
        raise DataError(
            "The images and masks do not fit together.\n" + "\n".join(complaints) + "\n"
            "Expected: for each image one mask of the same height and width, named alike (a.jpg with a.png or a_mask.png)."
        )


def _listed(problems: Sequence[Problem]) -> list[str]:
    by_kind: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        by_kind[problem.kind].append(problem.subject)
    lines = []
    for kind, subjects in by_kind.items():
        rest = len(subjects) - _MOST_LISTED
        lines.append(
            f"  {kind}: {len(subjects)}\n    "
            + "\n    ".join(subjects[:_MOST_LISTED])
            + (f"\n    … and {rest} more" if rest > 0 else "")
        )
    return lines


def _examined(pair: Pair) -> _Examined | list[Problem]:
    problems = []
    try:
        image = read_image(pair.image)
    except UnreadablePixels as error:
        problems.append(Problem("unreadable images", f"{pair.image.name} {error}"))
    try:
        mask = read_values(pair.mask)
    except UnreadablePixels as error:
        problems.append(Problem("unreadable masks", f"{pair.mask.name} {error}"))
    if problems:
        return problems
    (channels, height, width), found = image.shape, mask.values.shape
    if (height, width) != found:
        sizes = f"{pair.image.name} {height}x{width}, {pair.mask.name} {found[0]}x{found[1]}"
        return [Problem("images and masks of different size (height x width)", sizes)]
    return _Examined(
        pair=pair,
        height=height,
        width=width,
        channels=channels,
        mean=float(image.mean(dtype=np.float64)),
        mean_square=float(np.square(image, dtype=np.float64).mean()),
        content=mask.content(pair.mask.name),
    )
