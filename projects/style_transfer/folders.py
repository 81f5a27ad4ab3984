"""Folders of styles: one folder per style, or ``trainA``, ``trainB``, ``testA``, ``testB``."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mltrain.errors import DataError
from projects.segmentation.folders import pictures_in


@dataclass(frozen=True, kw_only=True)
class Style:
    """A style: its training files and its held-out files."""

    name: str
    train: tuple[Path, ...]
    held_out: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, the training files first."""
        return self.train + self.held_out


def styles_in(
    root: Path, held_out: Path | None = None, *, fraction: float = 0.2, split_seed: int = 0
) -> tuple[Style, ...]:
    """Return the styles in a folder, by name.

    Args:
        root: a folder with a folder of pictures for each style. Where its folders are called ``trainA``, ``trainB``
            and so on (the layout of CycleGAN, Zhu et al. 2017), the styles are A and B, and ``testA`` and ``testB``
            are held out.
        held_out: a folder of held-out pictures, with a folder for each of these styles. Their names are those in ``root``,
            ``testA`` and ``testB``, or ``trainA`` and ``trainB``. If ``None``, and ``root`` has no ``testA``, a random
            share is held out.
        fraction: this share, of the pictures of each style; at least one picture.
        split_seed: determines the draw.

    Raises:
        DataError: there are fewer than two styles, or one has no training or no held-out pictures.

    """
    folders = _folders_in(root)
    train = _without_prefix(folders, "train") or folders
    if len(train) < 2:
        raise DataError(
            f"{root} holds {len(train)} folders of pictures. Expected at least two styles: a folder of pictures for each, or "
            "the folders trainA and trainB."
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
                f"{len(both)} pictures of {style.name} are both trained on and held out, such as {min(both)}. Expected other "
                "pictures in test_image_dir than in image_dir. Try: leave test_image_dir out, to hold out a random share."
            )
    return styles


def _folders_in(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise DataError(f"There is no folder {root}. Check the path; a relative path starts at {Path.cwd()}.")
    return {
        folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")
    }


def _without_prefix(folders: Mapping[str, Path], prefix: str) -> dict[str, Path]:
    """Return ``trainA``, ``trainB`` as A and B, if ``trainA`` exists."""
    if f"{prefix}A" not in folders:
        return {}
    return {name.removeprefix(prefix): folder for name, folder in folders.items() if name.startswith(prefix)}


def _drawn(name: str, folder: Path, fraction: float, split_seed: int) -> Style:
    files = pictures_in(folder)
    if len(files) < 2:
        raise DataError(
            f"The style {name!r} has one picture ({files[0]}). Expected two or more, one of which is held out. "
            "Try: test_image_dir=FOLDER with held-out pictures."
        )
    held_out = set(random.Random(split_seed).sample(files, max(1, round(fraction * len(files)))))  # noqa: S311 - no secret
    return Style(
        name=name,
        train=tuple(file for file in files if file not in held_out),
        held_out=tuple(file for file in files if file in held_out),
    )
