"""Pair masks with images by their names."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mltrain.errors import DataError
from projects.segmentation.pixels import FORMATS

MASK_SUFFIX = "_mask"
"""Suffix that the stem of a mask may add to that of its image, unless the user names another."""


@dataclass(frozen=True, kw_only=True)
class FolderPair:
    """A folder of images and its folder of masks (possibly the same)."""

    images: Path
    masks: Path


@dataclass(frozen=True)
class Problem:
    """One problem: its kind, and the file or stem that has it."""

    kind: str
    subject: str


@dataclass(frozen=True)
class Pair:
    """An image and its mask, by the image's stem."""

    stem: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Pairing:
    """Pairs of two folders by stem, with problems and hints.

    ``hints`` names the pairs whose names differ in Unicode form or capital letters.
    """

    pairs: tuple[Pair, ...]
    problems: tuple[Problem, ...]
    hints: tuple[str, ...]


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files of a folder, sorted by name.

    Hidden files, subfolders and files with another suffix are ignored.

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


def paired(folders: FolderPair, suffix: str = MASK_SUFFIX) -> Pairing:
    """Pair images and masks: ``a.jpg`` belongs to ``a.png`` or to ``a_mask.png``, whichever endings they have.

    Names that are equal but for their Unicode form or for capital letters are paired with a hint, where nothing else fits
    them. With one folder for both, the files whose stem ends in the suffix are the masks.

    Raises:
        DataError: a folder does not exist or holds no picture.
    """
    images, masks = pictures_in(folders.images), pictures_in(folders.masks)
    if folders.images.resolve() == folders.masks.resolve():
        images = [file for file in images if not file.stem.endswith(suffix)]
        masks = [file for file in masks if file.stem.endswith(suffix)]
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_stem[image.stem].append(image)
    masks_of, strangers = _by_exact_name(masks, by_stem, suffix)
    hints, strangers = _by_similar_name(strangers, by_stem, masks_of, suffix)
    problems = [Problem("masks without an image", mask.name) for mask in strangers]
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
            pairs.append(Pair(stem, found[0], own[0]))
    lone = [stem for stem in by_stem if not masks_of[stem]]
    if (other := _common_suffix(lone, [mask.stem for mask in strangers])) is not None:
        problems.append(Problem("names of masks have a suffix of their own; try", f"mask_suffix={other}"))
    return Pairing(tuple(pairs), tuple(problems), tuple(hints))


def _by_exact_name(
    masks: Sequence[Path], by_stem: dict[str, list[Path]], suffix: str
) -> tuple[dict[str, list[Path]], list[Path]]:
    masks_of: dict[str, list[Path]] = defaultdict(list)
    strangers = []
    for mask in masks:
        stem = mask.stem if mask.stem in by_stem else mask.stem.removesuffix(suffix)
        if stem in by_stem:
            masks_of[stem].append(mask)
        else:
            strangers.append(mask)
    return masks_of, strangers


def _by_similar_name(
    strangers: Sequence[Path], by_stem: dict[str, list[Path]], masks_of: dict[str, list[Path]], suffix: str
) -> tuple[list[str], list[Path]]:
    """Pair the remaining masks by folded name; return the hints and the unpaired masks."""
    alike: dict[str, list[str]] = defaultdict(list)
    for stem in by_stem:
        if not masks_of[stem]:
            alike[_folded(stem)].append(stem)
    hints, left = [], []
    for mask in strangers:
        name = _folded(mask.stem)
        stems = alike.get(name) or alike.get(name.removesuffix(_folded(suffix)), [])
        if len(stems) != 1:
            left.append(mask)
            continue
        masks_of[stems[0]].append(mask)
        hints.append(f"{by_stem[stems[0]][0].name} with {mask.name}")
    return hints, left


def _folded(stem: str) -> str:
    """Return a name in Unicode form NFC, with case folded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKD", stem).casefold())


def _common_suffix(images: Sequence[str], masks: Sequence[str]) -> str | None:
    """Return the masks' common suffix to image stems, if any."""
    found = {mask[len(stem) :] for mask in masks for stem in images if mask.startswith(stem) and mask != stem}
    if len(found) != 1:
        return None
    suffix = found.pop()
    return suffix if all(f"{stem}{suffix}" in masks for stem in images) else None


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)
