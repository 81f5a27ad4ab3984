"""The first held-out picture of every style in every style."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from projects.style_transfer.pictures import as_pixels
from projects.style_transfer.translator import Translator


class Gallery:
    """Makes ``grid`` and, for every two styles, ``inference/A_to_B``.

    Args:
        translator: what makes the pictures.
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
        """Return rows of pictures, one a source; in the diagonal its reconstruction."""
        targets = range(len(self._pictures))
        rows = []
        for source, picture in enumerate(self._pictures):
            made = self._translator.translate(picture[None].float() / 255, source, targets)
            rows.append([as_pixels(image[0]) for image in made])
        return rows

    def _grid(self, table: Sequence[Sequence[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
        styles = self._translator.styles
        originals = [as_pixels(picture.float() / 255) for picture in self._pictures]
        figure = Figure(figsize=(1.9 * (len(styles) + 1), 2.0 * len(styles)), dpi=110, layout="constrained")
        axes = figure.subplots(len(styles), len(styles) + 1, squeeze=False)
        titles = ["source", *(f"to {style}" for style in styles)]
        for row, (cells, original, made) in enumerate(zip(axes, originals, table, strict=True)):
            for column, (cell, picture) in enumerate(zip(cells, [original, *made], strict=True)):
                cell.imshow(_middle(picture))
                cell.set_xticks([])
                cell.set_yticks([])
                if row == 0:
                    cell.set_title(titles[column], fontsize=9)
                if column == row + 1:
                    cell.set_xlabel("reconstruction", fontsize=8)
            cells[0].set_ylabel(styles[row], fontsize=9)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def pair_name(styles: Sequence[str], source: int, target: int) -> str:
    """Return ``A_to_B`` in characters that are fit for files and pictures; numbers distinguish equal names."""
    fit = [re.sub(r"[^A-Za-z0-9_.-]", "_", style)[:40] for style in styles]
    told = [f"{index}_{name}" if fit.count(name) > 1 else name for index, name in enumerate(fit)]
    return f"{told[source]}_to_{told[target]}"


def _middle(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle square of a picture (H, W, 3)."""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]
