"""Tables of flank wear: a row a cut, a column a flute, in micrometres or millimetres."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Unit = Literal["auto", "um", "mm"]
Array = NDArray[np.float64]

SURELY_MM = 1.0
"""A largest wear below this number is in mm: a tool that is worn out has a hundred or more micrometres of wear."""

SURELY_UM = 5.0
"""A largest wear from this number on is in um; between the two limits it could be a new tool or one worn by 1 to 5 mm."""


def read(file: Path, cuts: Sequence[int], unit: Unit = "auto") -> dict[int, Array]:
    """Return the wear of every flute [um], shape (flutes,), at each of the cuts that have a recording.

    Args:
        file: CSV with the header ``cut,flute_1,…``.
        cuts: cuts that have to be in the table; others in it are ignored.
        unit: of the table; see :func:`micrometres`.

    Raises:
        ValueError: the file cannot be read, a cut is missing, stands twice or is no whole number, or a wear is no measurement.
    """
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"it cannot be read ({error})") from None
    flutes = [column for column in table.columns if str(column).startswith("flute_")]
    if "cut" not in table.columns or not flutes:
        raise ValueError(
            f"the columns cut, flute_1, … were expected, and there are {', '.join(map(str, table.columns))}"
        )
    values = table[["cut", *flutes]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~(np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1))
    if wrong.any():
        raise ValueError(f"line {int(wrong.argmax()) + 2} holds something that is not a number from 0 up")
    rows = _rows(values[:, 0])
    absent = [str(cut) for cut in cuts if cut not in rows]
    if absent:
        raise ValueError(f"it has no row for the cuts {_some(absent)}")
    wear = micrometres(values[:, 1:], unit, str(file))
    return {cut: wear[rows[cut]] for cut in cuts}


def micrometres(wear: Array, unit: Unit, source: str) -> Array:
    """Return wear in micrometres, and log a warning where ``auto`` takes it for millimetres.

    Args:
        wear: of any shape; NaN where it is not known.
        unit: that of ``wear``. ``auto`` takes it for mm if the largest is below :data:`SURELY_MM`, and for um if it is
            :data:`SURELY_UM` or more.
        source: names the data in the warning.

    Raises:
        ValueError: ``auto`` cannot tell: the largest wear lies between the two limits.
    """
    largest = float(np.nanmax(wear, initial=0.0))
    if unit == "um" or largest == 0.0 or (unit == "auto" and largest >= SURELY_UM):
        return wear
    if unit == "auto" and largest >= SURELY_MM:
        raise ValueError(
            f"its largest wear is {largest:g}, which is very little in um and very much in mm. "
            "Try: wear_unit=um or wear_unit=mm"
        )
    if unit == "auto":
        logger.warning(
            "%s: the largest wear is %g, so it is taken for millimetres and converted to um. For wear that is in um: "
            "wear_unit=um",
            source,
            largest,
        )
    return wear * 1000.0


def contradictions(tools: NDArray[np.str_], cuts: NDArray[np.int64], wear: NDArray[np.floating]) -> list[str]:
    """Return a sentence for each cut of a tool that has two different values of wear; all arrays have the shape (N,)."""
    first: dict[tuple[str, int], float] = {}
    found: dict[tuple[str, int], str] = {}
    for tool, cut, value in zip(tools.tolist(), cuts.tolist(), wear.tolist(), strict=True):
        before = first.setdefault((tool, cut), value)
        if before != value and not (np.isnan(before) and np.isnan(value)):
            found.setdefault(
                (tool, cut), f"cut {cut} of {tool!r} stands twice, with a wear of {before:g} and {value:g}"
            )
    return list(found.values())


def _rows(cuts: Array) -> Mapping[int, int]:
    """Return the row of each cut."""
    broken = cuts != np.round(cuts)
    if broken.any():
        line = int(broken.argmax())
        raise ValueError(f"line {line + 2} has the cut {cuts[line]:g}; a whole number was expected")
    rows: dict[int, int] = {}
    twice = []
    for row, cut in enumerate(cuts.astype(int).tolist()):
        if rows.setdefault(cut, row) != row:
            twice.append(f"{cut} (lines {rows[cut] + 2} and {row + 2})")
    if twice:
        raise ValueError(f"these cuts stand twice: {_some(twice)}. Leave one row a cut")
    return rows


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:10])}{' …' if len(names) > 10 else ''}"
