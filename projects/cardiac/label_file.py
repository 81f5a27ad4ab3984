"""A label file, with structures on the pictures' grid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projects.cardiac.grid import Grid, on_grid
from projects.cardiac.labels import LabelMap, Structure, mask
from projects.cardiac.raw import read_volume
from projects.cardiac.stack import Stack


@dataclass(frozen=True, eq=False)
class LabelFile:
    """Values (H, W, D) of a label file, and their grid."""

    file: Path
    values: NDArray[Any]
    grid: Grid

    @classmethod
    def read(cls, file: Path, pixel_mm: float | None = None) -> "LabelFile":
        """Read a file.

        Args:
            file: of the shape (H, W, D), or (H, W) for one slice.
            pixel_mm: corrected size of a pixel, which makes the affine unused. If ``None``, the header applies.

        Raises:
            DataError: it is missing, unreadable or of another shape.
        """
        array, image = read_volume(file, "H,W,D")
        grid = Grid.of(image, file, axes=min(image.ndim, 3))
        if pixel_mm is not None:
            grid = replace(grid, zooms=(pixel_mm, pixel_mm, grid.zooms[2]), known=False)
        return cls(file, array, grid)

    def masks(
        self, structures: Sequence[Structure], labels: LabelMap | None, key: str, stack: Stack
    ) -> list[NDArray[np.bool_]]:
        """Return structures, each (D, H, W) bool, on the grid of the pictures.

        Args:
            structures: the structures to return.
            labels: structures of the values. If ``None``, the file holds one structure.
            key: the configuration's key for ``labels``, for errors.
            stack: the pictures.

        Raises:
            DataError: the file holds values that the map does not name, or lies outside of the pictures.
        """
        flags = np.zeros(self.values.shape, np.uint8)  # a bit for each structure, so that all are resampled at once
        for bit, structure in enumerate(structures):
            flags |= mask(self.values, self.file, structure, labels, key).astype(np.uint8) << bit
        placed = np.moveaxis(on_grid(flags, self.grid, stack.grid, self.file, stack.place).astype(np.uint8), -1, 0)
        return [(placed >> bit & 1).astype(bool) for bit in range(len(structures))]
