"""Windows in one NPZ file: signals, classes or wear, and metadata.

==================  =================  ==============================================================
array               shape              meaning
==================  =================  ==============================================================
``X``               (N, T, C) float    signals
``y``               (N,) integer       class, from 0 without gaps; -1 where it is not known; without it, ``wear`` decides
``lengths``         (N,) integer       optional: steps of each window, from 1 to T; later ones are padding
``groups``          (N,)               the tool of each window; needed to split the windows
``channel_names``   (C,)               optional
``class_names``     (K,)               optional
``cuts``            (N,) integer       optional: the cut of the tool, from 1
``wear``            (N,) float         optional: flank wear [um], or [mm] if the largest is below 1
``wear_bins``       (K - 1,) float     optional: limits of wear between the classes, rising, in the unit of ``wear``
``rate``            () float           optional: sampling rate [Hz]
==================  =================  ==============================================================

Whole numbers may be stored as floats, and tools may be numbers: tool 3.0 is called 3. Other arrays are ignored.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from projects.tool_wear import wear_table
from projects.tool_wear.windows import UNLABELLED, Signals, Windowing, Windows, refuse

Arrays = dict[str, NDArray[Any]]


def read(file: Path, windowing: Windowing | None = None, *, labelled: bool = True) -> Windows:
    """Read windows.

    Args:
        file: the archive.
        windowing: class limits for a file without ``y``, and the unit of its wear. If ``None``, the defaults.
        labelled: whether the file must have ``y`` or ``wear``, as for a training.

    Raises:
        DataError: the file cannot be read, or its arrays are inconsistent; the error lists all problems.
    """
    what = f"{file} does not hold windows"
    try:
        # Opened here, because numpy does not close its own handle of a damaged archive.
        with file.open("rb") as stream, zipfile.ZipFile(stream):
            stream.seek(0)
            arrays: Arrays = dict(np.load(stream, allow_pickle=False))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        unequal = (
            ". Windows of unequal length: pad them, and give lengths (N,)" if "Object arrays" in str(error) else ""
        )
        refuse(
            what,
            [
                f"it cannot be read as an NPZ file without pickled objects ({error}){unequal}. Expected what "
                "numpy.savez(FILE, X=…, y=…, groups=…) writes, or a folder in the layout of PHM 2010"
            ],
        )
    windowing = windowing or Windowing()
    arrays = {name: _plain(name, array) for name, array in arrays.items()}
    problems = _missing(arrays, labelled) or _problems(arrays) or _in_micrometres(arrays, file, windowing)
    if problems:
        refuse(what, problems)
    channels = arrays["X"].shape[2]
    if "y" in arrays:
        labels = arrays["y"].astype(np.int64)
        names = [f"class {label}" for label in range(int(labels.max(initial=0)) + 1)]
    else:
        wear = arrays.get("wear", np.full(len(arrays["X"]), np.nan))
        labels, names = windowing.labels(wear), list(windowing.classes)
        arrays |= {"class_names": np.array(names), "wear_bins": np.array(windowing.bins)}
    return Windows(
        signals=_signals(arrays),
        labels=labels,
        tools=arrays["groups"],
        cuts=arrays.get("cuts", _positions(arrays["groups"])).astype(np.int64),
        wear=arrays.get("wear", np.full(len(labels), np.nan)).astype(np.float32),
        channels=_names(arrays, "channel_names", [f"channel {channel}" for channel in range(channels)]),
        classes=_names(arrays, "class_names", names),
        rate=float(arrays["rate"]) if "rate" in arrays else None,
        bins=tuple(arrays.get("wear_bins", np.empty(0)).tolist()),
    )


def write(file: Path, windows: Windows) -> None:
    """Write windows for :func:`read`. A file from an interrupted write is refused."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays: Arrays = {
        "X": np.nan_to_num(windows.signals),
        "lengths": windows.lengths,
        "y": windows.labels,
        "groups": windows.tools,
        "cuts": windows.cuts,
        "wear": windows.wear,
        "channel_names": np.array(windows.channels, dtype=np.str_),
        "class_names": np.array(windows.classes, dtype=np.str_),
        "wear_bins": np.array(windows.bins, dtype=np.float64),
    }
    if windows.rate is not None:
        arrays["rate"] = np.array(windows.rate)
    np.savez(file, allow_pickle=False, **arrays)


def _missing(arrays: Arrays, labelled: bool) -> list[str]:
    missing = [name for name in ("X", "groups") if name not in arrays]
    if labelled and not {"y", "wear"} & arrays.keys():
        missing.insert(-1 if "groups" in missing else len(missing), "y (the class) or wear (in um)")
    if not missing:
        return []
    meaning = " (the tool of each window: windows are split by tool)" if "groups" in missing else ""
    return [f"it lacks {', '.join(missing)}{meaning}; it has {', '.join(sorted(arrays)) or 'nothing'}"]


def _problems(arrays: Arrays) -> list[str]:
    signals, labels = arrays["X"], arrays.get("y", np.empty(0, dtype=np.int64))
    real = np.issubdtype(signals.dtype, np.integer) or np.issubdtype(signals.dtype, np.floating)
    if signals.ndim != 3 or signals.size == 0 or not real:
        return [f"X has to hold numbers of shape (N, T, C), and has {signals.dtype} of shape {signals.shape}"]
    problems = [
        f"{name} has shape {arrays[name].shape} for {len(signals)} windows, and ({len(signals)},) was expected"
        for name in ("y", "groups", "cuts", "wear", "lengths")
        if name in arrays and arrays[name].shape != signals.shape[:1]
    ]
    if not np.issubdtype(labels.dtype, np.integer):
        numbered = "names, labels = numpy.unique(y, return_inverse=True), and save y=labels, class_names=names"
        problems.append(f"y has to hold integers, and holds {labels.dtype}. Try: {numbered}")
    elif labels.min(initial=0) < UNLABELLED:
        problems.append(f"y has classes below {UNLABELLED}: {labels.min()}")
    elif "class_names" in arrays and labels.max(initial=UNLABELLED) >= len(arrays["class_names"]):
        problems.append(f"y has the class {labels.max()}, and class_names only {len(arrays['class_names'])} names")
    elif "class_names" not in arrays and (
        gaps := sorted(set(range(labels.max(initial=0))) - set(np.unique(labels).tolist()))
    ):
        missing = f"{', '.join(map(str, gaps[:10]))}{' …' if len(gaps) > 10 else ''}"
        problems.append(
            f"y goes up to {labels.max()}, and no window has the class {missing}. Number the classes from 0 without gaps: "
            "numpy.unique(y, return_inverse=True)[1]"
        )
    problems += _tool_problems(arrays["groups"])
    wear = arrays.get("wear", np.empty(0))
    if not np.issubdtype(wear.dtype, np.number):
        problems.append(f"wear has to hold numbers, and holds {wear.dtype}")
    elif np.isinf(wear).any() or (wear < 0).any():
        problems.append("wear holds values that are infinite or below 0")
    if "cuts" in arrays and not np.issubdtype(arrays["cuts"].dtype, np.integer):
        problems.append(f"cuts has to hold integers, and holds {arrays['cuts'].dtype}")
    if not problems and "cuts" in arrays:
        for name, what in (("wear", "wear"), ("y", "class")):
            if name in arrays:
                problems += wear_table.contradictions(arrays["groups"], arrays["cuts"], arrays[name], what)
    rate = arrays.get("rate", np.ones(()))
    if rate.size != 1 or not np.issubdtype(rate.dtype, np.number) or not 0 < float(rate.reshape(())) < np.inf:
        problems.append("rate has to be one number above 0 [Hz]")
    if "channel_names" in arrays and arrays["channel_names"].size != signals.shape[2]:
        problems.append(f"channel_names has {arrays['channel_names'].size} names for {signals.shape[2]} channels")
    for name in ("channel_names", "class_names"):
        names = arrays.get(name, np.empty(0)).tolist()
        if twice := sorted({one for one in names if names.count(one) > 1}):
            problems.append(f"{name} has {', '.join(map(repr, twice))} twice")
    bins, given = arrays.get("wear_bins", np.empty(0)), arrays.get("class_names", np.empty(0))
    if not np.issubdtype(bins.dtype, np.number) or (np.diff(bins) <= 0).any() or not np.isfinite(bins).all():
        problems.append(f"wear_bins has to hold limits that rise, and holds {', '.join(map(str, bins.tolist()))}")
    elif bins.size and given.size not in (0, bins.size + 1):
        problems.append(f"{bins.size} wear_bins make {bins.size + 1} classes, and class_names has {given.size} names")
    lengths = arrays.get("lengths", np.array([signals.shape[1]]))
    if not np.issubdtype(lengths.dtype, np.integer) or lengths.min() < 1 or lengths.max() > signals.shape[1]:
        problems.append(f"lengths has to hold integers from 1 to {signals.shape[1]}")
    if problems:
        return problems
    largest = float(np.finfo(np.float32).max)
    unfinished = ~((np.abs(signals) <= largest) | _padding(arrays)).all(axis=(1, 2))
    if unfinished.any():
        padding = "" if "lengths" in arrays else ". Where NaN is padding, give lengths (N,)"
        problems.append(
            f"{unfinished.sum()} windows hold NaN or infinity, or numbers too large for float32, the first is number "
            f"{unfinished.argmax()}{padding}"
        )
    return problems


def _in_micrometres(arrays: Arrays, file: Path, windowing: Windowing) -> list[str]:
    """Convert wear (tool by tool) and limits to micrometres in place; return the problems that prevent it."""
    if "wear" not in arrays:
        return []
    wear, tools, problems = arrays["wear"].astype(np.float64), arrays["groups"], []
    if windowing.wear_unit == "auto":
        cuts = arrays.get("cuts")
        problems += wear_table.mixed_units(tools, _positions(tools) if cuts is None else cuts, wear)
    for tool in np.unique(tools):
        try:
            wear[tools == tool] = wear_table.micrometres(
                wear[tools == tool], windowing.wear_unit, f"{file}, tool {tool}"
            )
        except ValueError as error:
            problems.append(f"wear of tool {tool}: {error}")
    if problems:
        return problems
    converted = not np.array_equal(wear, arrays["wear"], equal_nan=True)
    if "wear_bins" in arrays and arrays["wear_bins"].size:
        if converted and arrays["wear_bins"].max() < wear_table.SURELY_UM:
            arrays["wear_bins"] = arrays["wear_bins"] * 1000.0
        if problem := wear_table.limits_problem(arrays["wear_bins"].tolist()):
            return [f"wear_bins: {problem}"]
    arrays["wear"] = wear
    return []


def _plain(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in its plain form.

    Whole numbers become integers, names of tools text without blanks around it, and lists get one axis.
    """
    if name in ("y", "cuts", "lengths", "groups"):
        whole = (
            np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all() and (array == np.round(array)).all()
        )
        if whole or (array.dtype == np.bool_ and name == "y"):
            array = array.astype(np.int64)
    if name in ("channel_names", "class_names", "wear_bins"):
        array = np.atleast_1d(array).reshape(-1)
    if (
        name == "groups"
        and array.dtype != np.bool_
        and not (np.issubdtype(array.dtype, np.number) and np.isnan(array).any())
    ):
        return np.char.strip(array.astype(np.str_))
    return array


def _tool_problems(tools: NDArray[Any]) -> list[str]:
    """Return the problems of the tools' names: missing ones, and names that differ only in capitals and zeros."""
    if not np.issubdtype(tools.dtype, np.str_):
        return [f"groups has to hold the name or number of a tool for each window, and holds {tools.dtype} or NaN"]
    names = sorted(set(tools.tolist()))
    problems = (
        [f"groups has windows without the name of a tool, the first is number {(tools == '').argmax()}"]
        if "" in names
        else []
    )
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<![\d.])0+(?=\d)", "", name.lower()), []).append(name)
    return problems + [
        f"the tools {' and '.join(map(repr, same))} look like the same one. Give each tool one name, and different tools names "
        "that differ in more than capitals and leading zeros"
        for same in alike.values()
        if len(same) > 1
    ]


def _padding(arrays: Arrays) -> NDArray[np.bool_]:
    """Return which steps are padding, shape (N, T, 1)."""
    count, steps, _ = arrays["X"].shape
    lengths = arrays.get("lengths", np.full(count, steps))
    return np.asarray((np.arange(steps) >= lengths[:, None])[..., None], dtype=np.bool_)


def _signals(arrays: Arrays) -> Signals:
    return np.where(_padding(arrays), np.float32(np.nan), arrays["X"].astype(np.float32))


def _names(arrays: Arrays, key: str, default: list[str]) -> tuple[str, ...]:
    return tuple(str(name) for name in arrays.get(key, default))


def _positions(groups: NDArray[Any]) -> NDArray[np.int64]:
    """Return each window's position within its tool, from 1; it replaces missing cuts."""
    return np.asarray(pd.Series(groups).groupby(groups).cumcount() + 1)
