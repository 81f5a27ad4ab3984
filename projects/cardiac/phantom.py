"""A beating short-axis heart of exactly known motion.

It may have an infarct.

The wall keeps its volume: a material ring of radii ``Ri < R < Ro`` at end diastole lies at ``ri < r < ro`` in another
frame, where ``R² = Ri² + lz (r² - ri²)`` and ``lz`` is the through-plane stretch. Every pixel x of a frame shows
the material point X(x) of end diastole, so the backward displacement ``u(x) = X(x) - x`` is exact. Scar has no contrast
of its own in the cine frames: only its missing shortening reveals it, unless ``chronic`` makes its wall thin as well.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from projects.cardiac.heart import FINER, Floats, Heart, Infarct

_END_SYSTOLE = 0.38  # fraction of the RR interval

LEVELS = {1: (0.95,), 2: (1.0, 0.85), 3: (1.0, 0.95, 0.78)}
"""Size of the ventricle in each slice relative to its base, for each number of slices."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One short-axis slice of a phantom; lengths are in pixels, and the first frame is end diastole.

    Attributes:
        cine: (T, H, W) float32, bSSFP grey levels with bias field and Rician noise.
        myocardium: (T, H, W) bool.
        displacement: (T, 2, H, W) float32 in pixels, rows first: frame t at x shows what end diastole shows at
            ``x + displacement[t]`` (MONAI's and VoxelMorph's backward convention).
        infarct: (H, W) bool at end diastole, in cine space.
        lge: (H, W) float32, late enhancement in another breath-hold.
        lge_myocardium: (H, W) bool.
        lge_infarct: (H, W) bool.
    """

    cine: NDArray[np.float32]
    myocardium: NDArray[np.bool_]
    displacement: NDArray[np.float32]
    infarct: NDArray[np.bool_]
    lge: NDArray[np.float32]
    lge_myocardium: NDArray[np.bool_]
    lge_infarct: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One phantom patient: slices from base to apex, the frame of end systole, and the direction of the septum (radians)."""

    slices: tuple[Slice, ...]
    end_systole: int
    septum: float


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Draws patients.

    Attributes:
        size: side of the square pictures in pixels.
        frames: number T of frames in a heart beat.
        slices: number of slices, 1 to 3, from base to apex.
        chronic: draw old infarcts, whose wall is up to a quarter thinner, which reveals them without any motion.
        noise: lowest and highest standard deviation of the Rician noise.
    """

    size: int = 96
    frames: int = 12
    slices: int = 3
    chronic: bool = False
    noise: tuple[float, float] = (0.015, 0.035)

    def case(self, seed: int, *, infarcted: bool) -> Case:
        """Draw one patient; the same seed gives the same patient."""
        random = np.random.default_rng(seed)
        septum = np.pi + np.deg2rad(random.uniform(-20, 20))
        centre = self.size / 2 - 0.5 + random.uniform(-3, 3, 2)
        heart = Heart.drawn(random, centre, septum)
        infarct = _drawn_infarct(random, self.chronic) if infarcted else None
        sigma = random.uniform(*self.noise)
        slices = []
        for level in LEVELS[self.slices]:
            here = infarct and _at_level(infarct, random)
            slices.append(self._slice(random, heart.scaled(level), here, sigma))
        shortening = _shortening(np.arange(self.frames) / self.frames)
        return Case(slices=tuple(slices), end_systole=int(shortening.argmax()), septum=float(septum))

    def _slice(self, random: np.random.Generator, heart: Heart, infarct: Infarct | None, sigma: float) -> Slice:
        grid = np.indices((self.size, self.size)).astype(float)
        fine = np.indices((self.size * FINER,) * 2) / FINER - (FINER - 1) / (2 * FINER)
        levels, late = heart.drawn_levels(random, fine, infarct)
        bias = 1 + 0.25 * gaussian_filter(random.standard_normal((self.size,) * 2), self.size / 3) * self.size / 3
        gain = random.uniform(0.85, 1.1)
        cine, masks, fields = [], [], []
        for shortening in _shortening(np.arange(self.frames) / self.frames):
            material, mask = heart.material(grid, float(shortening), infarct)
            frame = _looked_up(levels, material) * bias * gain
            cine.append(_rician(random, frame, sigma))
            masks.append(mask)
            fields.append(material - grid)
        other = _other_breath_hold(random, grid, heart.centre)
        wall, scar = heart.wall(other, infarct)
        return Slice(
            cine=np.stack(cine).astype(np.float32),
            myocardium=np.stack(masks),
            displacement=np.stack(fields).astype(np.float32),
            infarct=heart.wall(grid, infarct)[1],
            lge=_rician(random, _looked_up(late, other) * gain, sigma).astype(np.float32),
            lge_myocardium=wall,
            lge_infarct=scar,
        )


def _drawn_infarct(random: np.random.Generator, chronic: bool) -> Infarct:
    transmurality = random.uniform(0.35, 1.0)
    thinning = random.uniform(0.1, 0.25) * transmurality
    return Infarct(
        angle=random.uniform(-np.pi, np.pi),
        half_width=np.deg2rad(random.uniform(25, 70)),
        transmurality=transmurality,
        thinning=thinning if chronic else 0.0,
    )


def _at_level(infarct: Infarct, random: np.random.Generator) -> Infarct:
    """Return the same infarct as it appears in another slice."""
    return Infarct(
        angle=infarct.angle + np.deg2rad(random.uniform(-8, 8)),
        half_width=infarct.half_width * random.uniform(0.75, 1.0),
        transmurality=infarct.transmurality * random.uniform(0.9, 1.0),
        thinning=infarct.thinning,
    )


def _shortening(time: Floats) -> Floats:
    """Return the shortening (0 to 1) at times in RR intervals: sin² up to end systole, then a cosine back."""
    rising = np.sin(np.pi / 2 * time / _END_SYSTOLE) ** 2
    falling = 0.5 * (1 + np.cos(np.pi * (time - _END_SYSTOLE) / (1 - _END_SYSTOLE)))
    return np.asarray(np.where(time <= _END_SYSTOLE, rising, falling))


def _other_breath_hold(random: np.random.Generator, grid: Floats, centre: Floats) -> Floats:
    """Return the points of end diastole in another breath-hold: turned ±6°, shifted ±4 px, deformed by 1.2 px rms."""
    angle = np.deg2rad(random.uniform(-6, 6))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = random.uniform(-4, 4, 2)
    smooth = np.stack([gaussian_filter(random.standard_normal(grid.shape[1:]), 10, mode="wrap") for _ in range(2)])
    smooth *= 1.2 / np.sqrt((smooth**2).sum(0).mean())
    around = grid - centre[:, None, None]
    return np.asarray(np.tensordot(turn, around, 1) + (centre + shift)[:, None, None] + smooth)


def _looked_up(levels: Floats, points: Floats) -> Floats:
    at = (points + (FINER - 1) / (2 * FINER)) * FINER
    return np.asarray(map_coordinates(levels, at, order=1, mode="nearest"))


def _rician(random: np.random.Generator, level: Floats, sigma: float) -> Floats:
    real, imaginary = random.standard_normal((2, *level.shape)) * sigma
    return np.asarray(np.hypot(level + real, imaginary))
