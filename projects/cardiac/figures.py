"""Pictures of motion, registration and infarcts.

Each carries the note that it is not for clinical use.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from projects.cardiac.agreement import contour
from projects.cardiac.deformation import jacobian_determinant

Picture = NDArray[np.float32]
Mask = NDArray[np.bool_]

CAUTION = "Not for clinical use"
REFERENCE, FOUND, BEFORE = "tab:green", "tab:red", "tab:cyan"

_EVERY = 4  # pixels between the arrows
_KEY_MM = 10.0  # length of the arrow in the key
_ENLARGED = 3


def motion(diastole: Picture, systole: Picture, field: Picture, wall: Mask, moved: Mask, *, pixel_mm: float) -> Figure:
    """Motion from end diastole to end systole: arrows over the anatomy, the warped grid, and the change of area.

    Arrows are as long as the motion, with a key in mm.

    Args:
        diastole: frame (S, S).
        systole: frame (S, S).
        field: (2, S, S), displacement of each point of end diastole, in pixels.
        wall: (S, S), myocardium at end diastole.
        moved: (S, S), myocardium carried to end systole.
        pixel_mm: size of a pixel.
    """
    figure, (over, grid, area) = _panels(3)
    rows, columns = np.indices(wall.shape)[:, ::_EVERY, ::_EVERY]
    down, right = field[:, ::_EVERY, ::_EVERY]
    _shown(over, diastole, "Motion, end diastole to end systole")
    arrows = over.quiver(
        columns, rows, right, down, color="yellow", angles="xy", scale_units="xy", scale=1, width=0.004, headwidth=4
    )
    text = {"labelpos": "E", "color": "black", "fontproperties": {"size": 8}}
    over.quiverkey(arrows, 0.8, -0.06, _KEY_MM / pixel_mm, f"{_KEY_MM:g} mm", **text)
    _contour(over, wall, REFERENCE)
    _shown(grid, systole, "End systole, carried grid and myocardium")
    at = np.indices(wall.shape) + field
    for line in (*np.moveaxis(at[:, ::_EVERY], 1, 0), *np.moveaxis(at[:, :, ::_EVERY], 2, 0)):
        grid.plot(line[1], line[0], color="tab:orange", linewidth=0.5)
    _contour(grid, moved, FOUND)
    determinant = jacobian_determinant(torch.from_numpy(field)[None])[0].numpy()
    drawn = area.imshow(determinant, cmap="RdBu_r", norm=TwoSlopeNorm(1.0, 0.4, 1.6))
    _contour(area, wall, "black")
    area.set_title("Determinant of the Jacobian", fontsize=9)
    area.set_axis_off()
    figure.colorbar(drawn, ax=area, shrink=0.7, label="area at end systole / at end diastole")
    return figure


def registration(late: Picture, warped: Picture, cine: Picture, before: Mask, after: Mask, wall: Mask) -> Figure:
    """Late enhancement before and after registration, beside the cine frame.

    Each shows the contours of the myocardium.
    """
    figure, panels = _panels(3)
    for axes, picture, mask, title in zip(
        panels,
        (late, warped, cine),
        (before, after, after),
        ("Late enhancement before", "after registration", "Cine, end diastole"),
        strict=True,
    ):
        _shown(axes, picture, title)
        _contour(axes, wall, REFERENCE)
        _contour(axes, mask, BEFORE if mask is before else FOUND)
    _legend(figure, {"cine": REFERENCE, "before": BEFORE, "after": FOUND})
    return figure


def infarct(
    diastole: Picture, probability: Picture, found: Mask, reference: Mask, wall: Mask, name: str = "reference"
) -> Figure:
    """Predicted infarct, reference infarct and probability over the cine frame.

    ``name`` is that of the reference.
    """
    figure, (over, likely) = _panels(2)
    _shown(over, diastole, "Infarct")
    _contour(over, wall, "white")
    _contour(over, reference, REFERENCE)
    _contour(over, found, FOUND)
    _shown(likely, diastole, "Probability")
    drawn = likely.imshow(np.ma.masked_where(~wall, probability), cmap="inferno", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=likely, shrink=0.7)
    _legend(figure, {name: REFERENCE, "found": FOUND})
    return figure


def bulls_eye(
    values: Sequence[Mapping[int, float]],
    titles: Sequence[str],
    label: str,
    limits: tuple[float, float] = (0.0, 1.0),
    form: str | None = None,
) -> Figure:
    """Bull's-eye plots of the sixteen segments: base outside, apex inside, anterior up, septum on the left.

    Args:
        values: for each plot, segment numbers to values; segments without one are grey.
        titles: one for each plot.
        label: quantity and unit of the values.
        limits: values of the darkest and of the brightest colour.
        form: format of the values below the segment numbers, such as ``.0f``. If ``None``, the values are not written.
    """
    figure = Figure(figsize=(4.2 * len(values), 4.6), layout="constrained")
    norm, colours = Normalize(*limits), colormaps["inferno"]
    for index, (given, title) in enumerate(zip(values, titles, strict=True), start=1):
        axes = figure.add_subplot(1, len(values), index, projection="polar")
        for ring, (numbers, start) in enumerate(((range(13, 17), 90.0), (range(7, 13), 90.0), (range(1, 7), 90.0))):
            step = 360 / len(numbers)
            for place, number in enumerate(numbers):
                angle, value = np.deg2rad(start + place * step), given.get(number)
                face = "lightgrey" if value is None else colours(norm(value))
                axes.bar(angle, 1, np.deg2rad(step), ring + 0.5, color=face, edgecolor="white")
                dark = value is not None and norm(value) < 0.6
                text = f"{number}\n{value:{form}}" if form is not None and value is not None else str(number)
                axes.text(angle, ring + 1.0, text, ha="center", va="center", color="white" if dark else "black")
        axes.set_axis_off()
        axes.set_title(f"{title}\n{label}, {limits[0]:g} (dark) to {limits[1]:g} (bright)", fontsize=9)
    return _cautioned(figure)


def bland_altman(found: NDArray[np.float64], reference: NDArray[np.float64], name: str = "reference") -> Figure:
    """Plot the difference of infarct sizes over their mean.

    Lines mark the bias and the limits of agreement (Bland and Altman, Lancet 1986).
    """
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    difference = found - reference
    bias, spread = float(difference.mean()), 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    axes.scatter((found + reference) / 2, difference)
    for what, level, style in (
        ("mean", bias, "-"),
        ("-1.96 SD", bias - spread, "--"),
        ("+1.96 SD", bias + spread, "--"),
    ):
        axes.axhline(level, color="tab:grey", linestyle=style)
        axes.annotate(f"{what} {level:.1f} ", (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.margins(y=0.12)  # for the text above the upper line
    axes.set_xlabel(f"Mean infarct size of found and {name}\n[% of the myocardium]")
    axes.set_ylabel(f"Found minus {name} [%]")
    return _cautioned(figure)


def write_cine(frames: Picture, masks: Sequence[Mask], file: Path, frame_ms: int = 80) -> None:
    """Write frames (T, S, S) in [0, 1] as an endless GIF.

    Each shows the outline of its mask (S, S).
    """
    pictures = []
    for frame, mask in zip(frames, masks, strict=True):
        grey = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
        colours = np.stack([grey] * 3, axis=-1)
        colours[contour(mask)] = (230, 30, 30)
        picture = Image.fromarray(colours.repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1))
        ImageDraw.Draw(picture).text((4, picture.height - 14), CAUTION, fill=(255, 255, 255))
        pictures.append(picture.quantize(128))
    pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=frame_ms, loop=0)


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(3.6 * count, 4.0), layout="constrained")
    axes = [figure.add_subplot(1, count, index) for index in range(1, count + 1)]
    return _cautioned(figure), axes


def _cautioned(figure: Figure) -> Figure:
    figure.supxlabel(CAUTION, fontsize=8, color="tab:red")
    return figure


def _shown(axes: Axes, picture: Picture, title: str) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def _contour(axes: Axes, mask: Mask, colour: str) -> None:
    if mask.any() and not mask.all():  # matplotlib warns of a contour that does not exist
        axes.contour(mask.astype(float), [0.5], colors=colour, linewidths=1)


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
    names = ", ".join(f"{name}: {colour.removeprefix('tab:')}" for name, colour in colours.items())
    figure.suptitle(names, fontsize=8)
