"""Generated pictures of blobs with exact masks.

They serve tests and trying out a set-up. Image and mask come from one field: ellipses whose outline is bent by smooth
noise. The picture is then degraded as by a microscope: uneven light, defocus, textured background, shot noise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from projects.segmentation.folders import FolderPair


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """Generator of such pictures. Lengths are fractions of the shorter side."""

    height: int = 96
    width: int = 96
    most: int = 6
    """Largest number of blobs in a picture; the smallest is one."""
    radius: tuple[float, float] = (0.07, 0.19)
    """Semi-axes of the ellipses."""
    waviness: float = 0.35
    """Largest displacement of the outline, as a fraction of the radius."""
    contrast: tuple[float, float] = (0.25, 0.45)
    """Brightness of a blob above the background."""
    texture: float = 0.05
    """Standard deviation of the background's pattern."""
    shading: float = 0.3
    """Largest relative change of the light over the picture."""
    defocus: float = 0.012
    """Standard deviation of the blur."""
    photons: float = 250.0
    """Photons counted in a white pixel: the fewer, the more shot noise."""

    def draw(self, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return a new picture (H, W), 8-bit grey, and its mask (H, W)."""
        side = min(self.height, self.width)
        field = self._field(random, side)
        mask = field > 0
        pattern = self.texture * (_noise(random, field.shape, 0.02 * side) + _noise(random, field.shape, 0.1 * side))
        reflectance = 0.3 + pattern + random.uniform(*self.contrast) * mask
        blurred = gaussian_filter(reflectance, self.defocus * side, mode="nearest")
        photons = random.poisson(self.photons * (blurred * self._light(random)).clip(0.01, 1.0))
        return np.rint(255 * (photons / self.photons).clip(0, 1)).astype(np.uint8), mask

    def write(self, folders: FolderPair, count: int, seed: int) -> None:
        """Draw ``count`` pictures and masks, named ``blobs_000.png`` and so on."""
        folders.images.mkdir(parents=True, exist_ok=True)
        folders.masks.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        for index in range(count):
            picture, mask = self.draw(random)
            Image.fromarray(picture).save(folders.images / f"blobs_{index:03d}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folders.masks / f"blobs_{index:03d}.png")

    def _field(self, random: np.random.Generator, side: int) -> NDArray[np.float64]:
        """Positive within the blobs: 1 at the centre of an ellipse, 0 on its outline."""
        rows, columns = np.mgrid[: self.height, : self.width].astype(np.float64)
        field = np.full((self.height, self.width), -np.inf)
        for _ in range(random.integers(1, self.most, endpoint=True)):
            # No centre is near the border, so there is always some foreground.
            row, column = (random.uniform(0.15, 0.85) * (length - 1) for length in (self.height, self.width))
            across, along = random.uniform(*self.radius, size=2) * side
            angle = random.uniform(0, np.pi)
            y = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
            x = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
            field = np.maximum(field, 1 - np.hypot(y / across, x / along))
        bent = field + self.waviness * 0.5 * _noise(random, field.shape, 0.06 * side).clip(-2, 2)
        return bent if (bent > 0).any() else field

    def _light(self, random: np.random.Generator) -> NDArray[np.float64]:
        rows, columns = np.mgrid[-0.5 : 0.5 : 1j * self.height, -0.5 : 0.5 : 1j * self.width]
        angle = random.uniform(0, 2 * np.pi)
        slope = rows * np.sin(angle) + columns * np.cos(angle)
        return np.asarray(1 + random.uniform(0, self.shading) * slope)


def _noise(random: np.random.Generator, shape: tuple[int, ...], scale: float) -> NDArray[np.float64]:
    """Gaussian noise of unit variance, smooth over ``scale`` pixels."""
    rough = gaussian_filter(random.standard_normal(shape), max(scale, 0.5), mode="wrap")
    return np.asarray(rough / rough.std())
