"""Tables of flank wear [um or mm]: a row per cut, a column per flute."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_FLUTE = re.compile(r"flute_\d+")

Unit = Literal["auto", "um", "mm"]
Array = NDArray[np.float64]

SURELY_MM = 1.0
"""A largest wear below this number is in mm, because a worn tool has a hundred or more micrometres of wear."""

SURELY_UM = 5.0
"""A largest wear from this number on is in um; between the two limits it could be a new tool or one worn by 1 to 5 mm."""


def read(file: Path, cuts: Sequence[int], unit: Unit = "auto") -> dict[int, Array]:
    """Return every flute's wear (flutes,) [um] at each given cut.

    Args:
        file: CSV file with the header ``cut,flute_1,…`` in upper or lower case; other columns are ignored.
        cuts: cuts that must be in the table; others in it are ignored.
        unit: unit of the table; see :func:`micrometres`.

    Raises:
        ValueError: the file cannot be read, a column or a cut is missing or appears twice, a cut is not a whole number, a wear
            is not a number from 0 up, or the wear is in several units.
    """
    columns, rows = _cells(file)
    twice = sorted(
        {column for column in columns if columns.count(column) > 1} & {"cut", *filter(_FLUTE.fullmatch, columns)}
    )
    if twice:
        raise ValueError(f"the columns {', '.join(twice)} appear twice. Leave one of each")
    flutes = [column for column in columns if _FLUTE.fullmatch(column)]
    if "cut" not in columns or not flutes:
        raise ValueError(
            f"the columns cut, flute_1, … were expected, separated by commas, and there are {', '.join(columns)}"
        )
    table = pd.DataFrame(rows, columns=columns)
    values = table[["cut", *flutes]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~(np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1))
    if wrong.any():
        raise ValueError(f"line {int(wrong.argmax()) + 2} holds something that is not a number from 0 up")
    rows_of = _rows(values[:, 0])
    absent = [str(cut) for cut in cuts if cut not in rows_of]
    if absent:
        raise ValueError(f"it has no row for the cuts {_some(absent)}")
    if unit == "auto" and (problem := _mixed(values[np.argsort(values[:, 0]), 1:], flutes)):
        raise ValueError(problem)
    wear = micrometres(values[:, 1:], unit, str(file))
    return {cut: wear[rows_of[cut]] for cut in cuts}


def micrometres(wear: Array, unit: Unit, source: str) -> Array:
    """Return wear in micrometres; log a warning if ``auto`` assumes millimetres.

    Args:
        wear: wear of any shape; NaN if unknown.
        unit: unit of ``wear``. ``auto`` assumes mm if the largest is below :data:`SURELY_MM`, and um if it is
            :data:`SURELY_UM` or more.
        source: name of the data in the warning.

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


def mixed_units(tools: NDArray[np.str_], cuts: NDArray[np.int64], wear: Array) -> list[str]:
    """Return a sentence per tool with wear in two units; all arrays are (N,)."""
    problems = []
    for tool in dict.fromkeys(tools.tolist()):
        own = tools == tool
        measured = wear[own][np.argsort(cuts[own], kind="stable")]
        if problem := _mixed(measured[~np.isnan(measured), None], ["wear"]):
            problems.append(f"tool {tool!r}: {problem}")
    return problems


def limits_problem(limits: Sequence[float]) -> str:
    """Return the problem of class limits [um], or ``""``."""
    given = ", ".join(f"{limit:g}" for limit in limits)
    if not np.isfinite(limits).all() or min(limits, default=1.0) <= 0:
        return f"limits of wear are numbers above 0 um, and these are {given}"
    rising = sorted(set(limits))
    if max(limits, default=SURELY_MM) < SURELY_MM:
        return (
            f"limits of wear are in um, and these look like mm. Try: [{', '.join(f'{1000 * one:g}' for one in rising)}]"
        )
    if list(limits) != rising:
        return f"limits have to rise, each once. Try: [{', '.join(f'{one:g}' for one in rising)}]"
    return ""


def _cells(file: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header in lower case, and all cells."""
    try:
        table = pd.read_csv(
            file, header=None, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig"
        )
    except pd.errors.EmptyDataError:
        raise ValueError("it is empty. Expected the header cut,flute_1,… and a row for each cut") from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"it cannot be read ({str(error).strip()}). Expected a header and columns separated by commas, in UTF-8"
        ) from None
    return [str(name).strip().lower() for name in table.iloc[0]], table.iloc[1:].to_numpy().tolist()


def _mixed(wear: Array, columns: Sequence[str]) -> str:
    """Return the reason why wear (cuts, columns) is in two units; empty if it is not.

    Rows are in the order of their cuts. Wear grows: it neither falls from micrometres to below one, nor rises a hundredfold
    from below one in one cut.
    """
    largest = wear.max(axis=0, initial=0.0)
    small = [name for name, most in zip(columns, largest, strict=True) if 0 < most < SURELY_MM]
    if small and largest.max() >= SURELY_UM:
        return f"{', '.join(small)} looks like mm, and the other columns like um. Give all of them in one unit"
    before, after = wear[:-1], wear[1:]
    falls = (before >= SURELY_UM) & (after > 0) & (after < SURELY_MM)
    jumps = (before > 0) & (before < SURELY_MM) & (after >= 100 * before) & (after >= SURELY_UM)
    if (falls | jumps).any():
        row, column = np.argwhere(falls | jumps)[0]
        return (
            f"{columns[column]} goes from {wear[row, column]:g} to {wear[row + 1, column]:g} from one cut to the next, so "
            "some of it looks like mm. Give all of it in one unit, or say which it is: wear_unit=um or wear_unit=mm"
        )
    return ""


def contradictions(
    tools: NDArray[np.str_], cuts: NDArray[np.int64], values: NDArray[np.floating] | NDArray[np.integer], what: str
) -> list[str]:
    """Return a sentence for each cut with two different values; all arrays have the shape (N,)."""
    first: dict[tuple[str, int], float] = {}
    found: dict[tuple[str, int], str] = {}
    for tool, cut, value in zip(tools.tolist(), cuts.tolist(), values.tolist(), strict=True):
        before = first.setdefault((tool, cut), value)
        if before != value and not (np.isnan(before) and np.isnan(value)):
            found.setdefault(
                (tool, cut), f"cut {cut} of {tool!r} appears twice, with the {what} {before:g} and {value:g}"
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
        raise ValueError(f"these cuts appear twice: {_some(twice)}. Leave one row per cut")
    return rows


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:10])}{' …' if len(names) > 10 else ''}"
