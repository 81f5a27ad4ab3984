"""Colours of classes, and captions and legends of pictures."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

OPACITY = 0.65
"""How much of the image a class covers."""

VOID_COLOUR = (128, 128, 128)
_TEXT, _SWATCH, _LINE, _MARGIN, _GAP = 13, 12, 20, 6, 4

Colour = tuple[int, int, int]


def class_colours(count: int) -> list[Colour]:
    """Colours of so many classes: matplotlib's tab10, and tab20 beyond ten; repeated beyond twenty."""
    table = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
    shades = [table(index % table.N) for index in range(count)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue, _ in shades]


def painted(
    picture: NDArray[np.float64], classes: NDArray[np.generic], colours: Sequence[Colour]
) -> NDArray[np.float64]:
    """A picture (H, W, 3; 0 to 255) with its classes (H, W) laid over it; void (-1) is grey."""
    result = picture.copy()
    for index, colour in [(-1, VOID_COLOUR), *enumerate(colours, start=1)]:
        area = classes == index
        result[area] = (1 - OPACITY) * result[area] + OPACITY * np.array(colour)
    return result


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """Put a legend below a picture: a square of its colour before each name, in as many lines as they need."""
    font = ImageFont.load_default(_TEXT)
    rows: list[list[tuple[int, str, Colour]]] = [[]]
    left = _MARGIN
    for name, colour in entries:
        width = _SWATCH + 4 + int(font.getlength(name)) + 2 * _MARGIN
        if rows[-1] and left + width > picture.width:
            rows.append([])
            left = _MARGIN
        rows[-1].append((left, name, colour))
        left += width
    canvas = Image.new("RGB", (picture.width, picture.height + _LINE * len(rows) + _MARGIN), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        top = picture.height + _MARGIN + number * _LINE
        for left, name, colour in row:
            draw.rectangle((left, top, left + _SWATCH, top + _SWATCH), fill=colour, outline="black")
            draw.text((left + _SWATCH + 4, top - 1), name, fill="black", font=font)
    return canvas


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """Put text above a picture, cut to its width."""
    font = ImageFont.load_default(_TEXT)
    while len(text) > 1 and font.getlength(text) > picture.width - 4:
        text = text.rstrip("…")[:-1] + "…"
    canvas = Image.new("RGB", (picture.width, picture.height + _LINE), "white")
    canvas.paste(picture, (0, _LINE))
    ImageDraw.Draw(canvas).text((2, 2), text, fill="black", font=font)
    return canvas


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures side by side on white."""
    canvas = Image.new(
        "RGB",
        (sum(one.width for one in pictures) + _GAP * (len(pictures) - 1), max(one.height for one in pictures)),
        "white",
    )
    left = 0
    for one in pictures:
        canvas.paste(one, (left, 0))
        left += one.width + _GAP
    return canvas
