"""Folders of styles as a user brings them: one folder a style, or ``trainA``, ``trainB``, ``testA``, ``testB``."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mltrain.errors import DataError
from projects.segmentation.folders import pictures_in


@dataclass(frozen=True, kw_only=True)
class Style:
    """A style: the files to learn it from, and other works that are held out."""

    name: str
    train: tuple[Path, ...]
    held_out: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, those to learn from first."""
        return self.train + self.held_out


def styles_in(
    root: Path, held_out: Path | None = None, *, fraction: float = 0.2, split_seed: int = 0
) -> tuple[Style, ...]:
    """Return the styles in a folder, by name.

    Args:
        root: a folder with a folder of pictures for each style. Where its folders are called ``trainA``, ``trainB``
            and so on (the layout of CycleGAN, Zhu et al. 2017), the styles are A and B, and ``testA`` and ``testB``
            are held out.
        held_out: a folder with a folder for each of these styles, all of which is held out. It may name them like ``root``
            does, or ``testA`` and ``testB``, or ``trainA`` and ``trainB``.
        fraction: the share of the pictures of a style to hold out where nothing else says which; at least one.
        split_seed: of the draw.

    Raises:
        DataError: there are fewer than two styles, or one has nothing to learn from or nothing held out.

    """
    folders = _folders_in(root)
    train = _without_prefix(folders, "train") or folders
    if len(train) < 2:
        raise DataError(
            f"{root} holds {len(train)} folders of pictures, and at least two styles are needed to go from one to the "
            "other. Expected: a folder of pictures for each style, or the folders trainA and trainB."
        )
    if held_out is not None:
        named = _folders_in(held_out)
        test = _without_prefix(named, "test") or _without_prefix(named, "train") or named
    else:
        test = _without_prefix(folders, "test") if train is not folders else {}
        if not test:
            return tuple(_drawn(name, folder, fraction, split_seed) for name, folder in train.items())
    missing = sorted(train.keys() - test.keys())
    if missing:
        raise DataError(
            f"No pictures of {', '.join(missing)} are held out: {held_out or root} has {', '.join(sorted(test)) or 'none'}. "
            f"Expected a folder for each style: {', '.join(sorted(train))}."
        )
    styles = tuple(
        Style(name=name, train=tuple(pictures_in(folder)), held_out=tuple(pictures_in(test[name])))
        for name, folder in train.items()
    )
    for style in styles:
        if both := {file.resolve() for file in style.train} & {file.resolve() for file in style.held_out}:
            raise DataError(
                f"{len(both)} pictures of {style.name} are to be trained on and held out, such as {min(both)}. Expected other "
                "pictures in test_image_dir than in image_dir. Try: without test_image_dir, which holds some out by a draw."
            )
    return styles


def _folders_in(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise DataError(f"There is no folder {root}. Check the path; a relative one starts at {Path.cwd()}.")
    return {
        folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")
    }


def _without_prefix(folders: Mapping[str, Path], prefix: str) -> dict[str, Path]:
    """The folders ``trainA``, ``trainB`` as A and B, if ``trainA`` is there."""
    if f"{prefix}A" not in folders:
        return {}
    return {name.removeprefix(prefix): folder for name, folder in folders.items() if name.startswith(prefix)}


def _drawn(name: str, folder: Path, fraction: float, split_seed: int) -> Style:
    files = pictures_in(folder)
    if len(files) < 2:
        raise DataError(
            f"The style {name!r} has one picture ({files[0]}). At least two are needed, one of which is held out; "
            "or give the held-out ones in test_image_dir."
        )
    held_out = set(random.Random(split_seed).sample(files, max(1, round(fraction * len(files)))))  # noqa: S311 - no secret
    return Style(
        name=name,
        train=tuple(file for file in files if file not in held_out),
        held_out=tuple(file for file in files if file in held_out),
    )
