"""A square cut from pictures at another pixel size."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Window:
    """A square in a picture.

    Attributes:
        height, width: size of the picture in its own pixels.
        spacing: distance of its rows and columns in mm.
        pixel_mm: size of a pixel of the square.
        side: side of the square in its pixels.
        top, left: position of the square in its pixels; may be negative.
    """

    height: int
    width: int
    spacing: tuple[float, float]
    pixel_mm: float
    side: int
    top: int
    left: int

    @classmethod
    def about(cls, mask: NDArray[np.bool_], spacing: tuple[float, float], pixel_mm: float, side: int) -> Self:
        """Return the square about the centroid of a mask (D, H, W)."""
        _, rows, columns = mask.nonzero()
        corners = [
            round((float(index.mean()) + 0.5) * size / pixel_mm - side / 2)
            for index, size in zip((rows, columns), spacing, strict=True)
        ]
        height, width = mask.shape[1:]
        return cls(
            height=height,
            width=width,
            spacing=spacing,
            pixel_mm=pixel_mm,
            side=side,
            top=corners[0],
            left=corners[1],
        )

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Return the window that :meth:`values` describes."""
        return cls(**{**values, "spacing": (values["spacing"][0], values["spacing"][1])})

    def values(self) -> dict[str, Any]:
        """Return all attributes as plain values."""
        return asdict(self)

    def cut(self, pictures: NDArray[Any]) -> NDArray[np.float32]:
        """Cut the square from pictures (..., H, W), with linear interpolation; border pixels are repeated."""
        rows, columns = self._sampling(repeat=True)
        return _resampled(pictures, rows, columns)

    def cut_mask(self, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Cut the square from masks (..., H, W); beyond the border they are empty."""
        rows, columns = self._sampling(repeat=False)
        return _resampled(masks, rows, columns) >= 0.5

    def cut_field(self, fields: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut displacements (..., 2, H, W), converted to pixels of the square."""
        scale = np.array(self.spacing, np.float32) / np.float32(self.pixel_mm)
        return self.cut(fields) * scale[:, None, None]

    def put_back(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """Place the square's contents (..., side, side) into pictures (..., H, W); 0 elsewhere."""
        ratio = [size / self.pixel_mm for size in self.spacing]
        rows, columns = (
            _interpolation((np.arange(count) + 0.5) * step - 0.5 - start, self.side, step, repeat=False)
            for count, step, start in zip((self.height, self.width), ratio, (self.top, self.left), strict=True)
        )
        return _resampled(pictures, rows, columns)

    def _sampling(self, *, repeat: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        steps = [self.pixel_mm / size for size in self.spacing]
        rows, columns = (
            _interpolation((start + np.arange(self.side) + 0.5) * step - 0.5, count, step, repeat=repeat)
            for start, step, count in zip((self.top, self.left), steps, (self.height, self.width), strict=True)
        )
        return rows, columns


def _resampled(pictures: NDArray[Any], rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    # With torch, whose threads the user can limit: NumPy's threads made this ten times slower on a busy machine.
    given, over, across = (torch.from_numpy(array.astype(np.float32)) for array in (pictures, rows, columns))
    return np.asarray((over @ given @ across.T).numpy())


def _interpolation(at: NDArray[np.floating[Any]], count: int, step: float, *, repeat: bool) -> NDArray[np.float32]:
    """Return weights (len(at), count) of ``count`` pixels at positions ``at``: triangles, wider for a ``step`` above 1."""
    positions = np.clip(at, 0, count - 1) if repeat else at
    weights = np.maximum(1 - np.abs(positions[:, None] - np.arange(count)) / max(step, 1.0), 0)
    total = weights.sum(1, keepdims=True)
    inside = (at > -0.5 - 1e-9) & (at < count - 0.5 + 1e-9) if not repeat else np.ones(len(at), bool)
    return np.where(inside[:, None], weights / np.maximum(total, 1e-12), 0).astype(np.float32)
