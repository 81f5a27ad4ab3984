"""The first held-out picture of every style in every style."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from projects.style_transfer.baselines import Baseline
from projects.style_transfer.pictures import as_pixels
from projects.style_transfer.translator import Translator


class Gallery:
    """Makes ``grid`` and, for every two styles, ``inference/A_to_B``.

    Args:
        translator: translates the pictures.
        pictures: one of each style, (3, H, W) uint8.

    """

    def __init__(self, translator: Translator, pictures: Sequence[Tensor]) -> None:
        self._translator = translator
        self._pictures = pictures

    def __call__(self) -> dict[str, NDArray[np.uint8]]:
        """Return pictures (H, W, 3), 8-bit, by name."""
        table = self.table()
        named = {
            f"inference/{pair_name(self._translator.styles, source, target)}": picture
            for source, row in enumerate(table)
            for target, picture in enumerate(row)
            if source != target
        }
        return {"grid": self._grid(table), **named}

    def write(self, folder: Path) -> None:
        """Write ``grid.png`` and ``inference/A_to_B.jpg`` into a folder."""
        (folder / "inference").mkdir(parents=True, exist_ok=True)
        for name, picture in self().items():
            if name == "grid":
                Image.fromarray(picture).save(folder / "grid.png")
            else:
                Image.fromarray(picture).save(folder / f"{name}.jpg", quality=95)

    def table(self) -> list[list[NDArray[np.uint8]]]:
        """Return a row of pictures for each source; the diagonal holds the reconstructions."""
        targets = range(len(self._pictures))
        rows = []
        for source, picture in enumerate(self._pictures):
            made = self._translator.translate(picture[None].float() / 255, source, targets)
            rows.append([as_pixels(image[0]) for image in made])
        return rows

    def methods(self, baselines: Mapping[str, Baseline]) -> NDArray[np.uint8]:
        """Return a picture (H, W, 3), 8-bit: pairs of styles in rows; the flow and each baseline in columns."""
        styles = self._translator.styles
        rows, labels = [], []
        for source, (picture, made) in enumerate(zip(self._pictures, self.table(), strict=True)):
            image = picture[None].float() / 255
            for target, translated in enumerate(made):
                if target != source:
                    others = [as_pixels(method(image, source, target)[0]) for method in baselines.values()]
                    rows.append([translated, *others])
                    labels.append(f"{styles[source]}\nto {styles[target]}")
        return _sheet(rows, labels, ["flow", *baselines])

    def _grid(self, table: Sequence[Sequence[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
        styles = self._translator.styles
        originals = [as_pixels(picture.float() / 255) for picture in self._pictures]
        rows = [[original, *made] for original, made in zip(originals, table, strict=True)]
        return _sheet(rows, styles, ["source", *(f"to {style}" for style in styles)], "reconstruction")


def _sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]], labels: Sequence[str], titles: Sequence[str], diagonal: str = ""
) -> NDArray[np.uint8]:
    """Draw the middle squares of pictures in rows and columns; ``diagonal`` labels the column after a row's own."""
    figure = Figure(figsize=(1.9 * len(titles), 2.0 * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, (cells, pictures) in enumerate(zip(axes, rows, strict=True)):
        for column, (cell, picture) in enumerate(zip(cells, pictures, strict=True)):
            cell.imshow(_middle(picture))
            cell.set_xticks([])
            cell.set_yticks([])
            if row == 0:
                cell.set_title(titles[column], fontsize=9)
            if column == row + 1:
                cell.set_xlabel(diagonal, fontsize=8)
        cells[0].set_ylabel(labels[row], fontsize=9)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def pair_name(styles: Sequence[str], source: int, target: int) -> str:
    """Return ``A_to_B`` in characters that suit file names; numbers distinguish equal names."""
    safe = [re.sub(r"[^A-Za-z0-9_.-]", "_", style)[:40] for style in styles]
    unique = [f"{index}_{name}" if safe.count(name) > 1 else name for index, name in enumerate(safe)]
    return f"{unique[source]}_to_{unique[target]}"


def _middle(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the middle square of a picture (H, W, 3)."""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]
