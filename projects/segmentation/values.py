"""Values of masks: their notation, and the number that encodes the colour of a pixel."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

COLOUR = 1 << 32
"""A pixel that is not grey has the value ``COLOUR + 0xRRGGBB``, so no colour equals a label."""

_MOST = 1 << 40
_MANY = 12


@dataclass(frozen=True)
class Values:
    """A set of mask values, as inclusive ranges."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Values":
        """Read ``1,3``, ``128-255``, ``#ff0000`` or ``nonzero``; commas separate several.

        Raises:
            ValueError: the text is none of these.
        """
        return cls(tuple(_range(part.strip().lower()) for part in text.split(",")))

    @classmethod
    def only(cls, value: int) -> "Values":
        """Return the set of one value."""
        return cls(((value, value),))

    def __contains__(self, value: int) -> bool:
        return any(low <= value <= high for low, high in self.ranges)

    def __str__(self) -> str:
        if self.ranges == (NONZERO,):
            return "nonzero"
        return ",".join(text(low) if low == high else f"{text(low)}-{text(high)}" for low, high in self.ranges)

    @property
    def first(self) -> int:
        """The first value, which represents all of them."""
        return self.ranges[0][0]

    def among(self, values: Iterable[int]) -> list[int]:
        """Return those of ``values`` that are in the set."""
        return [value for value in values if value in self]


NONZERO = (1, _MOST)


def text(value: int) -> str:
    """Return a value as users write it: ``3``, or ``#ff0000`` for a colour."""
    return f"#{value - COLOUR:06x}" if value >= COLOUR else str(value)


def listed(values: Iterable[int]) -> str:
    """Return values as one line; of more than a dozen the first six, the last and their number."""
    ordered = sorted(values)
    if len(ordered) <= _MANY:
        return ", ".join(map(text, ordered))
    return f"{', '.join(map(text, ordered[:6]))} … {text(ordered[-1])} ({len(ordered)} values)"


def ordered_pair(one: int, other: int) -> tuple[int, int]:
    """Order two values as background and foreground: grey before colour, else darker before brighter."""
    first, second = sorted((one, other), key=lambda value: (value >= COLOUR, _luma(value), value))
    return first, second


def _luma(value: int) -> float:
    if value < COLOUR:
        return value
    red, green, blue = (value - COLOUR).to_bytes(3, "big")
    return 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601


def _range(part: str) -> tuple[int, int]:
    if part == "nonzero":
        return NONZERO
    if found := re.fullmatch(r"#([0-9a-f]{6})", part):
        red, green, blue = bytes.fromhex(found[1])
        value = red if red == green == blue else COLOUR + int(found[1], 16)
        return value, value
    if found := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
        low, high = int(found[1]), int(found[2] or found[1])
        if low <= high < COLOUR:
            return low, high
    raise ValueError(f"{part!r} is not a mask value. Expected 255, 128-255, #ff0000 or nonzero")
