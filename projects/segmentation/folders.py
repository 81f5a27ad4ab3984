"""A folder of images and a folder of masks, as a user brings them: paired by name, and checked file by file."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mltrain.errors import DataError
from projects.segmentation.pixels import FORMATS, UnreadablePixels, read_image, read_mask

MASK_SUFFIX = "_mask"

EmptyMasks = Literal["refuse", "keep", "drop"]
"""What becomes of images whose mask has no foreground."""

_MOST_LISTED = 100


@dataclass(frozen=True, kw_only=True)
class FolderPair:
    """A folder of images and the folder of masks that belongs to it; they may be one and the same."""

    images: Path
    masks: Path


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image with its mask, both known to be readable and of one size."""

    stem: str
    image: Path
    mask: Path
    height: int
    width: int
    channels: int
    foreground: int
    """Pixels of the mask that are foreground."""
    mean: float
    """Of the image's pixels, in [0, 1]."""
    mean_square: float


@dataclass(frozen=True)
class Survey:
    """What was found in a pair of folders: the sound samples, by stem, and all that is wrong with the rest."""

    samples: tuple[Sample, ...]
    problems: tuple["Problem", ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: its kind, and the file or stem that shows it."""

    kind: str
    subject: str


@dataclass(frozen=True)
class _Pair:
    stem: str
    image: Path
    mask: Path


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder by name; hidden files, folders in it and other endings are passed over.

    Raises:
        DataError: the folder does not exist, or holds no picture.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Check the path; a relative one starts at {Path.cwd()}.")
    files = [
        file for file in sorted(folder.iterdir()) if file.suffix.lower() in FORMATS and not file.name.startswith(".")
    ]
    if not files:
        found = sum(1 for _ in folder.iterdir())
        raise DataError(f"The folder {folder} holds {found} entries and no picture; {', '.join(FORMATS)} are read.")
    return files


def survey(folders: FolderPair, *, empty_masks: EmptyMasks = "refuse") -> Survey:
    """Pair images and masks by stem and read every file once.

    ``a.jpg`` belongs to ``a.png`` or to ``a_mask.png``, whichever endings they have. With one folder for both,
    the files whose stem ends in ``_mask`` are the masks.

    Raises:
        DataError: a folder does not exist or holds no picture; all else is a problem in what is returned.
    """
    pairs, problems = _paired(folders)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as readers:  # decoding releases the interpreter
        outcomes = list(readers.map(_examined, pairs))
    samples = []
    for outcome in outcomes:
        if not isinstance(outcome, Sample):
            problems += outcome
        elif outcome.foreground > 0 or empty_masks == "keep":
            samples.append(outcome)
        elif empty_masks == "refuse":
            problems.append(
                Problem(
                    "masks without foreground (empty_masks=keep or empty_masks=drop accepts them)", outcome.mask.name
                )
            )
    return Survey(tuple(samples), tuple(problems))


def require_sound(surveys: Iterable[tuple[FolderPair, Survey]]) -> None:
    """Say all at once what is wrong in any of the folders.

    Raises:
        DataError: there is a problem, or nothing is left to train or to validate on.
    """
    complaints = []
    for folders, found in surveys:
        if found.problems:
            complaints += [f"images {folders.images}, masks {folders.masks}:", *_listed(found.problems)]
        elif not found.samples:
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


def _paired(folders: FolderPair) -> tuple[list[_Pair], list[Problem]]:
    images, masks = pictures_in(folders.images), pictures_in(folders.masks)
    if folders.images.resolve() == folders.masks.resolve():
        images, masks = [f for f in images if not _is_marked(f)], [f for f in masks if _is_marked(f)]
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_stem[image.stem].append(image)
    masks_of: dict[str, list[Path]] = defaultdict(list)
    problems = []
    for mask in masks:
        stem = mask.stem if mask.stem in by_stem else mask.stem.removesuffix(MASK_SUFFIX)
        if stem in by_stem:
            masks_of[stem].append(mask)
        else:
            problems.append(Problem("masks without an image", mask.name))
    pairs = []
    for stem, found in by_stem.items():
        own = masks_of[stem]
        if len(found) > 1:
            problems.append(Problem("images with the same stem", _names(found)))
        if len(own) > 1:
            problems.append(Problem("masks for the same image", _names(own)))
        if not own:
            problems.append(Problem("images without a mask", _names(found)))
        if len(found) == len(own) == 1:
            pairs.append(_Pair(stem, found[0], own[0]))
    return pairs, problems


def _is_marked(file: Path) -> bool:
    return file.stem.endswith(MASK_SUFFIX)


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)


def _examined(pair: _Pair) -> Sample | list[Problem]:
    problems = []
    try:
        image = read_image(pair.image)
    except UnreadablePixels as error:
        problems.append(Problem("unreadable images", f"{pair.image.name} {error}"))
    try:
        mask = read_mask(pair.mask)
    except UnreadablePixels as error:
        problems.append(Problem("unreadable masks", f"{pair.mask.name} {error}"))
    if problems:
        return problems
    (channels, height, width), found = image.shape, mask.shape
    if (height, width) != found:
        sizes = f"{pair.image.name} {height}x{width}, {pair.mask.name} {found[0]}x{found[1]}"
        return [Problem("images and masks of different size (height x width)", sizes)]
    return Sample(
        stem=pair.stem,
        image=pair.image,
        mask=pair.mask,
        height=height,
        width=width,
        channels=channels,
        foreground=int(mask.sum()),
        mean=float(image.mean(dtype=np.float64)),
        mean_square=float(np.square(image, dtype=np.float64).mean()),
    )
