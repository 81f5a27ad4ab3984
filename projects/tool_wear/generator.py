"""A mechanistic model of a wearing end mill's sensor signals.

It replaces recordings where there are none. Nothing was fitted to measurements: the cutting conditions are those of the PHM
Society's 2010 data challenge, the coefficients are of the usual size for steel.

:func:`draw_tool` draws a tool, :func:`wear_of` gives the flank wear of its flutes at every cut, and :func:`signals` the
signals of seven sensors. All random numbers come from the generator that is passed in, never from a global one.

Sources:
    Y. Altintas, *Manufacturing Automation*, 2nd ed. (2012), chapter 2: chip thickness, edge and cutting coefficients of
    milling, and the projection of the forces on the machine's axes.
    X. Li et al., "Fuzzy neural network modelling for tool wear estimation in dry milling operation", PHM Society (2009):
    the cutting conditions, sensors and units of the PHM-2010 recordings.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import bilinear, lfilter

Array = NDArray[np.float64]
Signals = NDArray[np.float32]

CHANNELS = ("Fx", "Fy", "Fz", "Vx", "Vy", "Vz", "AE")
UNITS = dict(zip(CHANNELS, ("N", "N", "N", "g", "g", "g", "V"), strict=True))
"""Three forces [N], three accelerations [g] and the acoustic emission's RMS [V], in the order of PHM 2010."""

LIFE = 315
"""Cuts of one tool's life, as in PHM 2010."""

CUTTING_COEFFICIENTS = np.array([1800.0, 650.0, 300.0])
"""Tangential, radial and axial force per area of chip [N/mm²]."""

EDGE_COEFFICIENTS = np.array([22.0, 35.0, 8.0])
"""Tangential, radial and axial force per length of a sharp edge [N/mm]."""

MODES = np.array([820.0, 910.0, 1500.0])
"""Natural frequencies of the workpiece clamping in x, y and z [Hz]."""

MODAL_MASS = 8.0
"""Vibrating mass of each mode [kg]."""

GRAVITY = 9.80665
"""Standard gravity [m/s²]; accelerations are recorded in g."""

SETTLING = 0.015
"""Time before the recording in which the modes settle [s]: at least two of their time constants."""


@dataclass(frozen=True, kw_only=True)
class Milling:
    """The conditions of a cut: down milling with the radial depth ``width`` and the axial depth ``depth``."""

    spindle_rpm: float = 10_400.0
    teeth: int = 3
    feed: float = 0.05
    """Feed per tooth [mm]."""
    depth: float = 0.2
    """Axial depth of cut [mm]."""
    width: float = 0.125
    """Radial depth of cut [mm]."""
    diameter: float = 6.0
    """Diameter of the tool [mm]."""

    @property
    def spindle_hz(self) -> float:
        """Revolutions per second."""
        return self.spindle_rpm / 60.0

    @property
    def entry_angle(self) -> float:
        """Immersion angle at which a tooth enters [rad]; it leaves at pi (Altintas, down milling)."""
        return float(np.pi - np.arccos(1.0 - 2.0 * self.width / self.diameter))

    @property
    def cutting_speed(self) -> float:
        """Speed of the edge [m/s]."""
        return float(np.pi * self.diameter * 1e-3 * self.spindle_hz)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tool:
    """Parameters of one tool, its grinding, clamping and sensors."""

    milling: Milling
    wear_start: float
    """Mean flank wear of the new tool [um]."""
    wear_end: float
    """Mean flank wear after :data:`LIFE` cuts [um], up to the random walk."""
    break_in: float
    """Share of the break-in in the wear."""
    break_in_rate: float
    """Rate of the break-in, per life."""
    steady: float
    """Share of the steady wear; the rest is the accelerated wear at the end."""
    exponent: float
    """Exponent of the accelerated wear; a larger one begins later."""
    edge_growth: float
    """Relative growth of the edge coefficients per 100 um of wear."""
    unevenness: Array
    """Relative deviation of the wear of each flute, shape (teeth,), with the sum zero."""
    run_out: float
    """Eccentricity of the clamped tool [mm]."""
    run_out_angle: float
    """Direction of the run-out [rad]."""
    damping: Array
    """Damping ratio of the modes in x, y and z, shape (3,)."""
    emission: float
    """Acoustic emission at 100 W of contact power and 100 um of wear [V]: coupling differs between mountings."""


def draw_tool(rng: np.random.Generator, milling: Milling | None = None) -> Tool:
    """Draw a tool; two tools differ in how they wear and in what the same wear does to the signals."""
    milling = milling or Milling()
    unevenness = rng.normal(0.0, 0.25, milling.teeth)
    unevenness -= unevenness.mean()
    # Beyond 0.35 the wear of the best flute would decrease towards the end of a life.
    unevenness *= min(1.0, 0.3 / np.abs(unevenness).max())
    return Tool(
        milling=milling,
        wear_start=rng.uniform(15.0, 25.0),
        wear_end=rng.uniform(165.0, 215.0),
        break_in=rng.uniform(0.25, 0.35),
        break_in_rate=rng.uniform(12.0, 20.0),
        steady=rng.uniform(0.40, 0.50),
        exponent=rng.uniform(4.5, 7.0),
        edge_growth=rng.uniform(0.55, 0.85),
        unevenness=unevenness,
        run_out=rng.uniform(0.001, 0.004),
        run_out_angle=rng.uniform(0.0, 2.0 * np.pi),
        damping=rng.uniform(0.03, 0.05, 3),
        emission=rng.uniform(0.95, 1.05),
    )


def wear_of(tool: Tool, cuts: int, rng: np.random.Generator) -> Array:
    """Return each flute's flank wear VB after each cut.

    The cuts are spread over the tool's life. The mean over the flutes follows the textbook curve, with u the share of
    life that is used::

        VB(u) = VB0 + (VB1 - VB0) · (a (1 - exp(-k u)) + b u + (1 - a - b) u^p)

    break-in, steady and accelerated wear, with a small random walk on top. Wear never decreases, and flutes
    differ the more, the more they are worn: VB_j = VB · (1 + e_j VB / 150 um).

    Returns:
        Wear in um, shape (cuts, teeth); its mean over the teeth is VB.
    """
    used = np.linspace(1.0 / cuts, 1.0, cuts)
    accelerated = 1.0 - tool.break_in - tool.steady
    share = (
        tool.break_in * (1.0 - np.exp(-tool.break_in_rate * used))
        + tool.steady * used
        + accelerated * used**tool.exponent
    )
    wander = np.cumsum(rng.normal(0.0, 0.25 * np.sqrt(LIFE / cuts), cuts))
    mean = np.maximum.accumulate(tool.wear_start + (tool.wear_end - tool.wear_start) * share + wander)
    mean = np.maximum(mean, 1.0)[:, None]
    flutes: Array = mean * (1.0 + tool.unevenness * mean / 150.0)
    return flutes


def signals(tool: Tool, wear: Array, *, windows: int, samples: int, rate: float, rng: np.random.Generator) -> Signals:
    """Return the sensor signals of a tool with this wear.

    Per tooth j at the immersion angle phi_j = 2 pi n t + phi0 + 2 pi j / z, while it is engaged (entry angle < phi < pi)
    and the chip has a thickness::

        h_j = f sin(phi_j) + rho cos(2 pi j / z + c)                 chip thickness [mm], with run-out rho
        dF  = ap (K_c h_j + K_e (1 + gamma VB_j / 100 um))           tangential, radial, axial [N]

    The cutting coefficients K_c vary with the hardness of the material from cut to cut; the edge coefficients K_e grow with
    the wear of that flute, so uneven flutes put sidebands of the spindle's frequency beside the tooth-passing line. The
    projections on x, y and z are summed over the teeth; accelerations are the forces through one mode per axis, with a noise
    that grows with wear; the acoustic emission follows contact power times VB^0.6, with heavy-tailed bursts. Forces carry a
    noise of 2 N, and the gain of every channel drifts by about 2 % over a life.

    Args:
        tool: the tool.
        wear: flank wear of each flute at each cut [um], shape (cuts, teeth).
        windows: recordings per cut, each from a random angle of the spindle.
        samples: length of a recording.
        rate: sampling rate [Hz]. Use 20 kHz or more and decimate, because a tooth is engaged for a quarter of a
            millisecond.
        rng: generator of all random numbers.

    Returns:
        Shape (cuts, windows, samples, 7), float32, channels and units as :data:`CHANNELS`.
    """
    milling = tool.milling
    cuts = len(wear)
    settling = int(SETTLING * rate)
    time = np.arange(settling + samples) / rate
    hardness = rng.normal(1.0, 0.03, (cuts, 1, 1))
    start = rng.uniform(0.0, 2.0 * np.pi, (cuts, windows, 1))
    rotation = 2.0 * np.pi * milling.spindle_hz * time + start
    mean_wear = wear.mean(axis=1)[:, None, None]

    force = np.zeros((3, cuts, windows, len(time)))
    power = np.zeros(rotation.shape)
    for tooth in range(milling.teeth):
        pitch = 2.0 * np.pi * tooth / milling.teeth
        angle = np.mod(rotation + pitch, 2.0 * np.pi)
        chip = milling.feed * np.sin(angle) + tool.run_out * np.cos(pitch + tool.run_out_angle)
        engaged = (angle > milling.entry_angle) & (angle < np.pi) & (chip > 0.0)
        sharpness = 1.0 + tool.edge_growth * wear[:, tooth][:, None, None] / 100.0
        tangential, radial, axial = (
            np.where(engaged, milling.depth * (cutting * hardness * chip + edge * sharpness), 0.0)
            for cutting, edge in zip(CUTTING_COEFFICIENTS, EDGE_COEFFICIENTS, strict=True)
        )
        sine, cosine = np.sin(angle), np.cos(angle)
        force[0] += -tangential * cosine - radial * sine
        force[1] += tangential * sine - radial * cosine
        force[2] += axial
        power += tangential * milling.cutting_speed

    recorded = np.empty((cuts, windows, len(time), len(CHANNELS)))
    for axis in range(3):
        acceleration = _through_mode(force[axis], MODES[axis], tool.damping[axis], rate)
        hiss = (0.02 + 0.03 * mean_wear / 100.0) * rng.standard_normal(force[axis].shape)
        recorded[..., axis] = force[axis] + 2.0 * rng.standard_normal(force[axis].shape)
        recorded[..., 3 + axis] = acceleration + hiss
    bursts = 0.004 * np.minimum(np.abs(rng.standard_cauchy(power.shape)), 25.0)
    recorded[..., 6] = tool.emission * (power / 100.0) * (mean_wear / 100.0) ** 0.6 + bursts
    drift = 1.0 + np.cumsum(rng.normal(0.0, 0.02 / np.sqrt(LIFE), (cuts, len(CHANNELS))), axis=0)
    return np.asarray(recorded[:, :, settling:] * drift[:, None, None, :], dtype=np.float32)


def _through_mode(force: Array, frequency: float, damping: float, rate: float) -> Array:
    """Return one mode's acceleration [g] by a force [N].

    Along the last axis it applies the accelerance of one degree of freedom with viscous damping,
    s² / (m (s² + 2 zeta w s + w²)), discretised by the bilinear transform.
    """
    angular = 2.0 * np.pi * frequency
    numerator, denominator = bilinear([1.0, 0.0, 0.0], [1.0, 2.0 * damping * angular, angular**2], fs=rate)
    return np.asarray(lfilter(numerator, denominator, force, axis=-1)) / (MODAL_MASS * GRAVITY)
