"""Shape, motion and grey levels of a phantom's heart."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Floats = NDArray[np.float64]

BLOOD, RIGHT_BLOOD, MYOCARDIUM, LUNG, BODY, FAT = 0.92, 0.86, 0.30, 0.10, 0.42, 0.70
"""Grey levels of balanced steady-state free precession, blood of the left ventricle first."""

NULLED, SCAR, LATE_BLOOD = 0.08, 0.95, 0.62
"""Grey levels of late gadolinium enhancement."""

FINER = 4
"""Factor by which end diastole is drawn finer than the frames sampled from it."""

_BORDER = np.deg2rad(6.0)
_REACH = 9.0  # pixels over which the pull of the epicardium fades in the surroundings


@dataclass(frozen=True, kw_only=True)
class Infarct:
    """A sector of the wall, from the endocardium outwards.

    Attributes:
        angle: direction of its middle, in radians.
        half_width: half of its angular width, in radians.
        transmurality: fraction of the wall thickness that is scar, 0.35 to 1.
        thinning: fraction by which the wall is thinner in the middle of the infarct.
    """

    angle: float
    half_width: float
    transmurality: float
    thinning: float = 0.0

    def sector(self, theta: Floats) -> Floats:
        """Return 1 inside the sector and 0 outside; the border zone is logistic, of six degrees."""
        distance = np.abs(np.angle(np.exp(1j * (theta - self.angle))))
        return np.asarray(1 / (1 + np.exp(-(self.half_width - distance) / _BORDER)))


@dataclass(frozen=True, kw_only=True)
class Heart:
    """Geometry at end diastole and how far it moves; angles in radians, lengths in pixels.

    Attributes:
        centre: row and column.
        radius: radius of the cavity.
        wall_thickness: thickness of the myocardium.
        oval: fraction by which the cavity is longer along ``oval_angle``.
        oval_angle: direction of the longer axis.
        septum: direction of the right ventricle.
        ejection: fraction by which the endocardium shortens at end systole.
        uneven: fraction of this by which it shortens more at ``uneven_angle`` and less on the opposite side.
        uneven_angle: direction in which it shortens most.
        stretch: length through the plane at end systole, relative to end diastole.
        twist: rotation of the wall at end systole.
        papillary: directions of the two papillary muscles.
    """

    centre: Floats
    radius: float
    wall_thickness: float
    oval: float
    oval_angle: float
    septum: float
    ejection: float
    uneven: float
    uneven_angle: float
    stretch: float
    twist: float
    papillary: tuple[float, float]

    @classmethod
    def drawn(cls, random: np.random.Generator, centre: Floats, septum: float) -> "Heart":
        """Return a random heart."""
        return cls(
            centre=centre,
            radius=random.uniform(13, 18),
            wall_thickness=random.uniform(6.5, 8.5),
            oval=random.uniform(0, 0.06),
            oval_angle=random.uniform(0, np.pi),
            septum=septum,
            ejection=random.uniform(0.28, 0.38),
            uneven=random.uniform(0, 0.08),
            uneven_angle=random.uniform(-np.pi, np.pi),
            stretch=random.uniform(0.82, 0.90),
            twist=np.deg2rad(random.uniform(2, 8)) * random.choice((-1, 1)),
            papillary=(septum + np.pi + random.uniform(0.4, 0.9), septum + np.pi - random.uniform(0.4, 0.9)),
        )

    def scaled(self, level: float) -> "Heart":
        """Return the heart with a cavity ``level`` times as wide."""
        return replace(self, radius=self.radius * level)

    def radii(self, theta: Floats, infarct: Infarct | None) -> tuple[Floats, Floats]:
        """Return the radii of endocardium and epicardium at end diastole."""
        inner = self.radius * (1 + self.oval * np.cos(2 * (theta - self.oval_angle)))
        thickness = np.full_like(theta, self.wall_thickness)
        if infarct is not None:
            thickness = thickness * (1 - infarct.thinning * infarct.sector(theta))
        return inner, inner + thickness

    def polar(self, points: Floats) -> tuple[Floats, Floats]:
        """Return distance and direction of points (2, H, W) from the centre."""
        rows, columns = points[0] - self.centre[0], points[1] - self.centre[1]
        return np.hypot(rows, columns), np.arctan2(rows, columns)

    def wall(self, points: Floats, infarct: Infarct | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return masks (H, W) of myocardium and scar at end-diastolic points."""
        radius, theta = self.polar(points)
        inner, outer = self.radii(theta, infarct)
        wall = (radius >= inner) & (radius <= outer)
        if infarct is None:
            return wall, np.zeros_like(wall)
        deep = (radius - inner) / (outer - inner) <= infarct.transmurality
        return wall, wall & deep & (infarct.sector(theta) > 0.5)

    def material(self, points: Floats, shortening: float, infarct: Infarct | None) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the end-diastolic origins (2, H, W) of ``points``, and the wall (H, W).

        The heart is shortened by ``shortening``, from 0 (end diastole) to 1 (end systole).
        """
        radius, theta = self.polar(points)
        origin, before = theta, radius
        stretch = 1 - (1 - self.stretch) * shortening
        wall = np.zeros(radius.shape, bool)
        for _ in range(3):
            inner, outer = self.radii(origin, infarct)
            contraction = self.ejection * (1 + self.uneven * np.cos(origin - self.uneven_angle))
            if infarct is not None:  # akinetic; slightly dyskinetic where the scar is transmural
                contraction = contraction * (1 - min(1.15 * infarct.transmurality, 1.1) * infarct.sector(origin))
            inner_now = inner * (1 - contraction * shortening)
            outer_now = np.sqrt(inner_now**2 + (outer**2 - inner**2) / stretch)
            wall = (radius >= inner_now) & (radius <= outer_now)
            before = np.where(
                radius < inner_now,
                radius * inner / inner_now,
                np.where(
                    wall,
                    np.sqrt(np.maximum(inner**2 + stretch * (radius**2 - inner_now**2), 0)),
                    radius + (outer - outer_now) * np.exp(-np.maximum(radius - outer_now, 0) / _REACH),
                ),
            )
            fading = np.exp(-np.maximum(before - outer, 0) / _REACH)
            origin = theta - self.twist * shortening * fading
        rows = self.centre[0] + before * np.sin(origin)
        columns = self.centre[1] + before * np.cos(origin)
        return np.stack([rows, columns]), wall

    def drawn_levels(self, random: np.random.Generator, fine: Floats, infarct: Infarct | None) -> tuple[Floats, Floats]:
        """Return end-diastolic grey levels on a finer grid: cine and late enhancement."""
        radius, theta = self.polar(fine)
        inner, outer = self.radii(theta, infarct)
        _, scar = self.wall(fine, infarct)
        side = np.cos(theta - self.septum)  # 1 towards the right ventricle
        from_septum = fine - self._at(float(outer.mean()) + 7, self.septum)[:, None, None]
        along = from_septum[1] * np.cos(self.septum) + from_septum[0] * np.sin(self.septum)
        across = -from_septum[1] * np.sin(self.septum) + from_septum[0] * np.cos(self.septum)
        right = (along / 9) ** 2 + (across / 17) ** 2
        cine = np.where(side > -0.2, BODY, LUNG)
        late = np.where(side > -0.2, 0.35, 0.05)
        for where, bright, enhanced in (
            (radius <= outer + 4, FAT, 0.45),
            (right <= 1.35, MYOCARDIUM, NULLED),
            (right <= 1, RIGHT_BLOOD, LATE_BLOOD),
            (radius <= outer, MYOCARDIUM, NULLED),
            (radius < inner, BLOOD, LATE_BLOOD),
            (self._papillary(fine, inner), MYOCARDIUM, NULLED),
        ):
            cine[where], late[where] = bright, enhanced
        late[scar] = SCAR
        for sigma, amplitude in ((1.0 * FINER, 0.05), (2.5 * FINER, 0.05)):
            texture = gaussian_filter(random.standard_normal(radius.shape), sigma, mode="wrap")
            cine = cine + np.where(radius < inner, 0.3, 1.0) * amplitude * texture / texture.std()
        blur = 0.5 * FINER
        return gaussian_filter(cine, blur), gaussian_filter(late, blur)

    def _papillary(self, fine: Floats, inner: Floats) -> NDArray[np.bool_]:
        at = [self._at(0.65 * float(inner.mean()), angle) for angle in self.papillary]
        return np.asarray(np.any([np.hypot(fine[0] - row, fine[1] - column) <= 2.2 for row, column in at], axis=0))

    def _at(self, radius: float, angle: float) -> Floats:
        return self.centre + radius * np.array([np.sin(angle), np.cos(angle)])
